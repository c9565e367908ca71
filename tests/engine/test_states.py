"""States, the table of moves, and which state a run ends in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hark.engine.runs.final_state import state_of_crash, state_of_exception, state_of_value
from hark.engine.signals import Abort, Skip
from hark.engine.states import (
    MOVES,
    TERMINAL,
    Cancelled,
    Completed,
    Crashed,
    Failed,
    NotReady,
    Paused,
    Pending,
    Running,
    State,
    StateType,
    event_word,
    get_state_exception,
    move_allowed,
)  # fmt: skip
from hark.errors import (
    FlowFailed,
    RunCancelled,
    RunCrashed,
    RunPaused,
    RunTimedOut,
    RunUnfinished,
    UpstreamFailed,
)
from hypothesis import given
from hypothesis import strategies as st

types = st.sampled_from(StateType)
names = st.sampled_from(["Completed", "TimedOut", "Cached", "Skipped", "Late", "my own", ""])


@given(types)
def test_a_terminal_state_is_final(type_: StateType) -> None:
    """From a terminal type nothing is allowed but a new attempt, and that begins by being scheduled."""
    for target in StateType:
        if type_ in TERMINAL:
            assert not move_allowed(type_, target)
            assert move_allowed(type_, target, retry=True) == (
                target is StateType.SCHEDULED and type_ is not StateType.COMPLETED
            )
        else:
            assert move_allowed(type_, target) == (target in MOVES[type_])


def test_every_type_that_is_not_terminal_can_reach_an_end() -> None:
    """No run can get into a state it cannot leave."""
    for type_ in StateType:
        reached, todo = {type_}, [type_]
        while todo:
            for following in MOVES[todo.pop()] - reached:
                reached.add(following)
                todo.append(following)
        assert type_ in TERMINAL or (reached & TERMINAL)
        assert set(MOVES) == {None, *StateType}


@given(types, names)
def test_a_custom_name_never_hides_a_type(type_: StateType, name: str) -> None:
    """The word of the event is one of the type's own, whatever the state is called."""
    word = event_word(type_, name)
    assert word == type_.value.lower() or State(type_, name=name).name == name
    if name in ("my own", "Skipped"):
        assert word == type_.value.lower()


def of_run(state: State) -> State:
    """The state as a run of its own would have it."""
    return state.replace(run_id="some-run")


states = st.sampled_from([Completed(), Failed(), Crashed(), Cancelled(), Paused(), Pending(), Running()])


@given(st.lists(states, min_size=1, max_size=6), st.sampled_from([list, tuple]))
def test_several_states_are_summed_up(given_states: list[State], kind: type) -> None:
    """COMPLETED if all are; else CANCELLED if any is; else PAUSED if any is; else FAILED. The states are the data."""
    value = kind(of_run(state) for state in given_states)
    found = state_of_value(value, run_id="r")
    kinds = [state.type for state in given_states]
    if all(k is StateType.COMPLETED for k in kinds):
        assert found.type is StateType.COMPLETED
    elif StateType.CANCELLED in kinds:
        assert found.type is StateType.CANCELLED
    elif StateType.PAUSED in kinds:
        assert found.type is StateType.PAUSED
    else:
        assert found.type is StateType.FAILED
    assert found.data is value
    assert found.run_id == "r"


@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.text(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.booleans()),
    )
)
def test_plain_data_completes_a_run(value: object) -> None:
    """Whatever is no state is the result, empty collections included."""
    state = state_of_value(value, run_id="r")
    assert state.type is StateType.COMPLETED
    assert state.result() == value


def test_a_state_made_by_hand_is_taken_as_it_is() -> None:
    """Returning `Completed(name=…)` or `Failed(message=…)` chooses the end, data and all."""
    state = state_of_value(Completed(name="Skipped", message="nothing to do", data=3), run_id="r")
    assert (state.name, state.message, state.data, state.run_id) == ("Skipped", "nothing to do", 3, "r")
    assert state_of_value(Failed(message="no"), run_id="r").is_failed()


def test_the_state_of_another_run_decides() -> None:
    """A returned task state makes the flow fail with it, and is what the flow's state holds."""
    failed = of_run(Failed(data=ValueError("x")))
    state = state_of_value(failed, run_id="r")
    assert state.is_failed()
    assert state.message == "1/1 states failed."
    assert state.data is failed
    with pytest.raises(ValueError, match="x"):
        state.result()


def test_a_mixed_list_is_data() -> None:
    """A list that holds anything but states is a result like any other."""
    assert state_of_value([of_run(Failed()), 1], run_id="r").is_completed()


def test_a_generator_is_run_into_a_list() -> None:
    """What a returned generator yields is the result."""
    assert state_of_value((n for n in range(3)), run_id="r").result() == [0, 1, 2]


def test_what_is_raised_decides() -> None:
    """Skip completes, Abort and everything else fail, a limit has its own name."""
    assert state_of_exception(Skip("later"), what="Task run", run_id="r").name == "Skipped"
    assert state_of_exception(Skip("later"), what="Task run", run_id="r").is_completed()
    assert state_of_exception(Abort("no"), what="Flow run", run_id="r").is_failed()
    assert state_of_exception(RunTimedOut("slow"), what="Flow run", run_id="r").name == "TimedOut"
    failed = state_of_exception(ValueError("x"), what="Flow run", run_id="r")
    assert failed.message == "Flow run encountered an exception: ValueError: x"


@pytest.mark.parametrize("exc", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_comes_from_outside_crashes(exc: BaseException) -> None:
    """A cancelled loop, Ctrl-C and sys.exit are no failures of the code."""
    assert state_of_crash(exc, run_id="r").is_crashed()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even this fails")


def test_an_exception_that_cannot_be_shown_is_still_reported() -> None:
    """A broken __str__ does not hide the failure."""
    assert "Unprintable" in (state_of_exception(Unprintable(), what="Task run", run_id="r").message or "")


def test_a_state_without_an_exception_raises_one_that_fits() -> None:
    """FAILED, CRASHED and CANCELLED states each have their own kind; so has the result of those that have not ended."""
    assert isinstance(get_state_exception(Failed(message="m")), FlowFailed)
    assert isinstance(get_state_exception(Crashed()), RunCrashed)
    assert isinstance(get_state_exception(Cancelled()), RunCancelled)
    assert str(get_state_exception(Failed(message="m", data="said so"))) == "said so"
    for state, raises in (
        (NotReady(message="m"), UpstreamFailed),
        (Running(), RunUnfinished),
        (Paused(), RunPaused),
    ):
        for raise_on_failure in (True, False):
            with pytest.raises(raises):
                state.result(raise_on_failure=raise_on_failure)
        with pytest.raises(ValueError, match="no exception"):
            get_state_exception(state)
    with pytest.raises(ValueError, match="got Completed"):
        get_state_exception(Completed())


@pytest.mark.parametrize("made", [Failed, Crashed, Cancelled])
@pytest.mark.parametrize(
    ("data", "raises", "match"),
    [
        (2, TypeError, "int cannot be resolved"),
        (Completed(data=1), ValueError, "got Completed"),
        ([Completed(), Completed()], ValueError, "none were failed"),
        ([Completed(), Cancelled(message="me")], RunCancelled, "me"),
    ],
)
def test_a_state_that_makes_no_sense_says_so(
    made: Callable[..., State], data: Any, raises: type[Exception], match: str
) -> None:
    """When it is asked to raise."""
    with pytest.raises(raises, match=match):
        made(data=data).result()


def test_result_can_return_the_exception() -> None:
    """`raise_on_failure=False` gives the exception itself."""
    exc = ValueError("x")
    assert Failed(data=exc).result(raise_on_failure=False) is exc
