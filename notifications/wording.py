"""What a message about one or several alerts says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from ..duration import format_duration
from ..vocabulary import JsonObject, JsonValue
from .message import Message, Severity

__all__ = ["NO_ALERT", "Line", "compose"]

NO_ALERT: JsonObject = {
    "status": "", "kind": "message", "group": {"id": "", "labels": {}}, "alerts": [], "firing": 0, "recovered": 0,
    "new": [], "ack_url": "",
}  # fmt: skip
"""What templates read of a message that is about no alert: one channel takes both kinds, with the same template."""

_LISTED = 20
_ATTACHED = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One alert in a message: how often and since when it was raised; ``ended_at`` when it is over."""

    message: Message
    count: int
    since: float
    ended_at: float | None = None
    labels: JsonObject | None = None

    def to_json(self) -> JsonObject:
        m = self.message
        return {
            "title": m.title, "body": m.body, "severity": m.severity.value, "count": self.count,
            "since": _stamp(self.since), "ended_at": _stamp(self.ended_at) if self.ended_at is not None else None,
            "labels": self.labels or {},
        }  # fmt: skip


def compose(
    kind: str,
    labels: JsonObject,
    *,
    firing: Sequence[Line],
    recovered: Sequence[Line],
    at: float,
    waited_s: float = 0.0,
    group: str = "",
    new: Sequence[str] = (),
) -> Message:
    """Return the message of a group.

    Args:
        kind: ``firing`` (something new), ``repeat``, ``recovered``, ``escalation`` or ``digest``.
        labels: what the alerts have in common.
        firing: the alerts that are open, new ones first; recovered: those that are over.
        waited_s: for how long nobody has acknowledged, for escalations.
        new: ids of the alerts that are told for the first time.
    """
    lines = [*firing, *recovered]
    prefix = {
        "repeat": "Still: ", "escalation": f"Not acknowledged for {format_duration(round(waited_s))}: ",
    }.get(kind, "")  # fmt: skip
    severity = (
        max((line.message.severity for line in firing), key=lambda s: s.rank) if firing else Severity.SUCCESS
    )
    context: JsonObject = {
        "status": "firing" if firing else "resolved", "kind": kind, "group": {"id": group, "labels": labels},
        "alerts": [line.to_json() for line in lines[:100]], "firing": len(firing), "recovered": len(recovered),
        "new": [*new],
    }  # fmt: skip
    if len(lines) == 1:
        [line] = lines
        title, body = _one(line, kind, at)
    else:
        title, body = _several(kind, labels, firing, recovered)
    attach = tuple(dict.fromkeys(a for line in firing for a in line.message.attach))[:_ATTACHED]
    return Message(f"{prefix}{title}", body, severity, attach, context)


def _one(line: Line, kind: str, at: float) -> tuple[str, str]:
    title = line.message.title.strip() or line.message.body.strip().partition("\n")[0]
    body = line.message.body
    notes: list[str] = []
    if line.ended_at is not None:
        lasted = format_duration(max(1, round(line.ended_at - line.since)))
        if not title.lower().startswith(("recovered", "resolved")):
            title = f"Recovered: {title}"
        notes.append(f"It lasted {lasted}.")
    elif kind in ("repeat", "escalation"):
        notes.append(f"Open for {format_duration(max(1, round(at - line.since)))}.")
    if line.count > 1:
        notes.append(f"Raised {line.count} times.")
    return title, "\n\n".join(part for part in (body.strip(), " ".join(notes)) if part)


def _several(
    kind: str, labels: JsonObject, firing: Sequence[Line], recovered: Sequence[Line]
) -> tuple[str, str]:
    told = ", ".join(
        f"{name} {_plain(value)}" for name, value in labels.items() if value not in (None, "", [])
    )
    if kind == "digest":
        title = f"Digest: {len(firing) + len(recovered)} messages"
    else:
        counts = [f"{len(firing)} open"] if firing else []
        counts += [f"{len(recovered)} recovered"] if recovered else []
        title = " and ".join(counts)
    title += f" ({told})" if told else ""
    parts: list[str] = []
    if firing:
        parts.append(_list(firing))
    if recovered:
        parts.append("Recovered:\n" + _list(recovered))
    return title, "\n\n".join(parts)


def _list(lines: Sequence[Line]) -> str:
    """Return a line for each title, equal ones once with their number; past twenty, how many more there are."""
    counted: dict[str, tuple[int, Line]] = {}
    for line in lines:
        title = line.message.title.strip() or line.message.body.strip().partition("\n")[0]
        n, first = counted.get(title, (0, line))
        counted[title] = (n + line.count, first)
    listed = list(counted.items())
    out = []
    for title, (n, line) in listed[:_LISTED]:
        text = f"- {title}" + (f" ({n}x)" if n > 1 else "")
        first_words = line.message.body.strip().partition("\n")[0]
        out.append(f"{text}: {first_words[:160]}" if first_words else text)
    if left := sum(n for _, (n, _) in listed[_LISTED:]):
        out.append(f"- and {left} more")
    return "\n".join(out)


def _plain(value: JsonValue) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
