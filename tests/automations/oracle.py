"""What a rule must decide about a history, by definition: the whole history is looked at again for every instant.

Written from ``docs/rules.md`` and from nothing else: it shares no code with what it judges, knows no index, keeps no
state but what has been decided so far, and forgets nothing. Slow on purpose, for a few dozen events.

Times are seconds from the rule's adoption and multiples of ``TICK_S``, as are all durations of the rules it is given,
so that every deadline is one of the instants looked at and a window's border is hit exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.automations.oracle_form import FORMS, MISSING, Fact, Found, Place, Rule, chosen, seconds

__all__ = ["TICK_S", "Verdict", "verdicts"]

TICK_S = 0.25


@dataclass(frozen=True)
class Verdict:
    """A decision: ``at`` in event time, ``decided`` when the log gave cause for it."""

    what: str
    keys: tuple[Any, ...]
    at: float
    decided: float
    events: tuple[str, ...]
    count: int
    held: int = 0
    reason: str = ""


def verdicts(rule: Rule, facts: list[Fact], *, until: float, lateness: float) -> list[Verdict]:
    """Return what the rule decides, key by key and in order of time for each."""
    by_key: dict[str, tuple[tuple[Any, ...], list[Fact]]] = {}
    if "for_each" not in rule:
        by_key[""] = (), facts
    else:
        for fact in facts:
            for keys in _keys(rule["for_each"], fact):
                by_key.setdefault(repr(keys), (keys, []))[1].append(fact)
    lateness = seconds(rule.get("allowed_lateness"), lateness)
    return [
        verdict
        for keys, mine in by_key.values()
        for verdict in _Judge(rule, keys, lateness).over(mine, until)
    ]


def _keys(paths: str | list[str], fact: Fact) -> list[tuple[Any, ...]]:
    """Return the keys an event belongs to: one per value of an array, one per combination of several paths."""
    columns = []
    for path in [paths] if isinstance(paths, str) else paths:
        found = fact.get(path)
        some = found if isinstance(found, list) else [found]
        columns.append([v for v in some if v is not None and v is not MISSING])
    return list({repr(combo): combo for combo in itertools.product(*columns)}.values())


@dataclass
class _Judge:
    """One key of a rule."""

    rule: Rule
    keys: tuple[Any, ...]
    lateness: float

    def over(self, facts: list[Fact], until: float) -> Iterator[Verdict]:
        form = FORMS[chosen(self.rule)](self.rule, self.lateness)
        self.form, self.made, self.past = form, list[tuple[Place, Found]](), list[Verdict]()
        for n in range(round(until / TICK_S) + 1):
            now = n * TICK_S
            log = [f for f in facts if f.recorded < now]
            # What falls due comes before what is recorded at that very moment.
            self._fall_due(now, log)
            for fact in facts:
                if fact.recorded == now:
                    log = [*log, fact]
                    if self._says_it_is_over(fact):
                        self._over(fact.time, now, (fact.id,), "condition")
                    found = form.event(fact, log, self.made) if form.wants(fact) else None
                    if found is not None:
                        self._come_true(found, now, log)
                    self._fall_due(now, log)
        yield from self.past

    def _fall_due(self, now: float, log: list[Fact]) -> None:
        found = self.form.due(now, log, self.made)
        if found is not None:
            self._come_true(found, now, log)
        if self._quiet_ends(now, log):
            self._over(now, now, (), "quiet")

    def _come_true(self, found: Found, now: float, log: list[Fact]) -> None:
        """Tell that the condition has come true (or, of a metric, that it has ceased to be), unless it is held back."""
        self.made.append((Place(now, len(log)), found))
        if found.is_over:
            if self._open() is not None and "after" not in self.rule.get("resolve", {}):
                self._over(found.at, now, (), "figure")
            return
        ids = tuple(fact.id for fact in found.events)
        last, since = self._last("triggered")
        held = len([v for v in since if v.what == "suppressed"])
        cooldown = seconds(self.rule.get("cooldown"), 0.0)
        if (
            last is not None
            and cooldown
            and found.at < last.at + cooldown
            and now <= last.decided + cooldown + self.lateness
        ):
            self.past.append(
                Verdict("suppressed", self.keys, found.at, now, ids, found.count, held + 1, "cooldown")
            )
        else:
            self.past.append(Verdict("triggered", self.keys, found.at, now, ids, found.count, held))

    def _last(self, what: str) -> tuple[Verdict | None, list[Verdict]]:
        """Return the last of its kind and what has been decided since; without one, all that has been decided."""
        for n in range(len(self.past) - 1, -1, -1):
            if self.past[n].what == what:
                return self.past[n], self.past[n + 1 :]
        return None, self.past

    def _open(self) -> Verdict | None:
        """Return the first firing since the last one that was over."""
        if "resolve" not in self.rule and not (chosen(self.rule) == "metric" and "on_resolve" in self.rule):
            return None
        return next((v for v in self._last("resolved")[1] if v.what == "triggered"), None)

    def _says_it_is_over(self, fact: Fact) -> bool:
        """Return whether ``resolve: {on: …}`` ends the open firing; what happened too long before it does not."""
        resolve, opened = self.rule.get("resolve", {}), self._open()
        return (
            "on" in resolve
            and opened is not None
            and fact.fits(resolve)
            and fact.time >= opened.at - self.lateness
        )

    def _quiet_ends(self, now: float, log: list[Fact]) -> bool:
        """Return whether nothing of the key has matched, and nothing fired, for ``resolve: {after: …}``."""
        resolve, opened = self.rule.get("resolve", {}), self._open()
        if "after" not in resolve or opened is None:
            return False
        after = seconds(resolve["after"], 0.0)
        if chosen(self.rule) == "metric":
            # Quiet begins when the figure has come back.
            last, found = self.made[-1]
            return found.is_over and last.now + after == now
        heard = [f.recorded for f in log if self.form.wants(f)] + [place.now for place, _ in self.made]
        return max(heard) + after == now

    def _over(self, at: float, now: float, ids: tuple[str, ...], reason: str) -> None:
        firings = len([v for v in self._last("resolved")[1] if v.what == "triggered"])
        self.past.append(Verdict("resolved", self.keys, at, now, ids, firings, 0, reason))
