"""An action on its way: how far it has got, the events that say so, and how its rule wants it done.

All of it is pure; ``outbox.py`` carries the actions out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from ...bus.event import Event, format_time, parse_time
from ...config import AutomationsConfig
from ...duration import parse_duration
from ...vocabulary import JsonObject, derived_id
from ..action import ACTIONS
from .perform import Firing

__all__ = [
    "ACTION_SOURCE",
    "ActionState",
    "action_event",
    "backoff_of",
    "kind_of",
    "number_of",
    "said_of",
    "timeout_of",
]

ACTION_SOURCE = "/hark/actions"
_BACKOFF_S = 2.0


@dataclass(frozen=True, slots=True)
class ActionState:
    """How far an action has got.

    Attributes:
        state: claimed, waiting, stopped (its process was asked to end), done, skipped, dead, dropping or dropped.
        attempt: tries since it was last redriven, a death and a stop not counted; round: how often it has been.
        suspect: a process has died that had it. From then on it is noted, as ``begun``, before it is done.
        deaths: how many processes are known to have died while they did it.
        outcome: the event that says how it ended, for whoever finds it unsaid after a crash.
        seq: of the decision in the log; decision: a copy of it, kept with a dead letter.
    """

    state: str
    attempt: int
    round: int
    by: str
    at: datetime
    seq: int
    next_at: datetime | None = None
    error: str | None = None
    outcome: JsonObject | None = None
    decision: JsonObject | None = None
    suspect: bool = False
    begun: bool = False
    deaths: int = 0

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "skipped", "dead", "dropping", "dropped")

    def to_json(self) -> bytes:
        out: JsonObject = {
            "state": self.state, "attempt": self.attempt, "round": self.round, "by": self.by,
            "at": format_time(self.at), "seq": self.seq,
        }  # fmt: skip
        if self.next_at is not None:
            out["next_at"] = format_time(self.next_at)
        for name in ("error", "outcome", "decision"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        for name in ("suspect", "begun", "deaths"):
            if getattr(self, name):
                out[name] = getattr(self, name)
        return orjson.dumps(out)

    @classmethod
    def from_json(cls, raw: bytes) -> ActionState:
        value = orjson.loads(raw)
        next_at = value.get("next_at")
        return cls(
            state=str(value["state"]), attempt=int(value["attempt"]), round=int(value["round"]), by=str(value["by"]),
            at=parse_time(value["at"]), seq=int(value["seq"]), next_at=parse_time(next_at) if next_at else None,
            error=value.get("error"), outcome=value.get("outcome"), decision=value.get("decision"),
            suspect=bool(value.get("suspect")), begun=bool(value.get("begun")), deaths=int(value.get("deaths", 0)),
        )  # fmt: skip


def action_event(
    word: str, firing: Firing, *, key: str, kind: str, state: ActionState, now: datetime, **more: Any
) -> Event:
    """Return the event that says what became of an action. Its id belongs to the key, the try and the word."""
    data: JsonObject = {
        "key": key, "firing": firing.event.id, "automation": firing.automation, "kind": kind,
        "index": int(key.rpartition("/")[2]), "attempt": state.attempt, **more,
    }  # fmt: skip
    if state.round:
        data["round"] = state.round
    if state.deaths:
        data["deaths"] = state.deaths
    return Event(
        type=f"action.{word}", source=ACTION_SOURCE, id=derived_id("action", key, word, str(state.round), str(state.attempt)),
        subject=f"action/{key}", time=now, data=data, **firing.event.caused(),
    )  # fmt: skip


def kind_of(written: Any) -> str:
    return (
        next((word for word in written if word in ACTIONS), "unknown")
        if isinstance(written, dict)
        else "unknown"
    )


def timeout_of(written: Any, config: AutomationsConfig) -> float:
    return _seconds_of(written, "timeout") or config.action_timeout_s


def said_of(written: Any) -> str:
    """Return what a written action is and, if that is a plain name or several, about what: ``notify oncall``.

    Addresses (they may hold tokens) and templates are left out.
    """
    kind = kind_of(written)
    named = written.get(kind) if isinstance(written, dict) else None
    names = [n for n in (named if isinstance(named, list) else [named]) if isinstance(n, str)]
    plain = [n for n in names if not any(sign in n for sign in ("{{", "{%", ":"))]
    return " ".join([kind, ", ".join(plain)]).strip()


def backoff_of(written: Any) -> float:
    return _seconds_of(written, "backoff") or _BACKOFF_S


def _seconds_of(written: Any, name: str) -> float | None:
    try:
        return parse_duration(written.get(name)) if isinstance(written, dict) and written.get(name) else None
    except ValueError:
        return None


def number_of(written: Any, name: str, default: int) -> int:
    value = written.get(name) if isinstance(written, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else default
