"""Debounce: events of a key are collected until it is quiet, and told of together.

Quiet is about what arrives: times are those at which events were recorded. Nothing is dropped: when ``max_events``
have come, the rule fires at once, and the next event begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ...vocabulary import JsonObject, JsonValue
from ..model import Automation
from .form import Arm, EventRef, Firing, Kind, Seen
from .keyed import Keyed

__all__ = ["Debouncing"]


class Debouncing:
    """``on`` with ``debounce``."""

    def __init__(self, automation: Automation, *, arm: Arm) -> None:
        assert automation.debounce is not None
        self._quiet = automation.debounce.quiet
        self._max_wait = automation.debounce.max_wait
        self._max_events = automation.debounce.max_events
        self._arm = arm
        # deadline, the (earlier) deadline that is armed, when it has to fire at the latest, depth, (time, seq, id), …
        self._open: Keyed[str, list[Any]] = Keyed()

    def start(self, now: float) -> None:
        pass

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        window = self._open.get(key)
        deadline = seen.recorded + self._quiet
        entry = (seen.time, seen.seq, seen.id)
        if window is None:
            latest = seen.recorded + self._max_wait if self._max_wait is not None else None
            window = self._open.part(key)[key] = [deadline, deadline, latest, seen.depth, entry]
            if self._open.is_full(key):
                self._open.sweep(key)
            if self._max_events > 1:
                self._arm(key, deadline)
        else:
            # Pushing the deadline back costs nothing: when the armed one comes, it is armed anew.
            window[0] = deadline if window[2] is None else min(deadline, window[2])
            window[3] = seen.depth
            window.append(entry)
        if len(window) - 4 >= self._max_events:
            return self._fire(key, window, seen.recorded, seen.row)
        return None

    def _fire(self, key: str, window: list[Any], at: float, row: dict[str, Any] | None) -> Firing:
        del self._open.part(key)[key]
        refs = tuple(EventRef(id_, seq, time) for time, seq, id_ in window[4:])
        return Firing(at, len(refs), refs, row, window[3])

    def due(self, key: str, at: float, now: float) -> Firing | None:
        window = self._open.get(key)
        if window is None or window[1] != at:
            return None
        if window[0] > at:
            window[1] = window[0]
            self._arm(key, window[0])
            return None
        return self._fire(key, window, at, None)

    def deadline(self, key: str) -> float | None:
        window = self._open.get(key)
        return window[1] if window is not None else None

    def deadlines(self) -> Iterable[tuple[str, float]]:
        return [(key, window[1]) for key, window in self._open.items()]

    def keys(self) -> int:
        return len(self._open)

    def window(self, key: str) -> int:
        window = self._open.get(key)
        return len(window) - 4 if window is not None else 0

    def look(self, key: str) -> JsonObject:
        window = self._open.get(key)
        return {"collected": self.window(key), "fires_at": window[0] if window is not None else None}

    def dump(self) -> JsonValue:
        state: Any = self._open.whole()
        dumped: JsonValue = state
        return dumped

    def load(self, state: Any) -> None:
        self._open.update((key, [*w[:4], *(tuple(e) for e in w[4:])]) for key, w in state.items())

    def kinds(self) -> tuple[Kind, ...]:
        return (Kind(self._open, self._open.of),)

    def watch(self, before: Callable[[Any], None]) -> bool:
        return False
