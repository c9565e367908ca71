"""Which state a run ends in, and what a state says: as published for Prefect 3, seen there, written down here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hark import State, flow, task
from hark.engine.exceptions import (
    CancelledRun,
    CrashedRun,
    FailedRun,
    PausedRun,
    UnfinishedRun,
    UpstreamTaskError,
)
from hark.engine.states import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Crashed,
    Failed,
    InfrastructurePending,
    Late,
    Paused,
    Pending,
    Running,
    Scheduled,
    StateGroup,
    StateType,
    Submitting,
    Suspended,
    get_state_exception,
    raise_state_exception,
)


class Boom(Exception):
    """What tests raise."""


def shown(state: State) -> tuple[str, str, str | None]:
    return state.type.value, state.name, state.message


def ends(value: Callable[[], Any]) -> State:
    """Return the final state of a flow that returns what ``value`` makes."""
    state: State = flow(value, name="f")(return_state=True)
    return state


@pytest.mark.parametrize("value", [None, 1, [1, 2], {"a": 1}, (1, 2), [], ()])
def test_a_value_completes_the_run(value: Any) -> None:
    """Whatever is no state or future is the result, empty collections included."""
    state = ends(lambda: value)
    assert shown(state) == ("COMPLETED", "Completed", None)
    assert state.result() == value


def test_an_exception_fails_the_run_with_a_message_that_names_it() -> None:
    """The words are those people match; tasks have no colon after `exception`."""

    @task
    def bad() -> None:
        raise ValueError("bad")

    def body() -> None:
        raise ValueError("bad")

    assert shown(ends(body)) == ("FAILED", "Failed", "Flow run encountered an exception: ValueError: bad")
    state: State = bad(return_state=True)
    assert shown(state) == ("FAILED", "Failed", "Task run encountered an exception ValueError: bad")
    assert repr(state.result(raise_on_failure=False)) == "ValueError('bad')"
    with pytest.raises(ValueError, match="bad"):
        state.result()


@pytest.mark.parametrize(
    ("made", "is_like", "raises"),
    [
        (lambda: Completed(message="hi"), ("COMPLETED", "Completed", "hi"), None),
        (lambda: Completed(name="Mine"), ("COMPLETED", "Mine", None), None),
        (lambda: Failed(message="no"), ("FAILED", "Failed", "no"), FailedRun),
        (lambda: Failed(name="Mine", message="no"), ("FAILED", "Mine", "no"), FailedRun),
        (lambda: Failed(message="m", data=Boom("x")), ("FAILED", "Failed", "m"), Boom),
        (lambda: Failed(data="text"), ("FAILED", "Failed", None), FailedRun),
        (lambda: Cancelled(message="c"), ("CANCELLED", "Cancelled", "c"), CancelledRun),
        (lambda: Crashed(message="cr"), ("CRASHED", "Crashed", "cr"), CrashedRun),
    ],
)
def test_a_state_made_by_hand_is_the_final_state(
    made: Callable[[], State], is_like: tuple[str, str, str | None], raises: type[Exception] | None
) -> None:
    """Of flows and of tasks; and a call without ``return_state`` raises what it stands for."""
    assert shown(ends(made)) == is_like
    assert shown(task(made)(return_state=True)) == is_like
    if raises is None:
        assert flow(made, name="f")() is None
    else:
        with pytest.raises(raises):
            flow(made, name="f")()


@pytest.mark.parametrize(
    ("made", "is_like"),
    [
        (lambda: [Completed(), Completed()], ("COMPLETED", "Completed", "All states completed.")),
        (lambda: {Completed()}, ("COMPLETED", "Completed", "All states completed.")),
        (lambda: [Completed(), Failed()], ("FAILED", "Failed", "1/2 states failed.")),
        (lambda: (Completed(), Failed()), ("FAILED", "Failed", "1/2 states failed.")),
        (lambda: [Crashed(), Completed()], ("FAILED", "Failed", "1/2 states failed.")),
        (lambda: [Failed(), Cancelled()], ("CANCELLED", "Cancelled", "1/2 states cancelled.")),
        (lambda: [Paused(), Completed()], ("PAUSED", "Paused", "1/2 states paused.")),
        (lambda: [Completed(), Pending()], ("FAILED", "Failed", "1/2 states are not final.")),
        (lambda: [Failed(), Pending()], ("FAILED", "Failed", "1/2 states failed.")),
        (lambda: [Failed(), 5], ("COMPLETED", "Completed", None)),
        (lambda: {"a": Failed()}, ("COMPLETED", "Completed", None)),
        (lambda: [[Failed()]], ("COMPLETED", "Completed", None)),
    ],
)
def test_collections_of_states_are_summed_up(
    made: Callable[[], Any], is_like: tuple[str, str, str | None]
) -> None:
    """Lists, tuples and sets of nothing but states; anything else is a value."""
    assert shown(ends(made)) == is_like


def test_futures_that_are_returned_decide() -> None:
    """A future counts as its final state, alone or among others; what is not returned does not count."""

    @task
    def ok() -> int:
        return 1

    @task
    def bad() -> None:
        raise ValueError("bad")

    assert shown(ends(ok.submit)) == ("COMPLETED", "Completed", "All states completed.")
    assert shown(ends(bad.submit)) == ("FAILED", "Failed", "1/1 states failed.")
    both = ends(lambda: [ok.submit(), bad.submit()])
    assert shown(both) == ("FAILED", "Failed", "1/2 states failed.")
    assert [state.name for state in both.result(raise_on_failure=False)] == ["Completed", "Failed"]
    assert shown(ends(lambda: bad(return_state=True))) == ("FAILED", "Failed", "1/1 states failed.")
    assert shown(ends(lambda: [bad.submit(), 3])) == ("COMPLETED", "Completed", None)
    assert shown(ends(lambda: {"a": bad.submit()})) == ("COMPLETED", "Completed", None)

    # States in one made by hand are what it failed with, not what the call returns.
    with pytest.raises(ValueError, match="in there"):
        flow(lambda: Failed(data=[Completed(), Failed(data=ValueError("in there"))]), name="by hand")()

    def alone() -> int:
        bad.submit()
        return 7

    assert ends(alone).result() == 7


def test_a_subflow_that_fails_fails_its_parent_unless_it_is_asked() -> None:
    """Its exception goes through the parent; its state decides only where it is returned."""

    @flow
    def child() -> None:
        raise ValueError("c")

    def caught() -> str:
        try:
            child()
        except ValueError:
            return "caught"
        return "not raised"

    def ignored() -> int:
        child(return_state=True)
        return 1

    assert shown(ends(child)) == ("FAILED", "Failed", "Flow run encountered an exception: ValueError: c")
    assert ends(caught).result() == "caught"
    assert ends(ignored).result() == 1
    assert shown(ends(lambda: child(return_state=True))) == ("FAILED", "Failed", "1/1 states failed.")


def test_upstream_failures_leave_what_follows_not_ready() -> None:
    """It never runs, its result is that of an unfinished run, and a flow that returns it fails."""

    @task
    def bad() -> None:
        raise Boom("root")

    @task
    def after(x: Any) -> Any:
        return x

    @flow
    def chain() -> Any:
        last = after.submit(after.submit(bad.submit()))
        last.wait()
        return last.state.type.value, last.state.name

    assert chain() == ("PENDING", "NotReady")
    end = ends(lambda: after.submit(bad.submit()))
    assert shown(end) == ("FAILED", "Failed", "1/1 states are not final.")
    with pytest.raises(UnfinishedRun):
        ends(lambda: after.submit(bad.submit())).result()
    assert issubclass(UpstreamTaskError, UnfinishedRun)


def test_a_run_that_takes_too_long_says_how_long_it_had() -> None:
    """The message is the field's; a limit that an inner run reached is not the outer one's."""

    @task(timeout_seconds=0.05)
    def slow() -> None:
        while True:
            time.sleep(0.005)

    state: State = slow(return_state=True)
    assert shown(state) == ("FAILED", "TimedOut", "Task run exceeded timeout of 0.05 second(s)")
    assert isinstance(state.result(raise_on_failure=False), TimeoutError)
    outer = ends(slow)
    assert outer.name == "TimedOut"
    assert (outer.message or "").startswith("Flow run failed due to timeout: ")


async def test_a_flow_that_takes_too_long_says_so() -> None:
    """Of async flows, too; and a TimeoutError of the code's own is told apart."""

    @flow(timeout_seconds=0.05)
    async def slow() -> None:
        await asyncio.sleep(30)

    @flow(timeout_seconds=30)
    async def own() -> None:
        raise TimeoutError("mine")

    assert shown(await slow(return_state=True)) == (
        "FAILED",
        "TimedOut",
        "Flow run exceeded timeout of 0.05 second(s)",
    )
    assert shown(await own(return_state=True)) == (
        "FAILED",
        "TimedOut",
        "Flow run failed due to timeout: TimeoutError('mine')",
    )


@pytest.mark.parametrize(
    ("exc", "message"),
    [
        (KeyboardInterrupt(), "Execution was aborted by an interrupt signal."),
        (SystemExit(), "Execution was aborted by Python system exit call."),
        (SystemExit(3), "Execution was aborted by Python system exit call. Exit code 3."),
    ],
)
def test_an_interruption_crashes_the_run_and_goes_on_up(exc: BaseException, message: str) -> None:
    """Hooks hear of it; it is no failure."""
    heard: list[Any] = []

    @flow(
        on_crashed=[lambda f, r, s: heard.append(shown(s))], on_failure=[lambda f, r, s: heard.append("no")]
    )
    def interrupted() -> None:
        raise exc

    with pytest.raises(type(exc)):
        interrupted()
    assert heard == [("CRASHED", "Crashed", message)]


def test_each_type_answers_for_itself() -> None:
    """``is_…`` of every kind."""
    asked = ("scheduled", "pending", "running", "completed", "failed", "crashed", "cancelled", "paused")
    made: dict[str, Callable[..., State]] = {
        "scheduled": Scheduled, "pending": Pending, "running": Running, "completed": Completed, "failed": Failed,
        "crashed": Crashed, "cancelled": Cancelled, "paused": Paused,
    }  # fmt: skip
    for name, make in made.items():
        assert [word for word in asked if getattr(make(), f"is_{word}")()] == [name]
        assert make().is_final() is (name in ("completed", "failed", "crashed", "cancelled"))
    for make, type_, name in (
        (Late, "SCHEDULED", "Late"),
        (AwaitingRetry, "SCHEDULED", "AwaitingRetry"),
        (Submitting, "PENDING", "Submitting"),
        (InfrastructurePending, "PENDING", "InfrastructurePending"),
        (Suspended, "PAUSED", "Suspended"),
    ):
        assert shown(make()) == (type_, name, None)


@pytest.mark.parametrize(
    ("state", "raises"),
    [
        (Failed(data=ValueError("x")), ValueError),
        (Failed(message="mm"), FailedRun),
        (Failed(data=[Completed(), Failed(data=Boom("inner"))]), Boom),
        (Failed(data=Failed(data=Boom("inner"))), Boom),
        (Cancelled(), CancelledRun),
        (Crashed(), CrashedRun),
        (Paused(), PausedRun),
        (Pending(), UnfinishedRun),
        (Running(), UnfinishedRun),
        (Scheduled(), UnfinishedRun),
    ],
)
def test_the_result_of_a_state_that_did_not_complete_is_raised(
    state: State, raises: type[BaseException]
) -> None:
    """By ``result``; and by ``raise_state_exception`` where it has ended."""
    with pytest.raises(raises):
        state.result()
    if state.is_final():
        with pytest.raises(raises):
            raise_state_exception(state)
        assert isinstance(get_state_exception(state), raises)
    else:
        raise_state_exception(state)
        with pytest.raises(raises):
            state.result(raise_on_failure=False)


def test_a_completed_state_has_a_result_and_no_exception() -> None:
    """``raise_state_exception`` lets it pass, and there is no exception to get."""
    assert Completed(data=3).result() == 3
    raise_state_exception(Completed())
    with pytest.raises(ValueError, match="no exception"):
        get_state_exception(Completed())


def test_a_state_reads_well() -> None:
    """As text it is a call that would make it."""
    assert str(Completed()) == "Completed()"
    assert str(Completed(message="hi")) == "Completed('hi')"
    assert str(Failed(name="X")) == "X(type=FAILED)"
    assert repr(Completed(message="hi")) == "Completed(message='hi', type=COMPLETED, result=None)"


def test_states_are_made_from_what_they_are() -> None:
    """Types by name, times of scheduled ones, limits of paused ones; copies change what they are told."""
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    assert shown(State("COMPLETED")) == ("COMPLETED", "Completed", None)  # type: ignore[arg-type]
    assert shown(State(StateType.FAILED, "Odd", "m")) == ("FAILED", "Odd", "m")
    assert shown(Completed().model_copy(update={"name": "z"})) == ("COMPLETED", "z", None)
    for make in (Scheduled, Late, AwaitingRetry):
        assert make(scheduled_time=moment).state_details.scheduled_time == moment
    paused = Paused(timeout_seconds=60, pause_key="k", reschedule=True).state_details
    assert paused.pause_timeout is not None
    assert paused.pause_timeout > datetime.now(UTC)
    assert (paused.pause_key, paused.pause_reschedule) == ("k", True)
    assert Suspended(pause_expiration_time=moment).state_details.pause_timeout == moment
    with pytest.raises(ValueError, match="Cannot supply both"):
        Paused(timeout_seconds=1, pause_expiration_time=moment)
    old = Completed(timestamp=datetime.now(UTC) - timedelta(days=1))
    assert old.fresh_copy().timestamp > old.timestamp
    assert Completed().state_details.scheduled_time is None


def test_a_group_of_states_is_counted() -> None:
    """By type, and by what matters of it."""
    group = StateGroup([Completed(), Failed(), Crashed(), Pending()])
    assert (group.fail_count, group.not_final_count, group.total_count) == (2, 1, 4)
    assert group.any_failed()
    assert not group.all_completed()
    assert not group.all_final()
    assert not group.any_cancelled()
    assert not group.any_paused()
    assert group.counts_message() == (
        "total=4, not_final=1, 'COMPLETED'=1, 'FAILED'=1, 'CRASHED'=1, 'PENDING'=1"
    )
