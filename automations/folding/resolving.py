"""Firings that are not over yet, by key: when a rule says ``resolve``.

Over is a firing when the rule's own condition says so, or when it has been quiet for so long: no event of the key has
matched and nothing has fired. One that nothing was heard of for thirty days, and the quiet time, counts as gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...vocabulary import JsonValue
from ..forms.form import Arm, Kind
from ..forms.keyed import Keyed
from ..model import Automation

__all__ = ["Ended", "Resolving"]

_FORGET_S = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A firing that is over: the first decision of it, when it fired, and how often it has since."""

    decision: str
    fired_at: float
    firings: int
    depth: int


class Resolving:
    """The open firings of one rule."""

    def __init__(self, automation: Automation, *, lateness: float, arm: Arm) -> None:
        resolve = automation.resolve
        self._after = resolve.after if resolve is not None else None
        self._forget_s = _FORGET_S + (self._after or 0.0)
        self._by_figure = automation.metric is not None
        self._lateness = lateness
        self._arm = arm
        # decision, fired at, firings, depth, heard of (recorded), quiet until, armed
        self._open: Keyed[str, list[Any]] = Keyed()

    def __contains__(self, key: str) -> bool:
        return key in self._open

    def __len__(self) -> int:
        return len(self._open)

    def _known(self, key: str, recorded: float) -> list[Any] | None:
        """Return an open firing, swept or not: None if it is gone."""
        known = self._open.get(key)
        return known if known is not None and recorded - known[4] <= self._forget_s else None

    def fired(self, key: str, decision: str, *, at: float, recorded: float, depth: int) -> None:
        """Note a firing that was let through."""
        known = self._known(key, recorded)
        if known is not None:
            known[2] += 1
            known[3] = depth
        else:
            self._open.part(key)[key] = [decision, at, 1, depth, recorded, None, None]
            if self._open.is_full(key):
                forget_s = self._forget_s
                self._open.sweep(key, lambda part: [k for k, o in part.items() if recorded - o[4] > forget_s])
        self.heard(key, recorded, firing=True)

    def heard(self, key: str, recorded: float, *, firing: bool = False) -> None:
        """Note that it is not quiet: the quiet time of an open firing begins anew.

        Args:
            firing: it has fired again (or would have, but for a cooldown), and not only matched.
        """
        known = self._known(key, recorded)
        if known is None:
            return
        known[4] = recorded
        if self._by_figure:
            if firing:
                known[5] = None  # quiet begins when the figure comes back
        else:
            self._quiet(key, known, recorded)

    def _quiet(self, key: str, known: list[Any], recorded: float) -> None:
        if self._after is None:
            return
        known[5] = recorded + self._after
        if known[6] is None:
            known[6] = known[5]
            self._arm(key, known[5])

    def came_back(self, key: str, recorded: float) -> Ended | None:
        """Hear that the figure of a metric has come back; over at once, or after the quiet time."""
        known = self._known(key, recorded)
        if known is None:
            return None
        if self._after is None:
            return self._end(key)
        known[4] = recorded
        self._quiet(key, known, recorded)
        return None

    def over(self, key: str, *, time: float, recorded: float) -> Ended | None:
        """Hear the rule's own condition; good news from before the firing says nothing."""
        known = self._known(key, recorded)
        if known is None or time < known[1] - self._lateness:
            return None
        return self._end(key)

    def _end(self, key: str) -> Ended:
        known = self._open.part(key).pop(key)
        return Ended(*known[:4])

    def due(self, key: str, at: float) -> Ended | None:
        """Hear that a deadline has passed."""
        known = self._open.get(key)
        if known is None or known[6] != at:
            return None
        known[6] = None
        if known[5] is None:
            return None
        if known[5] > at:
            known[6] = known[5]
            self._arm(key, known[5])
            return None
        return self._end(key)

    def deadline(self, key: str) -> float | None:
        known = self._open.get(key)
        return known[6] if known is not None else None

    def deadlines(self) -> Iterable[tuple[str, float]]:
        return [(key, known[6]) for key, known in self._open.items() if known[6] is not None]

    def dump(self) -> JsonValue:
        state: Any = self._open.whole()
        dumped: JsonValue = state
        return dumped

    def load(self, state: Any) -> None:
        self._open.update((key, list(known)) for key, known in state.items())

    def kinds(self) -> tuple[Kind, ...]:
        return (Kind(self._open, self._open.of),)
