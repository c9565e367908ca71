"""The fold: events to rows, whatever the cut into batches and whatever stands in the log."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from hark.bus.event import Event, Recorded
from hark.storage.fold import KEYED, fold
from hark.storage.statement import schema, statements
from hark.storage.store import Store, digest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def recorded(event: Event | bytes, seq: int = 1) -> Recorded:
    raw = event if isinstance(event, bytes) else event.to_json()
    return Recorded(seq, "hark.ev.x", AT, raw)


async def folded(path: Path, log: list[Recorded], cuts: list[int]) -> str:
    """Fold ``log`` cut at ``cuts`` into ``path`` and return the digest."""
    async with Store(path, stream="s") as store:
        for a, b in pairwise([0, *sorted(cuts), len(log)]):
            await store.commit(fold(log[a:b]))
    return await digest(path)


def test_a_user_event_becomes_one_row_with_its_body() -> None:
    """An event of a user's own type is kept whole, with what one can ask for beside it."""
    event = Event(
        type="order.paid", source="/shop", id="e1", subject="order/1", time=AT, data={"n": 1}, causaldepth=2
    )
    changes = fold([recorded(event, 7)])
    [row] = changes.listed["events"]
    assert row == (
        7, "e1", "order.paid", "/shop", "order/1", "2026-01-02T03:04:05.000678Z", "2026-01-02T03:04:05.000678Z",
        None, None, 2, event.to_json(),
    )  # fmt: skip
    assert changes.reached == 7
    assert not any(changes.keyed.values())


def test_times_of_other_writers_are_brought_to_one_form() -> None:
    """Text order is time order whatever offset and precision an event came with; no time means the broker's."""
    raws = [
        b'{"type":"a","id":"1","source":"/x","time":"2026-01-02T05:04:05+02:00"}',
        b'{"type":"a","id":"2","source":"/x"}',
        b'{"type":"a","id":"3","source":"/x","time":"yesterday"}',
    ]
    times = [row[5] for row in fold([recorded(raw, i) for i, raw in enumerate(raws, 1)]).listed["events"]]
    assert times == [
        "2026-01-02T03:04:05.000000Z",
        "2026-01-02T03:04:05.000678Z",
        "2026-01-02T03:04:05.000678Z",
    ]


def test_what_cannot_be_read_is_kept_with_the_reason(
    make_history: Callable[[int, int], list[Recorded]],
) -> None:
    """A message that is no event, or an event without what its type promises, never stops the fold."""
    raws = [
        b"", b"{", b"[]", b'{"id":"1"}', b'{"type":"a","id":"","source":"/x"}',
        b'{"type":"flow-run.failed","id":"1","source":"/x"}',
        b'{"type":"flow-run.failed","id":"1","source":"/x","data":{"run":{"id":"r"},"flow":{"name":"f"},"state":{"type":"BAD"}}}',
        b'{"type":"task-run.failed","id":"1","source":"/x","data":[]}',
    ]  # fmt: skip
    changes = fold([recorded(raw, i) for i, raw in enumerate(raws, 1)])
    assert [row[0] for row in changes.listed["unreadable"]] == list(range(1, 9))
    assert all(row[2] for row in changes.listed["unreadable"])
    assert not any(changes.keyed.values())
    assert fold(make_history(400, 3)).listed["unreadable"]


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["run", "state", "flow", "task", "flow_run", "id", "name", "type", "key", "tags", "action",
                         "automation", "deployment", "attempt", "duration_s", "started_at", "cause", "webhook"]),
        inner, max_size=5),
    max_leaves=25,
), st.sampled_from(["flow-run.failed", "task-run.running", "automation.triggered", "action.failed", "notification.sent",
                    "webhook.received", "schedule.fired", "worker.lost"]))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_data_whatever_breaks_the_fold_or_the_schema(data: object, type_: str) -> None:
    """Whatever JSON an event of a known type carries, its batch is folded and SQLite takes the rows."""
    import sqlite3

    import orjson

    try:
        raw = orjson.dumps({"type": type_, "id": "i", "source": "/x", "data": data})
    except TypeError:  # integers beyond 64 bits cannot be in the log
        return
    db = sqlite3.connect(":memory:")
    try:
        for statement in schema():
            db.execute(statement)
        for table, rows in fold([recorded(raw)]).rows():
            db.executemany(statements("write.sql")[table], rows)
    finally:
        db.close()


@given(seed=st.integers(0, 50), cuts=st.lists(st.integers(0, 300), max_size=12))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_into_batches_gives_the_same_rows(
    seed: int, cuts: list[int], make_history: Callable[[int, int], list[Recorded]]
) -> None:
    """The rows depend on the log alone, never on how it was cut into batches."""
    log = make_history(300, seed)

    async def both() -> tuple[str, str]:
        with TemporaryDirectory() as folder:
            whole = await folded(Path(folder, "a.db"), log, [])
            return whole, await folded(Path(folder, "b.db"), log, cuts)

    whole, cut = anyio.run(both)
    assert whole == cut


@given(seed=st.integers(0, 50), first=st.integers(1, 300))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pruning_gives_the_rows_of_what_is_left(
    seed: int, first: int, make_history: Callable[[int, int], list[Recorded]]
) -> None:
    """After the beginning has left the log, the pruned file and one folded anew from the rest are the same."""
    # Over several hours, because events are counted by the hour.
    log = [
        Recorded(m.seq, m.subject, AT + timedelta(seconds=40 * m.seq), m.raw, m.headers)
        for m in make_history(300, seed)
    ]

    async def both() -> tuple[str, str]:
        with TemporaryDirectory() as folder:
            pruned, anew = Path(folder, "a.db"), Path(folder, "b.db")
            async with Store(pruned, stream="s") as store:
                await store.commit(fold(log))
                await store.prune(first)
            return await digest(pruned), await folded(anew, log[first - 1 :], [])

    assert len(set(anyio.run(both))) == 1


def test_of_many_transitions_of_a_run_only_the_last_is_written(
    make_history: Callable[[int, int], list[Recorded]],
) -> None:
    """A batch upserts each run once, so a thousand task events are some three hundred writes."""
    log = make_history(1000, 2)
    changes = fold(log)
    tasks = [m for m in log if m.subject.startswith("hark.ev.task-run.")]
    assert len(changes.keyed["task_runs"]) < len(tasks) / 2
    assert {*KEYED} == {*changes.keyed}
