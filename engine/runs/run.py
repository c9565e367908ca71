"""A flow run as the log tells it: the request for one, the fold of its transitions, and the events themselves.

Everything here is pure. ``RunRequest`` -> first event; ``FlowRun.after(recorded)`` folds one transition;
``transition_event`` makes the next one. ``RunLog`` (``run_log.py``) appends them under guard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol, Self

import orjson

from ...bus.event import (
    MOST_DEPTH,
    Event,
    QuicklyMade,
    Recorded,
    become,
    check_type,
    format_time,
    is_too_deep,
    parse_time,
)
from ...errors import EventInvalid
from ...vocabulary import FlowRunId, JsonObject, JsonValue, StateType, derived_id, new_id, sendable
from ..states import State, event_word
from .naming import name_of_run

__all__ = ["Cause", "FlowRun", "RunRequest", "SOURCE", "run_id_for", "transition_event"]

SOURCE = "/hark/engine"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a run exists: the event that led to it and the thing that decided so.

    ``kind`` is one of ``schedule, webhook, automation, flow-run, api, cli, backfill``; ``name`` that thing's name;
    ``key`` is what the asker named the wish by, so that asking twice is asking once.
    """

    kind: str
    name: str = ""
    event: str | None = None
    key: str | None = None

    def to_json(self) -> JsonObject:
        said: JsonObject = {"event": self.event, "kind": self.kind, "name": self.name}
        return said if self.key is None else {**said, "key": self.key}

    @classmethod
    def from_json(cls, value: JsonValue) -> Self | None:
        if not isinstance(value, dict) or not value:
            return None
        event = value.get("event")
        return cls(
            kind=str(value.get("kind", "")),
            name=str(value.get("name", "")),
            event=str(event) if event else None,
            key=_text(value.get("key")),
        )


def run_id_for(*cause: str) -> FlowRunId:
    """Return the id of the run a cause asks for; the same cause gives the same run, so asking twice is asking once."""
    return FlowRunId(derived_id("flow-run", *cause))


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class RunRequest(QuicklyMade):
    """A wish for a flow run. ``id`` is derived from its cause by ``run_id_for`` where repeats must collapse.

    Attributes:
        entrypoint: ``path/file.py:function`` or ``package.module:function``; how a worker finds the code.
        scheduled_at: when it should start (aware, UTC); None is now.
        concurrency_key: rendered key of the deployment's concurrency limit, if it has one.
    """

    flow_name: str
    id: FlowRunId = field(default_factory=lambda: FlowRunId(new_id()))
    name: str = ""
    flow_version: str | None = None
    deployment: str | None = None
    entrypoint: str | None = None
    parameters: JsonObject = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    pool: str | None = None
    queue: str = "default"
    parent: FlowRunId | None = None
    scheduled_at: datetime | None = None
    concurrency_key: str | None = None
    cause: Cause | None = None
    trigger_event: Event | None = None
    traceparent: str | None = None
    """The span that asked for it; default: that of the trigger event."""

    def __init__(
        self,
        *,
        flow_name: str,
        id: FlowRunId | None = None,
        name: str = "",
        flow_version: str | None = None,
        deployment: str | None = None,
        entrypoint: str | None = None,
        parameters: JsonObject | None = None,
        tags: tuple[str, ...] = (),
        pool: str | None = None,
        queue: str = "default",
        parent: FlowRunId | None = None,
        scheduled_at: datetime | None = None,
        concurrency_key: str | None = None,
        cause: Cause | None = None,
        trigger_event: Event | None = None,
        traceparent: str | None = None,
    ) -> None:
        cls = self.__class__
        become(self, cls._open)
        new: Any = self
        new.flow_name, new.id = flow_name, FlowRunId(new_id()) if id is None else id
        new.name, new.flow_version, new.deployment, new.entrypoint = (
            name,
            flow_version,
            deployment,
            entrypoint,
        )
        new.parameters, new.tags = {} if parameters is None else parameters, tags
        new.pool, new.queue, new.parent = pool, queue, parent
        new.scheduled_at, new.concurrency_key = scheduled_at, concurrency_key
        new.cause, new.trigger_event, new.traceparent = cause, trigger_event, traceparent
        become(self, cls)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRun(QuicklyMade):
    """What is known of one flow run after its transition at ``seq``.

    Attributes:
        attempt: 1 for the first worker that takes it; +1 each time it is taken up again after a loss or a retry.
        seq: log sequence of its last transition: what the next guarded append must name.
    """

    id: FlowRunId
    name: str
    flow_name: str
    flow_version: str | None
    deployment: str | None
    entrypoint: str | None
    parameters: JsonObject
    tags: tuple[str, ...]
    pool: str | None
    queue: str
    parent: FlowRunId | None
    cause: Cause | None
    concurrency_key: str | None
    state_type: StateType
    state_name: str
    state_message: str | None
    state_details: JsonObject
    attempt: int
    scheduled_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    updated_at: datetime
    correlationid: str | None
    causationid: str | None
    causaldepth: int
    seq: int
    traceparent: str | None = None
    """What the run follows from, in traces."""
    result: JsonObject | None = field(default=None, repr=False, compare=False)
    """How the last transition says what a COMPLETED run returned."""
    event_id: str | None = field(default=None, repr=False, compare=False)
    """Of its last transition, where it was appended or read here: what the run does meanwhile follows from that."""

    @property
    def state(self) -> State:
        """The run's state; of a COMPLETED run, ``state.result()`` reads what it returned."""
        from ..results import ResultOfRun

        data = ResultOfRun(self.result, run_id=self.id) if self.result is not None else None
        return State(
            self.state_type, self.state_name, self.state_message, data=data, timestamp=self.updated_at,
            details=self.state_details, run_id=self.id,
        )  # fmt: skip

    # Under these names hooks that were written for Prefect read a run.
    @property
    def run_count(self) -> int:
        return self.attempt

    @property
    def start_time(self) -> datetime | None:
        return self.started_at

    @property
    def end_time(self) -> datetime | None:
        return self.ended_at

    @property
    def expected_start_time(self) -> datetime | None:
        return self.scheduled_at

    @property
    def deployment_id(self) -> str | None:
        return self.deployment

    @property
    def flow_id(self) -> str:
        return self.flow_name

    @property
    def updated(self) -> datetime:
        return self.updated_at

    @property
    def work_pool_name(self) -> str | None:
        return self.pool

    @property
    def work_queue_name(self) -> str | None:
        return self.queue if self.pool is not None else None

    @property
    def total_run_time(self) -> timedelta:
        """From its start to its end, or to now."""
        if self.started_at is None:
            return timedelta(0)
        return (self.ended_at or datetime.now(UTC)) - self.started_at

    estimated_run_time = total_run_time

    @property
    def estimated_start_time_delta(self) -> timedelta:
        """By how much it began, or would begin now, after it was due."""
        if self.scheduled_at is None or (self.started_at is None and self.is_final):
            return timedelta(0)
        return max((self.started_at or datetime.now(UTC)) - self.scheduled_at, timedelta(0))

    @property
    def next_scheduled_start_time(self) -> datetime | None:
        return self.scheduled_at if self.state_type is StateType.SCHEDULED else None

    @property
    def created(self) -> datetime:
        """When it was asked for; the first that is known of it where its id follows from its cause and holds no time."""
        if self.id[14:15] == "7":
            return datetime.fromtimestamp(int(self.id[:8] + self.id[9:13], 16) / 1000, UTC)
        return min(at for at in (self.scheduled_at, self.started_at, self.updated_at) if at is not None)

    @property
    def state_id(self) -> str:
        return self.state.id

    @property
    def idempotency_key(self) -> str | None:
        return self.cause.key if self.cause is not None else None

    @property
    def auto_scheduled(self) -> bool:
        return self.cause is not None and self.cause.kind == "schedule"

    @property
    def created_by(self) -> Cause | None:
        return self.cause

    @property
    def deployment_version(self) -> str | None:
        return self.flow_version if self.deployment is not None else None

    @property
    def work_pool_id(self) -> str | None:
        return self.pool

    @property
    def work_queue_id(self) -> str | None:
        return self.work_queue_name

    @property
    def labels(self) -> dict[str, str]:
        """What Prefect labels every run with."""
        said = {"prefect.flow.id": self.flow_name, "prefect.deployment.id": self.deployment}
        return {label: value for label, value in said.items() if value is not None}

    @property
    def context(self) -> JsonObject:
        """Nothing: what a run is given is its parameters."""
        return {}

    @property
    def job_variables(self) -> JsonObject:
        """Nothing: there are no jobs to configure."""
        return {}

    @property
    def parent_task_run_id(self) -> None:
        """Nothing: no task run stands for a run in its parent; see ``parent_flow_run_id``."""

    @property
    def infrastructure_pid(self) -> None:
        """Nothing: which process executes a run is the workers' own."""

    @property
    def parent_flow_run_id(self) -> FlowRunId | None:
        return self.parent

    @property
    def is_final(self) -> bool:
        return self.state_type.is_terminal

    @property
    def is_due_at_once(self) -> bool:
        """Whether the last transition asked for no later time, by the clock of who wrote it: so no clocks need agree."""
        return self.scheduled_at is None or self.scheduled_at <= self.updated_at

    @property
    def waits_in_process(self) -> bool:
        """Whether the run is between two tries in a process that holds it: SCHEDULED, but not for anyone to start."""
        return self.state_type is StateType.SCHEDULED and bool(self.state_details.get("in_process"))

    @classmethod
    def requested(cls, request: RunRequest, *, now: datetime, attempt: int = 0) -> Self:
        """Return the run a request describes, before its first transition (``seq`` 0, state SCHEDULED)."""
        trigger = request.trigger_event
        new: Any = _new_run(cls._open)
        new.id, new.name, new.parent = request.id, request.name or name_of_run(request.id), request.parent
        new.flow_name, new.flow_version = request.flow_name, request.flow_version
        new.entrypoint, new.deployment = request.entrypoint, request.deployment
        new.parameters, new.tags = request.parameters, request.tags
        new.pool, new.queue, new.cause = request.pool, request.queue, request.cause
        new.concurrency_key, new.state_type = request.concurrency_key, StateType.SCHEDULED
        new.state_name, new.state_message, new.state_details = "Scheduled", None, {}
        new.attempt, new.scheduled_at = attempt, request.scheduled_at or now
        new.started_at, new.ended_at, new.updated_at = None, None, now
        new.correlationid = (trigger.correlationid or trigger.id) if trigger else None
        new.causationid = trigger.id if trigger else (request.cause.event if request.cause else None)
        new.causaldepth, new.seq = trigger.causaldepth + 1 if trigger else 0, 0
        new.traceparent = request.traceparent or (trigger.traceparent if trigger else None)
        new.result, new.event_id = None, None
        become(new, cls)
        made: Self = new
        return made

    @classmethod
    def from_recorded(cls, recorded: Recorded) -> Self:
        """Read the run out of any one of its transitions: each carries all that is known at that moment."""
        head = _head_of(recorded)
        data = _mapping(head.data)
        run, flow, state = _mapping(data.get("run")), _mapping(data.get("flow")), _mapping(data.get("state"))
        deployment = _mapping(data.get("deployment"))
        # As ``cls(…)`` would, at a third of the price: a dispatcher reads every transition of every run.
        new: Any = _new_run(cls._open)
        new.id, new.name, new.parent = (
            FlowRunId(str(run["id"])),
            str(run.get("name", "")),
            _run_id(run.get("parent")),
        )
        new.flow_name, new.flow_version = str(flow.get("name", "")), _text(flow.get("version"))
        new.entrypoint, new.deployment = _text(flow.get("entrypoint")), _text(deployment.get("name"))
        new.parameters, new.tags = (
            _mapping(data.get("parameters")),
            tuple([str(t) for t in _items(data.get("tags"))]),
        )
        new.pool, new.queue = _text(data.get("pool")), str(data.get("queue") or "default")
        new.cause, new.concurrency_key = (
            Cause.from_json(data.get("cause")),
            _text(data.get("concurrency_key")),
        )
        new.state_type, new.state_name = _state_type(state["type"]), str(state.get("name", ""))
        new.state_message, new.state_details = _text(state.get("message")), _mapping(state.get("details"))
        new.attempt, new.scheduled_at = _int(run.get("attempt")), _time(run.get("scheduled_at"))
        new.started_at, new.ended_at = _time(run.get("started_at")), _time(run.get("ended_at"))
        new.updated_at, new.event_id, new.seq = head.time, head.id, recorded.seq
        new.correlationid, new.causationid = head.correlationid, head.causationid
        new.causaldepth, new.traceparent = head.causaldepth, head.traceparent
        new.result = _mapping(data.get("result")) or None
        become(new, cls)
        made: Self = new
        return made

    def changed(self, **changes: Any) -> Self:
        """Return the run with some fields changed: what ``dataclasses.replace`` does, at a tenth of its price.

        Every transition of a run makes one, and they were a seventh of what an empty flow costs.
        """
        cls = self.__class__
        new: Any = _new_run(cls._open)
        # Name by name, which the interpreter is quick at; a field that is forgotten here is missed at its first use.
        new.id, new.name, new.parent = self.id, self.name, self.parent
        new.flow_name, new.flow_version, new.entrypoint = self.flow_name, self.flow_version, self.entrypoint
        new.deployment, new.parameters, new.tags = self.deployment, self.parameters, self.tags
        new.pool, new.queue, new.cause = self.pool, self.queue, self.cause
        new.concurrency_key, new.state_type = self.concurrency_key, self.state_type
        new.state_name, new.state_message = self.state_name, self.state_message
        new.state_details, new.attempt, new.scheduled_at = self.state_details, self.attempt, self.scheduled_at
        new.started_at, new.ended_at, new.updated_at = self.started_at, self.ended_at, self.updated_at
        new.correlationid, new.causationid = self.correlationid, self.causationid
        new.causaldepth, new.seq, new.traceparent = self.causaldepth, self.seq, self.traceparent
        new.result, new.event_id = self.result, self.event_id
        for name, value in changes.items():
            setattr(new, name, value)
        become(new, cls)
        made: Self = new
        return made

    def landed(self, *, seq: int, event_id: str) -> Self:
        """Note in the run itself where its transition stands. For who has just made it by ``moved``, and nobody else has it."""
        object.__setattr__(self, "seq", seq)
        object.__setattr__(self, "event_id", event_id)
        return self

    def moved(
        self,
        state: State,
        *,
        attempt: int | None = None,
        name: str | None = None,
        scheduled_at: datetime | None = None,
    ) -> Self:
        """Return the run as it will be after moving to ``state`` (``seq`` unchanged until the append has landed)."""
        started = self.started_at
        if state.type is StateType.RUNNING and started is None:
            started = state.timestamp
        return self.changed(
            state_type=state.type, state_name=state.name, state_message=state.message, state_details=state.details,
            attempt=self.attempt if attempt is None else attempt, name=name or self.name, started_at=started,
            scheduled_at=scheduled_at or self.scheduled_at,
            ended_at=state.timestamp if state.type.is_terminal else None, updated_at=state.timestamp, result=None,
        )  # fmt: skip


def transition_event(
    run: FlowRun, *, previous: StateType | None, result: JsonValue = None, id: str | None = None
) -> Event:
    """Return the event that says ``run`` is now in the state it shows.

    Args:
        run: the run as ``FlowRun.moved`` made it.
        previous: the type it had before, None for a new run.
        result: the recorded result (inline value or reference) of a COMPLETED run, see ``results.py``.
        id: event id; a fresh one by default. Two writers must never share one: the broker would take the
            second for a repeat of the first and tell both that they won.
    """
    duration = (run.ended_at - run.started_at).total_seconds() if run.ended_at and run.started_at else None
    data: JsonObject = {
        "flow": {"name": run.flow_name, "version": run.flow_version, "entrypoint": run.entrypoint},
        "deployment": {"name": run.deployment} if run.deployment else None,
        "run": {
            "id": run.id, "name": run.name, "attempt": run.attempt, "parent": run.parent,
            "scheduled_at": _stamp(run.scheduled_at), "started_at": _stamp(run.started_at),
            "ended_at": _stamp(run.ended_at), "duration_s": duration,
        },
        "state": {
            "type": run.state_type.value, "name": run.state_name,
            "message": None if run.state_message is None else sendable(run.state_message),
            **({"details": run.state_details} if run.state_details else {}),
        },
        "previous": previous.value if previous else None,
        "parameters": run.parameters, "tags": [sendable(tag) for tag in run.tags], "pool": run.pool, "queue": run.queue,
        "cause": run.cause.to_json() if run.cause else None,
    }  # fmt: skip
    if run.concurrency_key is not None:
        data["concurrency_key"] = run.concurrency_key
    if result is not None:
        data["result"] = result
    return Event(
        type=f"flow-run.{event_word(run.state_type, run.state_name)}", source=SOURCE, id=id or new_id(),
        subject=f"flow-run/{run.id}", time=run.updated_at, data=data, correlationid=run.correlationid or run.id,
        causationid=run.causationid, causaldepth=run.causaldepth, traceparent=run.traceparent,
    )  # fmt: skip


_new_run: Callable[[type[Any]], Any] = object.__new__
_STATE_TYPES: dict[object, StateType] = {type_.value: type_ for type_ in StateType}


class _Head(Protocol):
    """What a run takes from its event beside the data."""

    @property
    def id(self) -> str: ...
    @property
    def time(self) -> datetime: ...
    @property
    def data(self) -> JsonValue | bytes: ...
    @property
    def correlationid(self) -> str | None: ...
    @property
    def causationid(self) -> str | None: ...
    @property
    def causaldepth(self) -> int: ...
    @property
    def traceparent(self) -> str | None: ...


class _OwnHead:
    """Of an event that is as Hark writes it: read in a third of the time that making the event takes."""

    __slots__ = ("causaldepth", "causationid", "correlationid", "data", "id", "time", "traceparent")

    def __init__(self, row: dict[str, Any]) -> None:
        get = row.get
        self.id, self.time, self.data = row["id"], parse_time(row["time"]), row["data"]
        self.correlationid, self.causationid = get("correlationid"), get("causationid")
        self.causaldepth, self.traceparent = get("causaldepth", 0), get("traceparent")


_OWN_NAMES = frozenset((
    "specversion", "id", "source", "type", "subject", "time", "data", "datacontenttype", "correlationid", "causationid",
    "causaldepth", "traceparent",
))  # fmt: skip
_OWN_TEXTS = (
    "id",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "correlationid",
    "causationid",
    "traceparent",
)


def _head_of(recorded: Recorded) -> _Head:
    """Return what the event says outside of its data. Raises ``EventInvalid`` if it is none."""
    if recorded.is_parsed:
        return recorded.event
    try:
        row = orjson.loads(recorded.raw)
        if (
            row["source"] == SOURCE
            and row["specversion"] == "1.0"
            and check_type(row["type"])
            and row["data"].__class__ is dict
            and row.keys() <= _OWN_NAMES
            and all(_is_plain(row.get(name, "-")) for name in _OWN_TEXTS)
            and 0 <= row.get("causaldepth", 0) <= MOST_DEPTH
            and row.get("causaldepth", 0).__class__ is int
            and not is_too_deep(recorded.raw, row)
        ):
            return _OwnHead(row)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, EventInvalid):
        pass
    return recorded.event


def _is_plain(value: object) -> bool:
    return value.__class__ is str and value != "" and str(value).isprintable()


def _state_type(value: object) -> StateType:
    known = _STATE_TYPES.get(value) if value.__class__ is str else None
    return known or StateType(str(value))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _run_id(value: object) -> FlowRunId | None:
    return FlowRunId(str(value)) if value else None


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _time(value: object) -> datetime | None:
    return parse_time(value) if isinstance(value, str) else None


def _stamp(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    # Elsewhere the two hours of a night when clocks are set back are equal, and would share a text.
    return _text_of(moment) if moment.tzinfo is UTC else format_time(moment)


# Each transition of a run says its times once more.
_text_of = lru_cache(maxsize=1024)(format_time)
