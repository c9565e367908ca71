"""Who changed what: calls that change something are put into the log, with the name of the key they showed.

What the change was is in the log anyway (``deployment.updated``, ``automation.deleted``, transitions of runs); this adds the
caller. Bodies are not kept: they may hold secrets. Calls that were refused changed nothing and are not kept either, so
that nobody without a key can fill the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bus.event import Event
from ..bus.subject import RESTORED

if TYPE_CHECKING:
    from ..storage import EventRow
    from ..vocabulary import JsonObject

__all__ = [
    "AUDITED",
    "AUDIT_TYPES",
    "CONFIGURATION",
    "audit_event",
    "audit_row",
    "changes_something",
    "subject_for",
]

AUDITED = "hark.audited"
CONFIGURATION = "configuration"
"""Who changed it, where a ``hark.yaml`` did."""
_WORDS = (
    "deployment", "schedule", "automation", "webhook", "variable", "block", "limit", "work-pool", "hark.silence",
    "hark.source", "hark.sink", "hark.channel",
)  # fmt: skip
_CHANGES = ("created", "updated", "deleted", "paused", "resumed")
AUDIT_TYPES: tuple[str, ...] = (
    AUDITED,
    RESTORED,
    *(f"{word}.{change}" for word in _WORDS for change in _CHANGES),
)
_ASKING = ("/api/config/plan", "/api/automations/backtest", "/api/automations/explain")
"""POST, because the question is long; they change nothing."""
_EVENTS = "/api/events"
"""Events are in the log themselves."""
_CHANGING = ("/api/", "/runs/", "/firings/")
"""Below which calls may change something: the buttons of the pages do what the API does."""
_MOST_PATH = 500


def changes_something(method: str, path: str) -> bool:
    """Return whether a call is one that changes something, if it succeeds."""
    if method not in ("POST", "PUT", "PATCH", "DELETE") or not path.startswith(_CHANGING):
        return False
    return path not in _ASKING and path != _EVENTS


def subject_for(by: str) -> str:
    """Return the subject of what a caller did, by the name of its key."""
    return f"caller/{by}"


def audit_event(by: str, what: str, *, client: str | None = None, status: int | None = None) -> Event:
    """Return the event that says who did something.

    Args:
        what: method and path, or one line.
        client: the address it came from; a proxy's where there is one.
    """
    data: JsonObject = {"by": by, "what": what[:_MOST_PATH]}
    if client is not None:
        data["from"] = client
    if status is not None:
        data["status"] = status
    return Event(type=AUDITED, source="/hark/server", subject=subject_for(by), data=data)


def audit_row(row: EventRow) -> JsonObject:
    """Return one line of the audit: ``seq, time, by, what, on, from, id``; ``by`` is None where the log does not say."""
    data = row.to_dict().get("data")
    said = data if row.type == AUDITED and isinstance(data, dict) else {}
    is_call = row.type == AUDITED
    return {
        "seq": row.seq,
        "time": row.recorded_at.isoformat(),
        "by": said.get("by"),
        "what": said.get("what") if is_call else row.type,
        "on": None if is_call else row.subject,
        "from": said.get("from"),
        "id": row.id,
    }
