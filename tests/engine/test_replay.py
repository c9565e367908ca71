"""Which finished calls count when a run is taken up again. Pure: the log is made up."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
from hark.bus import Event, Recorded
from hark.bus.subject import STATE_HEADER, flow_run_subject, task_run_subject
from hark.engine.runs.replay import FinishedCalls, RetryingCall, attempt_starts, begins_anew, retries_made
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def moved(seq: int, word: str, attempt: int, **details: object) -> Recorded:
    """A transition of the flow run."""
    type_ = {"retrying": "RUNNING", "running": "RUNNING"}.get(word, "SCHEDULED")
    event = Event(
        type=f"flow-run.{word}", source="/hark/engine", subject="flow-run/r",
        data={"run": {"attempt": attempt}, "state": {"type": type_, "details": details}},  # type: ignore[dict-item]
    )  # fmt: skip
    return Recorded(seq, flow_run_subject(word, "r"), NOW, event.to_json())


def finished(seq: int, key: str, attempt: int, word: str = "completed") -> Recorded:
    """A transition of a task run."""
    data = {
        "flow_run": {"id": "r", "attempt": attempt}, "run": {"id": f"task-{seq}"}, "call": key,
        "result": {"inline": seq, "format": "json"},
    }  # fmt: skip
    raw = orjson.dumps(
        {"specversion": "1.0", "id": str(seq), "source": "/s", "type": f"task-run.{word}", "data": data}
    )
    return Recorded(seq, task_run_subject("r"), NOW, raw, {STATE_HEADER: word})


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from("abc"), st.booleans()), max_size=40))
def test_what_a_fenced_attempt_finishes_does_not_count(steps: list[tuple[int, str, bool]]) -> None:
    """A finished call counts if no newer attempt was running when it was stored; of equal keys the first that counts."""
    history, tasks = [], []
    newest = 0
    expected: dict[str, int] = {}
    for seq, (attempt, key, takes_over) in enumerate(steps, start=1):
        if takes_over:
            history.append(moved(seq, "running", attempt))
            newest = max(newest, attempt)
        else:
            tasks.append(finished(seq, key, attempt))
            if attempt >= newest:
                expected.setdefault(key, seq)
    calls = FinishedCalls(attempt_starts(history))
    calls.add(tasks[: len(tasks) // 2])
    calls.add(tasks[len(tasks) // 2 :])
    assert {key: call.result["inline"] for key, call in calls.by_key.items()} == expected


def test_only_completed_calls_count() -> None:
    """What failed, crashed or was only begun is run again."""
    calls = FinishedCalls([(1, 1)])
    calls.add([finished(2, "a", 1, "failed"), finished(3, "b", 1, "running"), finished(4, "c", 1, "crashed")])
    assert calls.by_key == {}


def test_retries_are_counted_from_the_log() -> None:
    """Whoever made them; and a retry from the start says where counting begins."""
    history = [
        moved(1, "running", 1), moved(2, "awaiting-retry", 1), moved(3, "retrying", 2), moved(4, "running", 3),
        moved(5, "scheduled", 3, from_start=True), moved(6, "running", 4),
    ]  # fmt: skip
    assert retries_made(history) == 1
    assert begins_anew(history) == 5
    assert begins_anew(history[:4]) == 0
    assert attempt_starts(history) == [(1, 1), (2, 3), (3, 4), (4, 6)]


def test_a_retry_counts_once_whoever_makes_it() -> None:
    """In the process that said it would be made, by one that took the run up, or as older versions told of it."""
    in_place = [moved(1, "running", 1), moved(2, "awaiting-retry", 1, retry=True), moved(3, "retrying", 2)]
    assert [retries_made(in_place[:length]) for length in (1, 2, 3)] == [0, 1, 1]
    taken_up = [*in_place[:2], moved(3, "running", 2), moved(4, "awaiting-retry", 2), moved(5, "retrying", 3)]
    assert retries_made(taken_up) == 2
    again = moved(4, "awaiting-retry", 2, retry=True)
    assert retries_made([*taken_up[:3], again, *taken_up[4:]]) == 2


def between(seq: int, key: str, attempt: int, word: str, tries: int) -> Recorded:
    """A transition of a task run on the way to its end."""
    data: dict[str, object] = {
        "flow_run": {"id": "r", "attempt": attempt}, "run": {"id": "t", "attempt": tries}, "call": key, "state": {},
    }  # fmt: skip
    if word == "awaiting-retry":
        data["retry_at"] = "2026-01-01T00:00:00.000000Z"
    raw = orjson.dumps(
        {"specversion": "1.0", "id": str(seq), "source": "/s", "type": f"task-run.{word}", "data": data}
    )
    return Recorded(seq, task_run_subject("r"), NOW, raw, {STATE_HEADER: word})


def test_a_call_between_two_tries_is_known_with_those_it_has_made() -> None:
    """Due when it said; at once if the next try had begun; no longer once it has ended. What a zombie says does not count."""
    calls = FinishedCalls([(1, 1), (2, 50)])
    told = [
        ("waits", "pending", 0), ("waits", "running", 1), ("waits", "awaiting-retry", 1), ("begun", "awaiting-retry", 2),
        ("begun", "retrying", 3), ("failed", "awaiting-retry", 1), ("failed", "retrying", 2), ("failed", "failed", 2),
        ("done", "awaiting-retry", 1), ("done", "retrying", 2),
    ]  # fmt: skip
    records = [between(seq, key, 1, word, tries) for seq, (key, word, tries) in enumerate(told, start=2)]
    calls.add(records)
    calls.add([finished(30, "done", 1), between(60, "waits", 1, "failed", 1)])
    assert calls.retrying == {"waits": RetryingCall("t", 1, NOW), "begun": RetryingCall("t", 2, None)}
    assert set(calls.by_key) == {"done"}
