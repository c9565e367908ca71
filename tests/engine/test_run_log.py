"""Moving runs in the log under guard, with several writers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import anyio
import orjson
import pytest
from hark.bus import Bus, Recorded
from hark.engine.runs.run import Cause, FlowRun, RunRequest, run_id_for, transition_event
from hark.engine.runs.run_log import RunLog
from hark.engine.states import Cancelling, Completed, Failed, Pending, Retrying, Running, Scheduled, State
from hark.errors import GuardFailed, HarkError, MoveRefused, RunLost, UnknownName
from hark.vocabulary import FlowRunId, StateType


def a_request(*cause: str) -> RunRequest:
    return RunRequest(flow_name="f", id=run_id_for(*(cause or ("x",))), pool="default")


async def a_running(runs: RunLog) -> FlowRun:
    run = await runs.request(a_request())
    run = await runs.move(run, Pending(), attempt=1)
    return await runs.move(run, Running())


def test_a_changed_run_is_what_replace_makes() -> None:
    """The quick way gives the same run, leaves the first alone, and knows no other fields."""
    run = FlowRun.requested(RunRequest(flow_name="x"), now=datetime.now(UTC))
    assert run.changed(seq=4, name="n") == replace(run, seq=4, name="n")
    assert run.seq == 0
    with pytest.raises(AttributeError):
        run.changed(nothing=1)
    with pytest.raises(FrozenInstanceError):
        run.changed(seq=4).seq = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "odd",
    [
        {}, {"time": "2026-01-02T03:04:05.5+02:00"}, {"time": "2026-01-02T03:04:05.123456Z"}, {"time": "yesterday"}, {"time": 5},
        {"time": ...}, {"correlationid": ""}, {"correlationid": 5}, {"correlationid": ...}, {"causationid": "a\nb"},
        {"causaldepth": True}, {"causaldepth": -1}, {"causaldepth": 7}, {"causaldepth": "7"}, {"causaldepth": None},
        {"traceparent": ""}, {"traceparent": "00-a"}, {"extra": "x"}, {"Extra": "x"}, {"data": 5}, {"data_base64": "AA=="},
        {"id": ""}, {"id": "a\x00"}, {"id": ...}, {"source": "/elsewhere"}, {"specversion": "2.0"}, {"specversion": ...},
        {"type": "flow-run"}, {"type": "FLOW"}, {"type": 5}, {"subject": 5}, {"subject": ...}, {"datacontenttype": 5},
        {"recordedtime": "2026-01-02T03:04:05.123456Z"}, {"tracestate": "a=b"}, {"partitionkey": "k"},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_is_read_alike_from_the_text_and_from_the_event(odd: dict[str, object]) -> None:
    """The quick way is for what Hark writes; whatever else stands there is read as every event is, or is none."""
    now = datetime.now(UTC)
    run = FlowRun.requested(RunRequest(flow_name="f"), now=now).moved(Pending(), attempt=1)
    row = transition_event(run, previous=None).to_dict() | {"causationid": "c", "traceparent": "00-t"}
    for name, value in odd.items():
        row.pop(name) if value is ... else row.update({name: value})  # type: ignore[dict-item]
    raw = orjson.dumps(row)

    def read(recorded: Recorded) -> FlowRun | str:
        try:
            return FlowRun.from_recorded(recorded)
        except (HarkError, KeyError, ValueError, TypeError) as exc:
            return repr(exc)

    quick, parsed = (Recorded(7, "hark.ev.flow-run.pending.x", now, raw) for _ in range(2))
    with contextlib.suppress(HarkError):
        _ = parsed.event
    one, other = read(quick), read(parsed)
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
    else:
        assert {f.name: getattr(one, f.name) for f in fields(one)} == {
            f.name: getattr(other, f.name) for f in fields(other)
        }


def test_a_run_read_from_its_transition_or_copied_has_every_field() -> None:
    """Also those that are no part of comparing; values that differ, so that none is taken for another."""
    now = datetime.now(UTC)
    request = RunRequest(
        flow_name="flow", name="run", flow_version="v", deployment="deployment", entrypoint="a.py:f",
        parameters={"n": 1}, tags=("a", "b"), pool="pool", queue="queue", parent=FlowRunId("parent"),
        scheduled_at=now + timedelta(seconds=1), concurrency_key="key", cause=Cause("schedule", "name", "event"),
        traceparent="00-trace",
    )  # fmt: skip
    run = FlowRun.requested(request, now=now).changed(
        correlationid="story", causationid="cause", causaldepth=3, seq=9, result={"format": "json"}
    )
    run = run.moved(Running(message="m", details={"d": 1}), attempt=2).moved(Completed(message="end"))
    run = run.changed(result={"format": "json"})
    event = transition_event(run, previous=StateType.RUNNING, result=run.result)
    run = run.landed(seq=9, event_id=event.id)
    read = FlowRun.from_recorded(Recorded(9, "hark.ev.x", now, event.to_json()))
    assert not [f.name for f in fields(run) if not getattr(run, f.name) and f.name != "state_details"]
    for one in (read, run.changed()):
        assert {f.name: getattr(one, f.name) for f in fields(run)} == {
            f.name: getattr(run, f.name) for f in fields(run)
        }
        assert one == run


def test_the_hour_that_comes_twice_is_told_apart() -> None:
    """When clocks are set back, two times of one zone are equal to Python and an hour apart."""
    first = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    said = []
    for moment in (first, first.replace(fold=1)):
        run = FlowRun.requested(replace(a_request(), scheduled_at=moment), now=moment)
        data = transition_event(run, previous=None).data
        assert isinstance(data, dict)
        assert isinstance(data["run"], dict)
        said.append(data["run"]["scheduled_at"])
    assert said == ["2026-10-25T00:30:00.000000Z", "2026-10-25T01:30:00.000000Z"]


async def test_ten_who_ask_at_once_for_one_run_get_one_run(bus: Bus) -> None:
    """One event; everybody is given the run as it stands."""
    runs = RunLog(bus)
    asked = await asyncio.gather(*(runs.request(a_request()) for _ in range(10)))
    assert len({run.seq for run in asked}) == 1
    assert len(await runs.history(asked[0].id)) == 1
    moved = await runs.move(asked[0], Pending(), attempt=1)
    assert (await runs.request(a_request())).seq == moved.seq


async def test_of_two_workers_that_claim_a_run_exactly_one_does(bus: Bus) -> None:
    """The other is told, and nothing of it is in the log."""
    runs = RunLog(bus)
    run = await runs.request(a_request())
    claims = [runs.move_exactly(run, Pending(details={"worker": name}), attempt=1) for name in ("ann", "bob")]
    outcomes = await asyncio.gather(*claims, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["FlowRun", "GuardFailed"]
    assert len(await runs.history(run.id)) == 2


async def test_who_lost_a_run_to_the_next_attempt_cannot_write(bus: Bus) -> None:
    """A zombie's completion is refused, and it learns why."""
    runs = RunLog(bus)
    zombie = await a_running(runs)
    successor = await runs.move_exactly(zombie, Running(message="worker lost"), attempt=2)
    with pytest.raises(RunLost, match="attempt 2"):
        await runs.move(zombie, Completed())
    await runs.move(successor, Completed())
    with pytest.raises(RunLost):
        await runs.move(zombie, Failed())
    with pytest.raises(MoveRefused):
        await runs.move(await runs.get(zombie.id) or zombie, Failed())


async def test_a_cancel_request_does_not_take_the_run_from_its_worker(bus: Bus) -> None:
    """It may still end the run, not go on with it."""
    runs = RunLog(bus)
    mine = await a_running(runs)
    await runs.change(mine.id, lambda _: Cancelling())
    with pytest.raises(MoveRefused):
        await runs.move(mine, Retrying())
    assert (await runs.move(mine, Completed())).state_type is StateType.COMPLETED


async def test_a_finished_run_moves_only_by_retry(bus: Bus) -> None:
    """A terminal state is final; a new attempt has to be asked for as such."""
    runs = RunLog(bus)
    run = await runs.move(await a_running(runs), Failed())
    with pytest.raises(MoveRefused):
        await runs.move(run, Scheduled())
    again = await runs.move(run, Scheduled(), retry=True)
    assert (again.state_type, again.attempt) == (StateType.SCHEDULED, 1)


async def test_a_change_is_decided_again_when_somebody_wrote_between(bus: Bus) -> None:
    """`change` reads again and asks again until its decision fits what is there."""
    runs = RunLog(bus)
    run = await a_running(runs)
    decisions = []

    def decide(now: FlowRun) -> State | None:
        decisions.append(now.seq)
        return None if now.is_final else Cancelling()

    async with anyio.create_task_group() as tg:
        for _ in range(4):
            tg.start_soon(
                runs.change, run.id, lambda now: None if now.state_type == "CANCELLING" else decide(now)
            )
    assert [recorded.event.type for recorded in await runs.history(run.id)].count("flow-run.cancelling") == 1
    with pytest.raises(UnknownName):
        await runs.change(FlowRunId("nobody"), decide)


async def test_waiting_hears_the_end_of_a_run(bus: Bus) -> None:
    """Without polling: the transition wakes who waits; a timeout and an unknown run are errors of their own."""
    runs = RunLog(bus)
    run = await a_running(runs)
    ended: list[FlowRun] = []

    async def waiting() -> None:
        ended.append(await runs.wait(run.id, timeout_s=60))

    async with anyio.create_task_group() as tg:
        tg.start_soon(waiting)
        await anyio.wait_all_tasks_blocked()
        await runs.move(run, Completed())
    assert ended[0].state_type is StateType.COMPLETED
    assert (await runs.wait(run.id)).is_final, "one that has ended is not waited for"
    other = await runs.request(a_request("other"))
    with pytest.raises(TimeoutError):
        await runs.wait(other.id, timeout_s=0.05)
    with pytest.raises(UnknownName):
        await runs.wait(FlowRunId("nobody"))


async def test_a_run_can_begin_without_having_been_asked_for(bus: Bus) -> None:
    """A plain call begins RUNNING or PENDING; twice under one id is refused."""
    runs = RunLog(bus)
    run = FlowRun.requested(a_request(), now=bus.clock.now())
    begun = await runs.begin(run, Running())
    assert (begun.state_type, begun.seq > 0) == (StateType.RUNNING, True)
    with pytest.raises(GuardFailed):
        await runs.begin(run, Running())
    with pytest.raises(MoveRefused):
        await runs.begin(replace(run, id=FlowRunId("other")), State(StateType.CANCELLED))


async def test_a_run_can_begin_with_two_transitions(bus: Bus) -> None:
    """What can be said at once is; a move that does not exist is refused before anything is written."""
    runs = RunLog(bus)
    run = FlowRun.requested(a_request(), now=bus.clock.now())
    with pytest.raises(MoveRefused):
        runs.two_drafts(run, State(StateType.CANCELLED), Running(), attempt=1)
    drafts = runs.two_drafts(run, Pending(), Running(), attempt=1, name="fine")
    begun, moved = await runs.begin_and_move(*drafts)
    assert moved is not None
    assert (begun.state_type, moved.state_type, moved.name) == (StateType.PENDING, StateType.RUNNING, "fine")
    there = await runs.get(run.id)
    assert there is not None
    assert (there.state_type, there.seq, there.name) == (moved.state_type, moved.seq, moved.name)
    assert [recorded.seq for recorded in await runs.history(run.id)] == [begun.seq, moved.seq]
    with pytest.raises(GuardFailed):
        await runs.begin_and_move(*runs.two_drafts(run, Pending(), Running(), attempt=1))
    begun, again = await runs.begin_and_move(*drafts)
    assert again is not None
    assert (begun.seq, again.seq) == (begun.seq, moved.seq), "a repeat is told where it stands"
    end = runs.draft(moved, Completed())
    assert (await runs.move(moved, Completed(), draft=end)).is_final
    assert (await runs.move(moved, Completed(), draft=end)).seq == await bus.log.head()


async def test_racing_writers_leave_one_unbroken_chain(bus: Bus) -> None:
    """Whatever many do at once, each transition in the log is allowed after the one before it."""
    from hark.engine.states import move_allowed

    runs = RunLog(bus)
    run = await a_running(runs)

    async def attempt(state: State) -> None:
        with contextlib.suppress(HarkError):
            await runs.move(run, state)

    states = [Completed(), Failed(), Cancelling(), Retrying(), Running(), Completed(), Cancelling()]
    async with anyio.create_task_group() as tg:
        for state in states * 3:
            tg.start_soon(attempt, state)
    types = [FlowRun.from_recorded(recorded).state_type for recorded in await runs.history(run.id)]
    assert all(move_allowed(a, b) for a, b in itertools.pairwise(types))
    assert sum(type_.is_terminal for type_ in types) <= 1
