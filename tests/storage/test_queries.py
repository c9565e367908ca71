"""Questions: filters, pages, details, and what one gets for asking wrongly."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from hark.bus import Event, Recorded
from hark.engine.runs.task_run import IdSource
from hark.errors import DefinitionError, UnavailableError, UnknownName
from hark.storage import EventFilter, FlowRunRow, Page, Queries, RunFilter
from hark.storage.fold import fold
from hark.storage.statement import schema, statements
from hark.storage.store import Store
from hark.vocabulary import JsonObject

T = TypeVar("T")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


async def every_page(ask: Callable[[str | None], Awaitable[Page[T]]]) -> list[T]:
    """Turn pages to the end."""
    page = await ask(None)
    found = list(page.items)
    while page.next_cursor is not None:
        page = await ask(page.next_cursor)
        assert page.items
        found += page.items
    return found


async def test_pages_hold_every_run_once_and_in_order(model: Queries) -> None:
    """Turning pages of any size gives every run exactly once, the latest due first."""
    whole = (await model.flow_runs(limit=1000)).items
    assert len(whole) > 40
    assert list(whole) == sorted(whole, key=lambda r: (r.scheduled_at, r.id), reverse=True)
    for size in (1, 7, len(whole) - 1, len(whole)):
        assert tuple(await every_page(lambda c, n=size: model.flow_runs(cursor=c, limit=n))) == whole  # type: ignore[misc]


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        (RunFilter(states=("COMPLETED",)), lambda r: r.state_type == "COMPLETED"),
        (RunFilter(states=("failed", "running")), lambda r: r.state_type in ("FAILED", "RUNNING")),
        (RunFilter(states=("timed-out",)), lambda r: r.state_name == "TimedOut"),
        (RunFilter(states=("TimedOut", "COMPLETED")), lambda r: r.state_name in ("TimedOut", "Completed")),
        (RunFilter(flow="flow-1"), lambda r: r.flow_name == "flow-1"),
        (RunFilter(deployment="dep-3"), lambda r: r.deployment == "dep-3"),
        (RunFilter(tags=("slow",)), lambda r: "slow" in r.tags),
        (RunFilter(tags=("slow", "dev")), lambda r: "slow" in r.tags),
        (RunFilter(tags=("slow", "prod")), lambda r: False),
        (RunFilter(text="BAD 1"), lambda r: "bad 1" in (r.state_message or "")),
        (RunFilter(text="%"), lambda r: False),
        (RunFilter(cause="on-order"), lambda r: True),
        (RunFilter(top_level=True, pool="default"), lambda r: True),
        (RunFilter(since=BEGIN + timedelta(seconds=400)), lambda r: r.scheduled_at >= BEGIN + timedelta(seconds=400)),
        (RunFilter(until=BEGIN + timedelta(seconds=400), states=("FAILED",)),
         lambda r: r.scheduled_at < BEGIN + timedelta(seconds=400) and r.state_type == "FAILED"),
    ],
    ids=lambda value: str(value) if isinstance(value, RunFilter) else "fits",
)  # fmt: skip
async def test_a_filter_gives_the_runs_that_fit(
    model: Queries, where: RunFilter, fits: Callable[[FlowRunRow], bool]
) -> None:
    """Each filter gives exactly the runs a reader of all of them would pick."""
    every = (await model.flow_runs(limit=1000)).items
    assert await every_page(lambda c: model.flow_runs(where, cursor=c, limit=9)) == [
        r for r in every if fits(r)
    ]


async def test_a_run_is_told_with_its_states_tasks_and_causes(model: Queries) -> None:
    """The detail has parameters, every state in order, and the way back from rule to the event that began it."""
    [run] = (await model.flow_runs(RunFilter(states=("COMPLETED",)), limit=1)).items
    detail = await model.flow_run(run.id)
    assert detail.run == run
    assert detail.data["parameters"]
    assert [e.type for e in detail.transitions] == [
        f"flow-run.{w}" for w in ("scheduled", "pending", "running", "completed")
    ]
    assert detail.causes[0].type == "automation.triggered"
    assert detail.causes[-1].subject is not None
    assert detail.causes[-1].subject.startswith("order/")
    tasks = await every_page(lambda c: model.task_runs(run.id, cursor=c, limit=2))
    assert [t.position for t in tasks] == list(range(len(tasks)))
    assert sum(detail.task_states.values()) == len(tasks)
    if tasks:
        assert await model.task_run(tasks[0].id) == tasks[0]


async def test_events_are_found_by_pattern_subject_time_and_story(model: Queries) -> None:
    """Every way of asking for events gives those a reader of all of them would pick, in both orders."""
    every = await every_page(lambda c: model.events(cursor=c, limit=100))
    assert [e.seq for e in every] == sorted((e.seq for e in every), reverse=True)
    cases = [
        (EventFilter(types=("order.*",)), lambda e: e.type.startswith("order.")),
        (EventFilter(types=("flow-run.>", "github.push")), lambda e: e.type.startswith(("flow-run.", "github.push"))),
        (EventFilter(types=("nothing.here",)), lambda e: False),
        (EventFilter(subject="order/3"), lambda e: e.subject == "order/3"),
        (EventFilter(subject="order/*", types=("order.paid",)), lambda e: e.type == "order.paid"),
        (EventFilter(source="/shop"), lambda e: e.source == "/shop"),
        (EventFilter(correlation="order-5"), lambda e: e.correlationid == "order-5"),
        (EventFilter(causation="order-5"), lambda e: e.causationid == "order-5"),
        (EventFilter(since=BEGIN + timedelta(seconds=700)), lambda e: e.seq >= 700),
        (EventFilter(until=BEGIN + timedelta(seconds=700), types=("order.>",)), lambda e: e.seq < 700 and e.type[:6] == "order."),
        (EventFilter(after_seq=100, before_seq=200), lambda e: 100 < e.seq < 200),
        (EventFilter(since=BEGIN + timedelta(days=9)), lambda e: False),
    ]  # fmt: skip
    for where, fits in cases:
        expected = [e for e in every if bool(fits(e))]  # type: ignore[no-untyped-call]
        assert await every_page(lambda c, w=where: model.events(w, cursor=c, limit=13)) == expected, where  # type: ignore[misc]
        forward = await every_page(lambda c, w=where: model.events(w, cursor=c, limit=13, oldest_first=True))  # type: ignore[misc]
        assert forward == expected[::-1], where
    one = await model.event("order-5")
    assert one.to_dict()["sequence"] == one.seq
    assert one.data == {"total": 5}


async def test_a_firing_is_told_with_what_led_to_it_and_what_came_of_it(model: Queries) -> None:
    """From a decision one sees the event behind it, its actions and the runs it asked for."""
    firing = (await model.firings("on-order", decision="triggered")).items[-1]
    detail = await model.firing(firing.id)
    assert detail.causes[0].source == "/shop"
    assert [a.firing for a in detail.actions] == [firing.id]
    assert [r.cause_event for r in detail.runs] == [firing.id]
    assert {e.type for e in await model.led_to(firing.id)} >= {"flow-run.scheduled", "action.failed"}
    assert [e.id for e in await model.causes(firing.id)] == [firing.id, detail.causes[0].id]


async def test_dead_letters_are_the_actions_given_up(model: Queries) -> None:
    """Dead letters are those whose latest outcome says so; the others are not among them."""
    dead = await every_page(lambda c: model.dead_letters(cursor=c, limit=2))
    assert dead
    assert {a.state for a in dead} == {"dead-lettered"}
    action, event = await model.action(dead[0].key)
    assert action == dead[0]
    assert event.type == "action.dead-lettered"
    assert len(dead) + len((await model.actions(state="executed", limit=1000)).items) + len(
        (await model.actions(state="failed", limit=1000)).items
    ) == len((await model.actions(limit=1000)).items)


async def test_the_status_page_counts_what_there_is(model: Queries) -> None:
    """Counts agree with the listings; what is not finished counts however old."""
    counts = await model.counts(since=BEGIN)
    runs = (await model.flow_runs(limit=1000)).items
    assert sum(counts.flow_runs.values()) == len(runs)
    assert counts.seq == await model.reached() == 1500
    assert counts.dead_letters == len((await model.dead_letters(limit=1000)).items)
    assert counts.events + counts.unreadable >= 1500
    hours = await model.event_hours(since=BEGIN)
    assert sum(n for _, _, n in hours) == counts.events
    assert hours[0][0] == BEGIN
    later = await model.counts(since=BEGIN + timedelta(days=1))
    assert (later.events, later.triggered) == (0, 0)
    assert later.flow_runs.get("RUNNING") == counts.flow_runs.get("RUNNING")
    assert counts.workers == {"started": 2}


async def test_activity_tells_the_last_run_of_each_deployment(model: Queries) -> None:
    """Per deployment the latest run that began and how its runs went; per rule what it decided."""
    found = await model.deployments(since=BEGIN)
    assert set(found) == {"dep-1", "dep-3"}
    runs = [
        r
        for r in (await model.flow_runs(RunFilter(deployment="dep-1"), limit=1000)).items
        if r.state_type != "SCHEDULED"
    ]
    assert found["dep-1"].last in [r for r in runs if r.scheduled_at == runs[0].scheduled_at]
    rules = await model.automations(["on-order"], since=BEGIN)
    assert await model.automations(["no-such"], since=BEGIN) == {}
    assert rules["on-order"].triggered == len((await model.firings(limit=1000)).items)
    assert rules["on-order"].last_triggered_at is not None
    # On trial it has decided nothing, and what it did before is not what it would do.
    tried = (await model.automations(["on-order"], since=BEGIN, shadowed=["on-order"]))["on-order"]
    assert (tried.triggered, tried.last_triggered_at, tried.dead_letters) == (
        0,
        None,
        rules["on-order"].dead_letters,
    )
    assert [w.state for w in await model.workers()] == ["started", "started"]
    assert (await model.schedule_fires("dep-1")).items[0].scheduled_at == datetime(2026, 1, 1, 5, tzinfo=UTC)
    assert {n.kind for n in (await model.notifications(channel="oncall", outcome="sent")).items} == {"mailto"}
    rejected = (await model.webhook_deliveries("github", outcome="rejected")).items[0]
    assert (rejected.status, rejected.reason) == (401, "signature")
    assert {d.type for d in (await model.webhook_deliveries("github", outcome="received")).items} == {
        "webhook.received"
    }
    assert {(w.name, w.pool) for w in await model.workers()} == {("w0", "default"), ("w1", "default")}
    assert [f.shadow for f in (await model.firings(limit=1)).items] == [False]


async def test_wrong_questions_are_told_apart(model: Queries, tmp_path: Path) -> None:
    """A foreign cursor, a limit out of bounds, unknown names, no file yet: each says what is wrong."""
    for cursor in ("x", "", "!!", "WzFd", "WzEsMl0", "eyJhIjoxfQ"):
        with pytest.raises(DefinitionError, match="not a cursor"):
            await model.flow_runs(cursor=cursor)
    for limit in (0, -1, 1001):
        with pytest.raises(DefinitionError, match="limit"):
            await model.events(limit=limit)
    for ask in (model.flow_run, model.event, model.firing, model.action, model.task_run):
        with pytest.raises(UnknownName):
            await ask("nope")
    async with Queries(tmp_path / "none.db") as none:
        with pytest.raises(UnavailableError):
            await none.reached()
    assert not (tmp_path / "none.db").exists()


async def test_hostile_texts_are_only_texts(model: Queries) -> None:
    """Every value is a parameter: quotes and SQL in filters find nothing and break nothing."""
    nasty = "'; DROP TABLE events; --"
    for where in (
        RunFilter(flow=nasty),
        RunFilter(text=nasty),
        RunFilter(tags=(nasty,)),
        RunFilter(states=(nasty,)),
    ):
        assert (await model.flow_runs(where)).items == ()
    assert (await model.events(EventFilter(types=(nasty,), subject=nasty, source=nasty))).items == ()
    assert (await model.events(limit=1)).items


def test_every_statement_is_one_sqlite_can_run(tmp_path: Path) -> None:
    """Each named statement prepares against the schema (fragments with their heads)."""
    db = sqlite3.connect(":memory:")
    for statement in schema():
        db.execute(statement)
    for file in ("read.sql", "write.sql"):
        named = statements(file)
        for name, sql in named.items():
            head = named.get(name.partition(".")[0], "") if "." in name else ""
            if not head and sql.startswith(("AND", "ORDER")):
                head = named["firings"]
            db.execute(f"EXPLAIN {head} {sql}", _anything(f"{head} {sql}"))
    db.close()


def _plan(name: str, **values: object) -> list[str]:
    db = sqlite3.connect(":memory:")
    try:
        for statement in schema():
            db.execute(statement)
        sql = statements("read.sql")[name]
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    finally:
        db.close()


def test_of_one_rule_only_its_own_firings_are_looked_at() -> None:
    """What the others did is not aggregated along: each name is looked up in the index."""
    plan = _plan("automation_activity", names='["a"]', since="", shadowed="[]")
    assert any(
        step.startswith("SEARCH firings USING INDEX firings_automation (automation=?)") for step in plan
    )
    assert not any(step.startswith("SCAN firings") for step in plan)


async def test_task_runs_are_listed_as_they_were_called(tmp_path: Path) -> None:
    """Equal calls among the others, and those of a later attempt behind those of the one before; whatever ended first."""
    ids = IdSource(1), IdSource(2)
    calls = [(ids[attempt].draw(), index) for attempt, index in ((0, 0), (0, 0), (0, 1), (1, 0), (1, 2))]
    records = [
        Recorded(seq, "hark.ev.task-run.r", BEGIN, _task_run(id_, index))
        for seq, (id_, index) in enumerate(reversed(calls), start=1)
    ]
    async with Store(tmp_path / "x.db", stream="HARK@test") as store:
        await store.commit(fold(records))
        async with Queries(tmp_path / "x.db") as queries:
            found = await every_page(lambda cursor: queries.task_runs("r", cursor=cursor, limit=2))
    assert [(one.id, one.position) for one in found] == calls


def _task_run(id_: str, index: int) -> bytes:
    data: JsonObject = {
        "flow_run": {"id": "r"}, "task": {"name": "t"}, "run": {"id": id_, "name": "t", "attempt": 1, "index": index},
        "state": {"type": "COMPLETED", "name": "Completed"},
    }  # fmt: skip
    return Event(type="task-run.completed", source="/t", subject=f"task-run/{id_}", data=data).to_json()


def test_a_page_of_very_many_task_runs_is_read_from_where_it_begins() -> None:
    """They are not put in order anew for each page."""
    plan = _plan("task_runs", flow_run="a", after_place="b", after_id="ab", limit=9)
    assert "SEARCH task_runs USING INDEX task_runs_flow_run (flow_run=? AND (place,id)>(?,?))" in plan
    assert not any("TEMP B-TREE" in step for step in plan)


def _anything(sql: str) -> dict[str, object] | list[object]:
    import re

    names = set(re.findall(r"(?<!:):([a-z_]+)", sql))
    lists = {"types", "names", "tags"}
    if names:
        return {n: "[]" if n in lists else 1 for n in names}
    return [1] * sql.count("?")
