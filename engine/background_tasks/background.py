"""Task runs of ``task.delay``: what the log says of them, and asking for one.

Each is a run of its own with a subject of its own in the log, so that its turning points (asked for, claimed, ended) are
guarded: of two workers that have it in hands, one ends it. The work item is stored first and carries the run's first event;
whoever finds that event missing, because the process that asked died in between, stores it. So a run that was accepted is
neither lost nor listed without anybody to serve it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.event import Event, Recorded, parse_time, readable
from ...bus.subject import background_subject, waits_subject
from ...errors import BusUnavailable, GuardFailed
from ...vocabulary import TERMINAL, JsonObject, StateType, derived_id, new_id
from ..runs.run import SOURCE
from ..states import State, event_word

if TYPE_CHECKING:
    from ...bus import Bus

__all__ = ["NOT_READY", "POOL", "BackgroundLog", "BackgroundRun", "Ticket", "is_end", "scheduled_event"]

log = logging.getLogger(__name__)

POOL = "=tasks"
"""The pool of all task workers on the queue of work; no pool of flows can be called so. Its queues are the tasks' keys."""
NOT_READY = "NotReady"
"""The state of a run that will never begin, because what it waits for did not complete: an end, though not by its type."""

S = StateType


@dataclass(frozen=True, slots=True)
class BackgroundRun:
    """What the log says of one run.

    Attributes:
        data: of its first event: the task, the arguments, what it waits for, tags, where it was asked for.
        claim: how often a worker has begun with it; lost: how often in a row one died with it.
        token: the work item under which it was claimed last.
        tries: begun, as its last event says.
        seq: of its last event.
    """

    id: str
    data: Mapping[str, Any]
    event: Event
    type: StateType
    state_name: str
    message: str | None
    claim: int
    lost: int
    token: str
    tries: int
    retry_at: datetime | None
    last: Mapping[str, Any]
    seq: int

    @property
    def key(self) -> str:
        return str(self.data["background"]["key"])

    @property
    def name(self) -> str:
        return str(self.last["run"].get("name") or self.data["run"]["name"])

    @property
    def task_name(self) -> str:
        return str(self.data["task"]["name"])

    @property
    def is_over(self) -> bool:
        return self.type in TERMINAL or self.state_name == NOT_READY

    @property
    def is_open(self) -> bool:
        """Whether a worker has begun with it and has not said what became of it."""
        return self.claim > 0 and not self.is_over and self.type is not S.SCHEDULED

    @property
    def tries_made(self) -> int:
        """How many tries have come to an end: one that was cut short by a loss is made again."""
        return self.tries - 1 if self.type is S.RUNNING else self.tries

    @property
    def wait_for(self) -> list[str]:
        """Ids of the runs of ``delay`` that must have ended before it begins."""
        return [str(one) for one in self.data.get("wait_for") or ()]

    @classmethod
    def of(cls, history: Iterable[Recorded]) -> BackgroundRun | None:
        """Fold the run's events, oldest first; None if there are none.

        The first end counts, unless somebody has had it run again since; what a worker writes that lost its run does not.
        """
        first: Event | None = None
        last: dict[str, Any] | None = None
        claim = lost = seq = tries = 0
        token, over = "", False
        for recorded in readable(history):
            data: Any = recorded.event.data
            seq = recorded.seq
            if not recorded.event.type.startswith("task-run.") or not _is_told(data):
                continue
            if first is None:
                first = recorded.event
            about, state = data["background"], data["state"]
            again = bool(about.get("redriven"))
            if not again and (over or int(about.get("claim") or 0) < claim):
                continue
            claim, lost = int(about.get("claim") or 0), int(about.get("lost") or 0)
            token = str(about.get("token") or "")
            tries = int(data["run"].get("attempt") or 0)
            over = state["type"] in TERMINAL or state.get("name") == NOT_READY
            last = data
        if first is None or last is None:
            return None
        data = first.data
        retry_at = last.get("retry_at") if last["state"].get("name") == "AwaitingRetry" else None
        return cls(
            id=data["run"]["id"], data=data, event=first, type=S(last["state"]["type"]), state_name=last["state"]["name"],
            message=last["state"].get("message"), claim=claim, lost=lost, token=token, tries=tries,
            retry_at=parse_time(retry_at) if isinstance(retry_at, str) else None, last=last, seq=seq,
        )  # fmt: skip


def _is_told(data: Any) -> bool:
    """Whether an event's data speak of a background run; anybody may publish others on its subject."""
    if not isinstance(data, dict):
        return False
    about, state, run = data.get("background"), data.get("state"), data.get("run")
    return (
        isinstance(about, dict)
        and isinstance(run, dict)
        and isinstance(state, dict)
        and isinstance(state.get("type"), str)
        and isinstance(state.get("name"), str)
    )


def is_end(data: Any) -> bool:
    """Whether an event's data speak of the end of a background run, or of a claim of one."""
    return _is_told(data) and (data["state"]["type"] in TERMINAL or data["state"]["name"] == NOT_READY)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A work item's payload. ``token`` tells it from others about the same run."""

    token: str
    first: Event

    @property
    def run_id(self) -> str:
        data: Any = self.first.data
        return str(data["run"]["id"])

    @property
    def key(self) -> str:
        data: Any = self.first.data
        return str(data["background"]["key"])

    def to_json(self) -> bytes:
        return orjson.dumps({"token": self.token, "first": self.first.to_dict()})

    @classmethod
    def from_json(cls, raw: bytes) -> Ticket:
        """Return what ``to_json`` wrote. Raises ``ValueError``, ``KeyError`` or ``TypeError`` for anything else."""
        value = orjson.loads(raw)
        ticket = cls(str(value["token"]), Event.from_dict(value["first"]))
        if not ticket.run_id or not ticket.key:
            raise ValueError("a work item without a run")
        return ticket


def scheduled_event(
    *,
    run_id: str,
    key: str,
    run_name: str,
    task: JsonObject,
    arguments: JsonObject,
    wait_for: list[str],
    upstream: list[str],
    tags: list[str],
    flow: JsonObject | None,
    correlationid: str | None,
    causationid: str | None,
    causaldepth: int,
    now: datetime,
) -> Event:
    """Return the first event of a run.

    Args:
        arguments: as a result is recorded: by name, inline or where they are stored.
        flow: ``flow_run``, ``flow`` and ``deployment`` of the flow run whose code asks; None outside any.
    """
    about: JsonObject = flow or {
        "flow_run": {"id": run_id, "name": None, "attempt": 1}, "flow": {"name": None}, "deployment": None,
    }  # fmt: skip
    return Event(
        type="task-run.scheduled", source=SOURCE, id=derived_id("background", run_id, "scheduled"),
        subject=f"task-run/{run_id}", time=now, correlationid=correlationid or run_id, causationid=causationid,
        causaldepth=causaldepth,
        data={
            **about, "task": task, "background": {"key": key, "claim": 0, "lost": 0},
            "run": {"id": run_id, "name": run_name, "index": 0, "attempt": 0, "started_at": None, "duration_s": None},
            "state": {"type": "SCHEDULED", "name": "Scheduled", "message": None}, "previous": None, "call": "",
            "arguments": arguments, "wait_for": [*wait_for], "upstream": [*upstream], "tags": [*tags],
        },
    )  # fmt: skip


class BackgroundLog:
    """Reads and moves runs of ``delay``. Stateless."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def ask(self, first: Event) -> None:
        """Have a run served: once, however often the same is asked.

        Raises:
            StreamFull, EventTooLarge, BusUnavailable: it was not accepted.
        """
        data: Any = first.data
        run_id = str(data["run"]["id"])
        if await self._bus.log.last(background_subject(run_id)) is not None:
            return  # asked for before, by an earlier attempt of the flow that asks
        await self.push(Ticket(new_id(), first), msg_id=f"{run_id}/asked")
        try:
            await self._bus.log.append(first, after=0)
        except GuardFailed:
            pass  # a worker was quicker, and has stored it
        except BusUnavailable as exc:
            # Accepted all the same: the worker that takes it stores its first event.
            log.warning("delay.event_left_to_worker", extra={"task_run_id": run_id, "error": str(exc)})

    async def push(self, ticket: Ticket, *, msg_id: str) -> None:
        """Put a work item on the queue of its task."""
        await self._bus.work.push(POOL, ticket.key, ticket.to_json(), msg_id=msg_id)

    async def get(self, run_id: str) -> BackgroundRun | None:
        """Return the run as the log has it; None if there is none."""
        return BackgroundRun.of(await self.history(run_id))

    async def history(self, run_id: str) -> list[Recorded]:
        """Return the run's events, oldest first."""
        return await self._read(background_subject(run_id))

    async def is_over(self, run_id: str) -> bool:
        """Whether the run has ended."""
        last = await self._bus.log.last(background_subject(run_id))
        if last is None:
            return False
        for recorded in readable([last]):
            if is_end(recorded.event.data):
                return True
        run = await self.get(run_id)
        return run is not None and run.is_over

    async def move(
        self,
        run: BackgroundRun,
        state: State,
        *,
        claim: int | None = None,
        lost: int = 0,
        token: str = "",
        redriven: bool = False,
        worker: str | None = None,
    ) -> int:
        """Append a transition of a run that is as it was read; return its sequence.

        Raises:
            GuardFailed: somebody wrote since.
        """
        word = event_word(state.type, state.name)
        claim = run.claim if claim is None else claim
        about: JsonObject = {"key": run.key, "claim": claim, "lost": lost, "token": token}
        if redriven:
            about["redriven"] = True
        if worker is not None:
            about["worker"] = worker
        data: JsonObject = {
            **{name: run.last.get(name) for name in ("flow_run", "flow", "deployment", "task", "upstream", "tags")},
            "background": about, "previous": run.type.value, "call": "",
            "run": {**run.last["run"], "attempt": 0 if redriven else run.tries_made, "duration_s": None},
            "state": {"type": state.type.value, "name": state.name, "message": state.message},
        }  # fmt: skip
        event = Event(
            type=f"task-run.{word}", source=SOURCE, id=new_id(), subject=f"task-run/{run.id}", data=data,
            correlationid=run.event.correlationid, causationid=run.event.causationid,
            causaldepth=run.event.causaldepth,
        )  # fmt: skip
        return (await self._bus.log.append(event, after=run.seq)).seq

    # --- runs that wait for others ---------------------------------------------------------------------

    async def note_wait(self, run: BackgroundRun, upstream: str) -> None:
        """Say that a run is to be put on the queue again when ``upstream`` has ended."""
        await self._bus.log.append(
            Event(
                type="hark.task.waits", source=SOURCE, id=derived_id("task-waits", upstream, run.id),
                subject=f"task-run/{upstream}", data={"run": {"id": run.id}, "key": run.key},
                correlationid=run.event.correlationid, causationid=run.event.id, causaldepth=run.event.causaldepth,
            )
        )  # fmt: skip

    async def wake_waiters(self, upstream: str) -> None:
        """Put the runs that wait for one that has ended on the queue; safe to do again."""
        for recorded in await self._read(waits_subject(upstream)):
            data: Any = recorded.event.data
            waiting = await self.get(str(data["run"]["id"]))
            if waiting is not None and not waiting.is_over:
                await self.push(Ticket(new_id(), waiting.event), msg_id=f"{waiting.id}/after/{upstream}")

    async def _read(self, subject: str) -> list[Recorded]:
        found: list[Recorded] = []
        if await self._bus.log.next(subject) is None:
            return found  # as nearly always; a reader costs more than a look
        async with self._bus.log.read([subject]) as batches:
            async for batch in batches:
                found.extend(readable(batch.records))
        return found
