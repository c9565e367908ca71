"""What a stretch of the log becomes in the read model. Pure: messages in, rows out.

Of all transitions of one run in the stretch only the last becomes a row, so a batch of a thousand task events
may be three hundred writes. Since every row is made by one event alone, the cut of the log into batches cannot
show in the outcome.

This is the hot path of the projector: raw JSON and tuples, no ``Event`` objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias

import orjson

from ..bus.event import format_time, is_too_deep, lacking, parse_time
from ..bus.subject import RUN_DELETED
from ..errors import EventInvalid
from ..vocabulary import StateType

__all__ = ["KEYED", "LISTED", "Changes", "Folding", "Message", "Row", "fold"]

Row: TypeAlias = "tuple[str | int | float | bytes | None, ...]"

LISTED = ("events", "unreadable", "notifications", "webhook_deliveries", "schedule_fires")
"""Tables with one row per event."""
KEYED = ("flow_runs", "task_runs", "firings", "actions", "workers", "artifacts", "deleted_runs")
"""Tables with one row per thing, made by the last event about it."""

_STATES = frozenset(t.value for t in StateType)
_WEBHOOKS = "/webhooks/"
_DELETED = RUN_DELETED.partition(".")[2]
_FINAL = frozenset(t.value for t in StateType if t.is_terminal)


class Message(Protocol):
    """What the fold needs of a stored event; ``hark.bus.Recorded`` is one."""

    @property
    def seq(self) -> int: ...
    @property
    def subject(self) -> str: ...
    @property
    def at_ns(self) -> int: ...
    @property
    def raw(self) -> bytes: ...


@dataclass(slots=True)
class Changes:
    """The rows a stretch of the log makes: ``listed`` to be inserted, ``keyed`` (table -> key -> row) to be upserted,
    ``counted`` ((hour, type) -> how many) to be added."""

    listed: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in LISTED})
    counted: dict[tuple[str, str], int] = field(default_factory=dict)
    keyed: dict[str, dict[str, Row]] = field(default_factory=lambda: {name: {} for name in KEYED})
    reached: int = 0

    def rows(self) -> Iterable[tuple[str, list[Row]]]:
        """Yield (table, rows) for every table that changes."""
        for name, listed in self.listed.items():
            if listed:
                yield name, listed
        if self.counted:
            yield "event_hours", [(hour, type_, n) for (hour, type_), n in self.counted.items()]
        for name, keyed in self.keyed.items():
            if keyed:
                yield name, list(keyed.values())


class _Odd(Exception):
    """An event does not say what its type promises."""


def fold(messages: Iterable[Message]) -> Changes:
    """Return the rows that ``messages``, in the order of the log, make of an empty read model."""
    folding = Folding()
    folding.add(messages)
    return folding.done()


class Folding:
    """A fold in several steps: ``add`` messages in the order of the log, then take what is ``done``."""

    def __init__(self) -> None:
        self._changes = Changes()
        self._tasks: dict[str, _TaskRun] = {}

    def add(self, messages: Iterable[Message]) -> None:
        """Fold messages that follow those added before."""
        _add(self._changes, self._tasks, messages)

    def done(self) -> Changes:
        """Return the rows that all messages added make."""
        changes = self._changes
        changes.keyed["task_runs"] = {id_: _task_run(id_, *found) for id_, found in self._tasks.items()}
        return changes


_TaskRun: TypeAlias = "tuple[int, str, Any, Any, Any, Any, Any, str, Any, Any, Any, Any, str]"
"""What ``_task_run`` makes a row of, as it was read."""


def _add(changes: Changes, tasks: dict[str, _TaskRun], messages: Iterable[Message]) -> None:
    unreadable, counted = changes.listed["unreadable"], changes.counted
    add_event = changes.listed["events"].append
    loads, kinds, states = orjson.loads, _kinds, _STATES
    in_hour: dict[str, int] = {}
    hour, seq = "", changes.reached
    of_second, second_text = -1, ""
    for message in messages:
        seq, raw = message.seq, message.raw
        second, micros = divmod(message.at_ns // 1000, 1_000_000)
        if second != of_second:
            of_second = second
            second_text = format_time(datetime.fromtimestamp(second, UTC))[:20]
            if second_text[:13] != hour:
                _count(counted, hour, in_hour)
                hour, in_hour = second_text[:13], {}
        recorded_at = f"{second_text}{micros:06d}Z"
        try:
            event = loads(raw)
            if event.__class__ is not dict:
                raise _Odd(lacking(event) or "")
            if is_too_deep(raw, event):
                raise _Odd("it nests too deeply")
            get: Callable[[str], Any] = event.get
            type_, id_, source = get("type"), get("id"), get("source")
            # What most events are is looked at here; what the others are, in a function.
            kind = kinds.get((type_, source))
            if (
                kind is None
                or id_.__class__ is not str
                or not id_
                or not id_.isprintable()
                or get("specversion") != "1.0"
            ):
                if (why := lacking(event)) is not None:
                    raise _Odd(why)
                kind = _kind_of(type_, source)
            time = get("time")
            if not (
                time.__class__ is str
                and len(time) == 27
                and time[26] == "Z"
                and time[10] == "T"
                and time[19] == "."
            ):
                time = _moment(time) or recorded_at
            subject, correlationid, causationid = get("subject"), get("correlationid"), get("causationid")
            if subject.__class__ is not str:
                subject = _text(subject)
            if correlationid.__class__ is not str:
                correlationid = _text(correlationid)
            if causationid is not None:
                causationid = _text(causationid)
            depth = get("causaldepth")
            add_event((
                seq, id_, type_, source, subject, time, recorded_at, correlationid, causationid,
                0 if depth is None else _whole(depth) or 0, raw,
            ))  # fmt: skip
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, _Odd) as exc:
            unreadable.append((seq, message.subject, f"not an event: {_why(exc)}", raw))
            continue
        in_hour[type_] = in_hour.get(type_, 0) + 1
        if kind is _OTHER:
            continue
        handle, rest, is_task_run, is_from_webhook = kind
        if is_from_webhook:
            _accepted_by_webhook(changes, seq, source, type_, time)
        try:
            if not is_task_run:
                if handle is not None:
                    handle(changes, seq, event, rest, time)
                continue
            # Most events are of these, and most of those are not the last of their run: looked at and taken apart now,
            # so that what was parsed can go while the processor still has it at hand, and made a row of later.
            data = event["data"]
            run, state, flow_run, task = data["run"], data["state"], data["flow_run"], data["task"]
            if not (run.__class__ is state.__class__ is flow_run.__class__ is task.__class__ is dict):
                raise _Odd("run, state, flow_run and task are not all objects")
            state_type = state["type"]
            if state_type not in states:
                raise _Odd(f"state type {state_type!r:.40}")
            of, get = flow_run["id"], run.get
            tasks[_need(run["id"])] = (
                seq, of if of.__class__ is str and of else _need(of), get("name"), task.get("name"), get("attempt"),
                get("index"), data.get("tags"), state_type, state.get("name"), state.get("message"), get("started_at"),
                get("duration_s"), time,
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, ValueError, _Odd) as exc:
            unreadable.append((seq, message.subject, f"{type_}: {_why(exc)}", raw))
    _count(counted, hour, in_hour)
    changes.reached = seq


def _count(counted: dict[tuple[str, str], int], hour: str, in_hour: dict[str, int]) -> None:
    for type_, n in in_hour.items():
        counted[hour, type_] = counted.get((hour, type_), 0) + n


# --- one function per first word ----------------------------------------------------------------------


def _task_run(
    id_: str,
    seq: int,
    flow_run: str,
    name: Any,
    task_name: Any,
    attempt: Any,
    index: Any,
    tags: Any,
    kind: str,
    state_name: Any,
    message: Any,
    started_at: Any,
    duration_s: Any,
    time: str,
) -> Row:
    return (
        id_, seq, flow_run, _text(name) or "", _text(task_name) or "", _whole(attempt) or 0, _whole(index) or 0,
        _json_list(tags) if tags else "[]", kind, _text(state_name) or kind.capitalize(), _text(message),
        _moment(started_at), _number(duration_s), time,
    )  # fmt: skip


def _flow_run(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    data = event["data"]
    run, state, flow = data["run"], data["state"], data["flow"]
    kind = state["type"]
    if kind not in _STATES:
        raise _Odd(f"state type {kind!r}")
    cause = data.get("cause") or {}
    id_ = _need(run["id"])
    started_at = _moment(run.get("started_at"))
    changes.keyed["flow_runs"][id_] = (
        id_, seq, _text(run.get("name")) or "", _need(flow["name"]), _text(flow.get("version")),
        _text((data.get("deployment") or {}).get("name")), _text(data.get("pool")), _text(data.get("queue")),
        _text(run.get("parent")), _json_list(data.get("tags")), _text(cause.get("kind")), _text(cause.get("name")),
        _text(cause.get("event")), kind, _text(state.get("name")) or kind.capitalize(), _text(state.get("message")),
        _whole(run.get("attempt")) or 0, _moment(run.get("scheduled_at")) or started_at or time, started_at,
        _moment(run.get("ended_at")) or (time if kind in _FINAL else None), _number(run.get("duration_s")), time,
        _text(event.get("correlationid")), _text(event.get("causationid")),
    )  # fmt: skip


def _automation(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    if word not in ("triggered", "resolved", "suppressed"):
        return
    data = _mapping(event.get("data"))
    id_ = event["id"]
    key = data.get("key")
    changes.keyed["firings"][id_] = (
        id_, seq, _called(data.get("automation")) or _after_slash(event), word,
        key if key is None or isinstance(key, str) else orjson.dumps(key).decode(), _whole(data.get("count")),
        _text(_mapping(data.get("automation")).get("version")), 1 if data.get("shadow") is True else 0,
        _text(data.get("reason")), time,
    )  # fmt: skip


def _action(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    if word not in ("executed", "failed", "dead-lettered", "redriven", "dropped", "skipped"):
        return
    data = _mapping(event.get("data"))
    action = data.get("action")
    kind = action if isinstance(action, str) else _mapping(action).get("kind") or _mapping(action).get("type")
    error = data.get("error")
    key = _text(data.get("key")) or _after_slash(event)
    changes.keyed["actions"][key] = (
        key, seq, word, _text(kind or data.get("kind")), _called(data.get("automation")) or None,
        _text(data.get("firing") or event.get("causationid")), _whole(data.get("attempt")),
        error if error is None or isinstance(error, str) else orjson.dumps(error).decode(),
        _number(data.get("duration_s")), time,
    )  # fmt: skip


def _notification(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    if word not in ("sent", "failed", "silenced", "grouped"):
        return
    data = _mapping(event.get("data"))
    changes.listed["notifications"].append((
        seq, word, _text(data.get("channel")), _text(data.get("kind")), _whole(data.get("address")), _text(data.get("severity")),
        _text(data.get("title")), _whole(data.get("attempt")), _number(data.get("duration_s")),
        _text(data.get("error")), time,
    ))  # fmt: skip


def _accepted_by_webhook(changes: Changes, seq: int, source: str, type_: str, time: str) -> None:
    changes.listed["webhook_deliveries"].append(
        (seq, source[len(_WEBHOOKS) :] or "?", "received", type_, 202, None, time)
    )


def _webhook(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    # What was received bears the type its webhook gave it, and is known by its source.
    if word != "rejected":
        return
    data = _mapping(event.get("data"))
    changes.listed["webhook_deliveries"].append((
        seq, _called(data.get("webhook")) or _after_slash(event), "rejected", None, _whole(data.get("status")),
        _text(data.get("reason")), time,
    ))  # fmt: skip


def _schedule(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    if word not in ("fired", "skipped"):
        return
    data = _mapping(event.get("data"))
    run = _text(_mapping(data.get("run")).get("id"))
    changes.listed["schedule_fires"].append((
        seq, _called(data.get("deployment")) or None, _called(data.get("schedule")) or None, word,
        _moment(data.get("slot")), run, _text(data.get("reason") or data.get("why")), time,
    ))  # fmt: skip


def _worker(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    if word not in ("started", "stopped", "lost"):
        return
    data = _mapping(event.get("data"))
    worker = _mapping(data.get("worker"))
    id_ = _text(worker.get("id")) or _after_slash(event)
    changes.keyed["workers"][id_] = (
        id_, seq, word, _text(worker.get("name")) or _after_slash(event), _text(worker.get("pool")),
        orjson.dumps(data).decode(), time,
    )  # fmt: skip


def _artifact(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    if word not in ("created", "updated"):
        return
    data = _mapping(event.get("data"))
    shown = _mapping(data.get("artifact"))
    id_ = _after_slash(event)
    changes.keyed["artifacts"][id_] = (
        id_, seq, _need(shown.get("id")), _text(shown.get("key")), _need(shown.get("type")),
        _text(shown.get("description")), _text(_mapping(data.get("flow_run")).get("id")),
        _text(_mapping(data.get("task_run")).get("id")), _text(_mapping(data.get("flow")).get("name")), time,
    )  # fmt: skip


def _of_hark(changes: Changes, seq: int, event: dict[str, Any], word: str, time: str) -> None:
    if word == _DELETED:
        id_ = _after_slash(event)
        changes.keyed["deleted_runs"][id_] = (id_, seq, time)


_HANDLERS: dict[str, Callable[[Changes, int, dict[str, Any], str, str], None]] = {
    "flow-run": _flow_run, "automation": _automation, "action": _action,
    "notification": _notification, "webhook": _webhook, "schedule": _schedule, "worker": _worker,
    "artifact": _artifact, "hark": _of_hark,
}  # fmt: skip
_Kind: TypeAlias = "tuple[Callable[[Changes, int, dict[str, Any], str, str], None] | None, str, bool, bool]"
_OTHER: _Kind = (None, "", False, False)
_kinds: dict[tuple[Any, Any], _Kind] = {}
"""By type and source: what is done with such events, once one has been looked at. Most events are of a few kinds."""
_MOST_KINDS = 4096


def _kind_of(type_: str, source: str) -> _Kind:
    """Return the handler, the type behind its first word, whether it is of a task run, and whether a webhook took it in."""
    word, _, rest = type_.partition(".")
    kind = (_HANDLERS.get(word), rest, word == "task-run", source.startswith(_WEBHOOKS))
    if kind == (None, rest, False, False):
        kind = _OTHER
    if len(_kinds) >= _MOST_KINDS:
        _kinds.clear()
    _kinds[type_, source] = kind
    return kind


# --- reading values that anybody may have written -----------------------------------------------------


def _need(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise _Odd(f"expected a text, got {value!r:.40}")


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def _whole(value: object) -> int | None:
    # SQLite holds 64 bits; a larger number is nobody's count.
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
        return value
    return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _called(value: object) -> str:
    """Return the name in ``"name"`` or ``{"name": "name"}``, or nothing."""
    if isinstance(value, dict):
        value = value.get("name")
    return value if isinstance(value, str) else ""


def _after_slash(event: dict[str, Any]) -> str:
    """Return what an event is about: ``x`` of the subject ``automation/x``, or its id when it names nothing."""
    subject = event.get("subject")
    return (
        (subject.partition("/")[2] or subject) if isinstance(subject, str) and subject else str(event["id"])
    )


def _json_list(value: object) -> str:
    return orjson.dumps([str(v) for v in value]).decode() if isinstance(value, list) else "[]"


def _moment(value: object) -> str | None:
    """Return a moment as fixed-width UTC text; what is not a moment is None."""
    if not isinstance(value, str):
        return None
    # The form Hark writes; anything else is brought to it, so that text order is time order.
    if len(value) == 27 and value[26] == "Z" and value[10] == "T" and value[19] == ".":
        return value
    try:
        return format_time(parse_time(value))
    except (EventInvalid, ValueError, OverflowError):
        return None


def _why(exc: BaseException) -> str:
    return f"{exc} is missing" if isinstance(exc, KeyError) else str(exc) or type(exc).__name__
