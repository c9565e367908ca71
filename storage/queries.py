"""Questions to the read model. Read-only: opening it can neither make nor change the file.

Answers are as fresh as the projector; who has just written and wants to see it waits for
``Projector.caught_up(seq)`` first. Listings are newest first, in pages by opaque cursors; a page never repeats or
skips a row because others were written meanwhile.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiosqlite

from ..bus.event import format_time
from ..bus.subject import matches
from ..errors import UnknownName
from .asking import MAX_LIMIT, add_bounds, checked_limit, json_array, like_text, states_asked
from .progress import Progress
from .reading import Readers
from .row import (
    ActionRow,
    ArtifactRow,
    AutomationActivity,
    Counts,
    DeploymentActivity,
    EventFilter,
    EventRow,
    FailingAddressRow,
    FiringDetail,
    FiringRow,
    FlowRunDetail,
    FlowRunRow,
    NotificationRow,
    Page,
    RunFilter,
    ScheduleFireRow,
    TaskRunRow,
    WebhookDeliveryRow,
    WorkerRow,
    decode_cursor,
    encode_cursor,
    read_row,
)
from .statement import statements

__all__ = ["MAX_LIMIT", "Queries"]

_EVERY_RUN, _EVERY_EVENT = RunFilter(), EventFilter()
"""Most rows in one page."""
_CHAIN = 50
_READ = "read.sql"

T = TypeVar("T")


class Queries:
    """Read-only access to the read model at ``path``. Enter it to use it; connections are opened when first needed.

    Every method raises ``UnavailableError`` while the file does not exist (no projector ran yet), or cannot be read.

    Args:
        progress: of whoever folds. While what is folded is not whole, ``UnavailableError`` is raised rather than a wrong
            answer given; and a file that cannot be read is told there.
    """

    def __init__(self, path: Path, *, readers: int = 3, progress: Progress | None = None) -> None:
        self._readers = Readers(path, count=readers, progress=progress)
        self._sql = statements(_READ)

    async def __aenter__(self) -> Self:
        await self._readers.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._readers.__aexit__(exc_type, exc, tb)

    # --- flow runs ------------------------------------------------------------------------------------

    async def flow_runs(
        self, where: RunFilter = _EVERY_RUN, *, cursor: str | None = None, limit: int = 50
    ) -> Page[FlowRunRow]:
        """Return flow runs, the latest due first."""
        parts, values = ["flow_runs"], {"limit": checked_limit(limit) + 1}  # type: tuple[list[str], dict[str, Any]]
        if where.states:
            types, names = states_asked(where.states)
            parts.append("flow_runs.states" if names else "flow_runs.types")
            values |= {"types": json_array(types), "names": json_array(names)}
        for name in ("name", "flow", "deployment", "pool", "parent", "cause", "cause_event", "correlation"):
            if (value := getattr(where, name)) is not None:
                parts.append(f"flow_runs.{name}")
                values[name] = value
        if where.id_prefix is not None:
            parts.append("flow_runs.id_prefix")
            values |= _beginning(where.id_prefix)
        if where.tags:
            parts.append("flow_runs.tags")
            values["tags"] = json_array(where.tags)
        if where.top_level:
            parts.append("flow_runs.top_level")
        add_bounds(parts, values, "flow_runs", where.since, where.until)
        if where.text:
            parts.append("flow_runs.text")
            values["text"] = f"%{like_text(where.text)}%"
        if cursor is not None:
            values["after_at"], values["after_id"] = decode_cursor(cursor, str, str)
            parts.append("flow_runs.after")
        rows = await self._rows([*parts, "flow_runs.newest_first"], values)
        found = [read_row(FlowRunRow, row) for row in rows[:limit]]
        more = len(rows) > limit
        return Page(
            tuple(found), encode_cursor(rows[limit - 1]["scheduled_at"], found[-1].id) if more else None
        )

    async def flow_run(self, run_id: str) -> FlowRunDetail:
        """Return all there is about one run.

        Raises:
            UnknownName: there is no such run (any more).
        """
        async with self._readers.lend() as db:
            run = await self._one(db, FlowRunRow, ["flow_runs", "flow_runs.id"], {"id": run_id})
            if run is None:
                raise UnknownName("flow run", run_id)
            transitions = await self._all(
                db, EventRow, ["events", "events.subject", "events.oldest_first"],
                {"subject": f"flow-run/{run_id}", "limit": MAX_LIMIT},
            )  # fmt: skip
            last = await self._one(db, EventRow, ["events", "events.seq"], {"seq": run.seq})
            children = await self._all(
                db, FlowRunRow, ["flow_runs", "flow_runs.parent", "flow_runs.newest_first"],
                {"parent": run_id, "limit": MAX_LIMIT},
            )  # fmt: skip
            async with db.execute(self._sql["task_states"], {"flow_run": run_id}) as cursor:
                task_states = {str(state): int(n) for state, n in await cursor.fetchall()}
            begun_by = run.cause_event or run.causationid
            causes = await self._all(db, EventRow, ["cause_chain"], {"id": begun_by, "depth": _CHAIN})
        data = last.data if last is not None else None
        return FlowRunDetail(
            run=run, data=data if isinstance(data, dict) else {}, children=tuple(reversed(children)),
            transitions=tuple(e for e in transitions if e.type.startswith("flow-run.")),
            task_states=task_states, causes=tuple(causes),
        )  # fmt: skip

    async def task_runs(
        self, flow_run_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> Page[TaskRunRow]:
        """Return the task runs of a flow run in the order they were called, attempt by attempt; none for a run that does not exist."""
        after_id = decode_cursor(cursor, str)[0] if cursor is not None else ""
        rows = await self._rows(
            ["task_runs"],
            {
                "flow_run": flow_run_id, "after_place": after_id[-12:], "after_id": after_id,
                "limit": checked_limit(limit) + 1,
            },
        )  # fmt: skip
        found = [read_row(TaskRunRow, row) for row in rows[:limit]]
        more = len(rows) > limit
        return Page(tuple(found), encode_cursor(found[-1].id) if more else None)

    async def tasks_alone(
        self,
        *,
        states: Sequence[str] = (),
        task: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[TaskRunRow]:
        """Return task runs outside any flow (background tasks, mostly), those that changed last first.

        Args:
            states: types, names or event words, any of them. task: the task's name.
        """
        parts, values = ["tasks_alone"], {"limit": checked_limit(limit) + 1}  # type: tuple[list[str], dict[str, Any]]
        if states:
            types, names = states_asked(states)
            parts.append("tasks_alone.states")
            values |= {"types": json_array(types), "names": json_array(names)}
        if task is not None:
            parts.append("tasks_alone.task")
            values["task"] = task
        if cursor is not None:
            [values["before"]] = decode_cursor(cursor, int)
            parts.append("tasks_alone.before")
        rows = await self._rows([*parts, "tasks_alone.newest_first"], values)
        found = [read_row(TaskRunRow, row) for row in rows[:limit]]
        return Page(tuple(found), encode_cursor(found[-1].seq) if len(rows) > limit else None)

    async def task_run(self, task_run_id: str) -> TaskRunRow:
        """Return one task run.

        Raises:
            UnknownName: there is no such task run (any more).
        """
        async with self._readers.lend() as db:
            found = await self._one(db, TaskRunRow, ["task_run"], {"id": task_run_id})
        if found is None:
            raise UnknownName("task run", task_run_id)
        return found

    # --- events ---------------------------------------------------------------------------------------

    async def events(
        self,
        where: EventFilter = _EVERY_EVENT,
        *,
        cursor: str | None = None,
        limit: int = 50,
        oldest_first: bool = False,
    ) -> Page[EventRow]:
        """Return events in the order of the log: the newest first, or the oldest."""
        checked_limit(limit)
        parts, values = ["events"], {"limit": limit + 1}  # type: tuple[list[str], dict[str, Any]]
        for name in ("source", "correlation", "causation", "after_seq", "before_seq"):
            if (value := getattr(where, name)) is not None:
                parts.append(f"events.{name}")
                values[name] = value
        if where.id_prefix is not None:
            parts.append("events.id_prefix")
            values |= _beginning(where.id_prefix)
        add_bounds(parts, values, "events", where.since, where.until)
        if where.subject is not None:
            parts.append("events.subject_prefix" if where.subject.endswith("*") else "events.subject")
            stem = where.subject.rstrip("*")
            # U+10FFFF sorts behind every character there can be.
            values |= {"subject": where.subject, "subject_from": stem, "subject_to": stem + "\U0010ffff"}
        if cursor is not None:
            name = "after_seq" if oldest_first else "before_seq"
            [seq] = decode_cursor(cursor, int)
            if name in values:
                seq = max(seq, values[name]) if oldest_first else min(seq, values[name])
            else:
                parts.append(f"events.{name}")
            values[name] = seq
        tail = "events.oldest_first" if oldest_first else "events.newest_first"
        async with self._readers.lend() as db:
            rows = await self._of_types(db, where, parts, values, tail)
        found = rows[:limit]
        return Page(tuple(found), encode_cursor(found[-1].seq) if len(rows) > limit else None)

    async def _of_types(
        self,
        db: aiosqlite.Connection,
        where: EventFilter,
        parts: list[str],
        values: dict[str, Any],
        tail: str,
    ) -> list[EventRow]:
        if not where.types:
            return await self._all(db, EventRow, [*parts, tail], values)
        async with db.execute(self._sql["event_types"]) as found:
            types = [str(t) for [t] in await found.fetchall() if any(matches(p, str(t)) for p in where.types)]
        if where.subject is not None or where.correlation is not None or where.causation is not None:
            # These pick few rows by an index of their own.
            return await self._all(
                db, EventRow, [*parts, "events.types", tail], values | {"types": json_array(types)}
            )
        # One walk per type in the index, merged: SQLite by itself would sort all rows of all types for one page.
        walks = [
            await self._all(db, EventRow, [*parts, "events.type", tail], values | {"type": t}) for t in types
        ]
        newest_first = tail == "events.newest_first"
        merged = heapq.merge(*walks, key=lambda e: e.seq, reverse=newest_first)
        return [event for event, _ in zip(merged, range(values["limit"]), strict=False)]

    async def event(self, event_id: str) -> EventRow:
        """Return one event by its id.

        Raises:
            UnknownName: there is no such event (any more).
        """
        async with self._readers.lend() as db:
            return await self._event(db, event_id)

    async def _event(self, db: aiosqlite.Connection, event_id: str) -> EventRow:
        found = await self._one(db, EventRow, ["events", "events.id"], {"id": event_id})
        if found is None:
            raise UnknownName("event", event_id)
        return found

    async def causes(self, event_id: str) -> tuple[EventRow, ...]:
        """Return the event and what led to it, nearest first, at most 50; empty when it is not known."""
        async with self._readers.lend() as db:
            return tuple(await self._all(db, EventRow, ["cause_chain"], {"id": event_id, "depth": _CHAIN}))

    async def led_to(self, event_id: str, *, limit: int = 200) -> tuple[EventRow, ...]:
        """Return the events this one led to directly, oldest first."""
        page = await self.events(EventFilter(causation=event_id), limit=limit, oldest_first=True)
        return page.items

    # --- rules, actions, messages ---------------------------------------------------------------------

    async def firings(
        self,
        automation: str | None = None,
        *,
        decision: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[FiringRow]:
        """Return decisions of rules, newest first; ``decision`` is triggered, resolved or suppressed."""
        return await self._listing(
            FiringRow, "firings", {"automation": automation, "decision": decision}, cursor, limit
        )

    async def firing(self, firing_id: str) -> FiringDetail:
        """Return a decision with what led to it and what it led to.

        Raises:
            UnknownName: there is no such decision (any more).
        """
        async with self._readers.lend() as db:
            firing = await self._one(db, FiringRow, ["firings", "firings.id"], {"id": firing_id})
            if firing is None:
                raise UnknownName("firing", firing_id)
            event = await self._event(db, firing_id)
            chain = await self._all(db, EventRow, ["cause_chain"], {"id": firing_id, "depth": _CHAIN})
            actions = await self._all(
                db, ActionRow, ["actions", "actions.firing", "newest_first"],
                {"firing": firing_id, "limit": MAX_LIMIT},
            )  # fmt: skip
            runs = await self._all(
                db, FlowRunRow, ["flow_runs", "flow_runs.cause_event", "flow_runs.newest_first"],
                {"cause_event": firing_id, "limit": MAX_LIMIT},
            )  # fmt: skip
        return FiringDetail(
            firing=firing, event=event, causes=tuple(chain[1:]), actions=tuple(reversed(actions)),
            runs=tuple(reversed(runs)),
        )  # fmt: skip

    async def actions(
        self,
        *,
        state: str | None = None,
        automation: str | None = None,
        firing: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[ActionRow]:
        """Return the latest outcomes of actions, newest first."""
        asked = {"state": state, "automation": automation, "firing": firing}
        return await self._listing(ActionRow, "actions", asked, cursor, limit)

    async def dead_letters(
        self, *, automation: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page[ActionRow]:
        """Return the actions (of one rule) that were given up and wait for a person, newest first."""
        return await self.actions(state="dead-lettered", automation=automation, cursor=cursor, limit=limit)

    async def action(self, key: str) -> tuple[ActionRow, EventRow]:
        """Return an action's latest outcome and the event that says so.

        Raises:
            UnknownName: there is no such action (any more).
        """
        async with self._readers.lend() as db:
            action = await self._one(db, ActionRow, ["actions", "actions.key"], {"key": key})
            if action is None:
                raise UnknownName("action", key)
            [event] = await self._all(db, EventRow, ["events", "events.seq"], {"seq": action.seq})
        return action, event

    async def notifications(
        self,
        *,
        channel: str | None = None,
        outcome: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[NotificationRow]:
        """Return what became of messages to people, newest first."""
        return await self._listing(
            NotificationRow, "notifications", {"channel": channel, "outcome": outcome}, cursor, limit
        )

    async def failing_channels(self, *, since: datetime) -> list[FailingAddressRow]:
        """Return the addresses of channels that have taken nothing since their latest failure, from ``since`` on."""
        async with self._readers.lend() as db:
            async with db.execute(self._sql["seq_since"], {"since": format_time(since)}) as cursor:
                [[seq]] = await cursor.fetchall()
            return await self._all(db, FailingAddressRow, ["failing_channels"], {"seq": seq})

    async def webhook_deliveries(
        self,
        webhook: str | None = None,
        *,
        outcome: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[WebhookDeliveryRow]:
        """Return requests at webhooks, newest first."""
        return await self._listing(
            WebhookDeliveryRow, "webhook_deliveries", {"webhook": webhook, "outcome": outcome}, cursor, limit
        )

    async def artifacts(
        self,
        *,
        type: str | None = None,
        flow_run: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[ArtifactRow]:
        """Return what runs show people, each as it is now, the latest first."""
        return await self._listing(
            ArtifactRow, "artifacts", {"type": type, "flow_run": flow_run}, cursor, limit
        )

    async def artifact(self, key_or_id: str) -> tuple[ArtifactRow, EventRow]:
        """Return an artifact as it is now, and the event that has its content.

        Raises:
            UnknownName: there is no such artifact (any more).
        """
        async with self._readers.lend() as db:
            found = await self._one(db, ArtifactRow, ["artifacts", "artifacts.id"], {"id": key_or_id})
            if found is None:
                raise UnknownName("artifact", key_or_id)
            [event] = await self._all(db, EventRow, ["events", "events.seq"], {"seq": found.seq})
        return found, event

    async def schedule_fires(
        self, deployment: str | None = None, *, cursor: str | None = None, limit: int = 50
    ) -> Page[ScheduleFireRow]:
        """Return schedules that came due, newest first."""
        return await self._listing(
            ScheduleFireRow, "schedule_fires", {"deployment": deployment}, cursor, limit
        )

    async def _listing(
        self, cls: type[T], table: str, asked: Mapping[str, str | None], cursor: str | None, limit: int
    ) -> Page[T]:
        parts = [table, *(f"{table}.{name}" for name, value in asked.items() if value is not None)]
        values: dict[str, Any] = {**asked, "limit": checked_limit(limit) + 1}
        if cursor is not None:
            [values["before"]] = decode_cursor(cursor, int)
            parts.append("before")
        rows = await self._rows([*parts, "newest_first"], values)
        found = tuple(read_row(cls, row) for row in rows[:limit])
        return Page(found, encode_cursor(rows[limit - 1]["seq"]) if len(rows) > limit else None)

    # --- activity -------------------------------------------------------------------------------------

    async def workers(self) -> tuple[WorkerRow, ...]:
        """Return the latest word of every worker, the working ones first."""
        return tuple(read_row(WorkerRow, row) for row in await self._rows(["workers"], {}))

    async def deployments(self, *, since: datetime) -> dict[str, DeploymentActivity]:
        """Return what each deployment that ever ran has been doing, by name; ``states`` counts runs due ``since``."""
        async with self._readers.lend() as db:
            last = await self._all(db, FlowRunRow, ["deployment_last"], {})
            next_ = await self._all(db, FlowRunRow, ["deployment_next"], {})
            async with db.execute(self._sql["deployment_states"], {"since": format_time(since)}) as cursor:
                counted = await cursor.fetchall()
        by_last = {run.deployment: run for run in last if run.deployment}
        by_next = {run.deployment: run for run in next_ if run.deployment}
        states: dict[str, dict[str, int]] = {}
        for name, state, n in counted:
            states.setdefault(str(name), {})[str(state)] = int(n)
        return {
            name: DeploymentActivity(name, by_last.get(name), by_next.get(name), states.get(name, {}))
            for name in sorted({*by_last, *by_next})
        }

    async def automations(
        self, names: Iterable[str], *, since: datetime, shadowed: Iterable[str] = ()
    ) -> dict[str, AutomationActivity]:
        """Return what those of some rules that ever decided anything have been doing, by name.

        Args:
            shadowed: those on trial now, of which what they decided on trial is counted; of the others the rest.
        """
        values = {
            "names": json_array(names),
            "since": format_time(since),
            "shadowed": json_array(shadowed),
        }
        rows = await self._rows(["automation_activity"], values)
        return {row["automation"]: read_row(AutomationActivity, row) for row in rows}

    async def counts(self, *, since: datetime) -> Counts:
        """Return the status page in numbers. Events and task runs are counted by whole hours, that of ``since``
        included, so that the answer costs the same however many there are."""
        at = format_time(since)
        async with self._readers.lend() as db:
            async with db.execute(self._sql["seq_since"], {"since": at}) as cursor:
                [[seq]] = await cursor.fetchall()
            async with db.execute(self._sql["count_flow_runs"], {"since": at}) as cursor:
                runs = {str(state): int(n) for state, n in await cursor.fetchall()}
            async with db.execute(self._sql["count_recent"], {"seq": seq, "since": at}) as cursor:
                found = {str(name): int(n) for name, n in await cursor.fetchall()}
            async with db.execute(self._sql["reached"]) as cursor:
                [[_, reached, _]] = await cursor.fetchall()

        def group(name: str) -> dict[str, int]:
            return {key[len(name) + 1 :]: n for key, n in found.items() if key.startswith(f"{name}.")}

        firings = group("firings")
        return Counts(
            flow_runs=runs, task_runs=found["task_runs"], events=found["events"],
            triggered=firings.get("triggered", 0), suppressed=firings.get("suppressed", 0),
            actions=group("actions"), dead_letters=found["dead_letters"], notifications=group("notifications"),
            webhooks=group("webhooks"), workers=group("workers"), unreadable=found["unreadable"], seq=int(reached),
        )  # fmt: skip

    async def event_hours(self, *, since: datetime) -> list[tuple[datetime, str, int]]:
        """Return (beginning of the hour, event type, how many were recorded), from the hour of ``since`` on."""
        rows = await self._rows(["event_hours"], {"since": format_time(since)})
        return [(datetime.fromisoformat(f"{row['hour']}:00+00:00"), row["type"], row["n"]) for row in rows]

    async def reached(self) -> int:
        """Return up to which sequence the log is folded."""
        [row] = await self._rows(["reached"], {})
        return int(row["seq"])

    # --- asking ---------------------------------------------------------------------------------------

    async def _rows(self, parts: Iterable[str], values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        async with self._readers.lend() as db, db.execute(self._put_together(parts), values) as cursor:
            return list(await cursor.fetchall())  # type: ignore[arg-type]  # Row is a mapping in all but name

    async def _all(
        self, db: aiosqlite.Connection, cls: type[T], parts: Iterable[str], values: Mapping[str, Any]
    ) -> list[T]:
        async with db.execute(self._put_together(parts), values) as cursor:
            return [read_row(cls, row) for row in await cursor.fetchall()]  # type: ignore[arg-type]

    async def _one(
        self, db: aiosqlite.Connection, cls: type[T], parts: Iterable[str], values: Mapping[str, Any]
    ) -> T | None:
        found = await self._all(db, cls, parts, values)
        return found[0] if found else None

    def _put_together(self, parts: Iterable[str]) -> str:
        return "\n".join(self._sql[part] for part in parts)


def _beginning(stem: str) -> dict[str, str]:
    # U+10FFFF sorts behind every character there can be.
    return {"id_from": stem, "id_to": stem + "\U0010ffff"}
