"""The types of events that Hark itself emits: a rule on another one under Hark's words hears nothing, ever."""

from __future__ import annotations

from difflib import get_close_matches

from ...bus.event import OWN_WORDS

__all__ = ["OWN_EVENTS", "never_emitted"]

_CHANGES = ("created", "updated", "deleted")
_HELD = ("paused", "resumed")
_WORDS = {
    "deployment": (
        *_CHANGES, *_HELD, "backfill.started", "backfill.finished", "backfill.cancelled", "backfill.failed",
    ),
    "schedule": (*_CHANGES, *_HELD, "fired", "skipped"),
    "webhook": (*_CHANGES, *_HELD, "received", "rejected"),
    "automation": (*_CHANGES, *_HELD, "triggered", "resolved", "suppressed", "disabled", "adopted", "due"),
    "action": (
        "executed", "failed", "skipped", "dead-lettered", "redriven", "dropped", "approved", "declined", "expired",
    ),
    "notification": (
        "sent", "failed", "raised", "grouped", "silenced", "inhibited", "muted", "escalated", "acknowledged", "closed",
        "unrouted",
    ),
    "worker": ("started", "stopped", "lost"),
    "work-pool": (*_CHANGES, *_HELD),
    "artifact": _CHANGES,
    "variable": _CHANGES,
    "block": _CHANGES,
}  # fmt: skip
OWN_EVENTS = frozenset(f"{first}.{rest}" for first, words in _WORDS.items() for rest in words)
"""Those of definitions, rules and workers. Runs' are checked where a pattern is read; ``hark.`` and ``limit.`` are open."""


def never_emitted(pattern: str) -> str:
    """Return what to write instead of a type under one of Hark's words that Hark never emits; empty if it may come."""
    first, _, rest = pattern.partition(".")
    if first not in OWN_WORDS or first not in _WORDS or "*" in pattern or ">" in pattern:
        return ""
    near = get_close_matches(rest, _WORDS[first], n=1)
    # Types of three words belong to parts that grow: only what is near a known one is surely wrong.
    if pattern in OWN_EVENTS or ("." in rest and not near):
        return ""
    if near:
        return f"did you mean '{first}.{near[0]}'?"
    return f"there are {', '.join(sorted(_WORDS[first]))} of {first!r}"
