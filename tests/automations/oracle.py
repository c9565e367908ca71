"""What a rule must decide about a history, by definition: the whole history is looked at again for every instant.

Written from ``docs/rules.md`` and from nothing else: it shares no code with what it judges, knows no index, keeps no
state but what has been decided so far, and forgets nothing. Slow on purpose, for a few dozen events.

Times are seconds from the rule's adoption and multiples of ``TICK_S``, as are all durations of the rules it is given,
so that every deadline is one of the instants looked at and a window's border is hit exactly.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.automations.oracle_form import (
    FORMS,
    MISSING,
    Fact,
    Form,
    Found,
    Place,
    Rule,
    chosen,
    seconds,
)
from tests.automations.oracle_metric import Metric

__all__ = ["MAX_DEPTH", "TICK_S", "Change", "Verdict", "verdicts"]

TICK_S = 0.25
MAX_DEPTH = 8
_KEPT = ("do", "on_resolve", "cooldown", "budget", "mode", "tests", "description", "paused")
"""Words whose change leaves windows and waits as they are."""
_FORMS: Mapping[str, Callable[[Rule, float, float], Form]] = {**FORMS, "metric": Metric}


@dataclass(frozen=True)
class Verdict:
    """A decision: ``at`` in event time, ``decided`` when the log gave cause for it, ``depth`` of what it rests on."""

    what: str
    keys: tuple[Any, ...]
    at: float
    decided: float
    events: tuple[str, ...]
    count: int
    held: int = 0
    reason: str = ""
    until: float | None = None
    depth: int = 0


@dataclass(frozen=True)
class Change:
    """From before the event at ``place`` on, the rule has other words (None: no longer that one).

    Attributes:
        at: when that is.
        anew: it was deleted and made again.
    """

    place: int
    at: float
    words: Mapping[str, Any]
    anew: bool = False

    def of(self, rule: Rule) -> dict[str, Any]:
        changed = {**rule, **self.words}
        return {word: value for word, value in changed.items() if value is not None}


def verdicts(
    rule: Rule, facts: list[Fact], *, until: float, lateness: float, changes: Sequence[Change] = ()
) -> list[Verdict]:
    """Return what the rule decides; of each key, in order of time."""
    court = _Court(rule, lateness)
    for n in range(round(until / TICK_S) + 1):
        now = n * TICK_S
        # What falls due comes before what is recorded at that very moment.
        court.fall_due(now)
        for fact in facts:
            if fact.recorded == now:
                for change in changes:
                    if change.place == fact.place:
                        court.change(change)
                        court.fall_due(now)
                court.hear(fact, now)
                court.fall_due(now)
    return [verdict for verdict in court.past if verdict.reason != _UNSAID]


_UNSAID = "unsaid"


def _keys(paths: str | list[str], fact: Fact) -> list[tuple[Any, ...]]:
    """Return the keys an event belongs to: one per value of an array, one per combination of several paths."""
    columns = []
    for path in [paths] if isinstance(paths, str) else paths:
        found = fact.get(path)
        some = found if isinstance(found, list) else [found]
        columns.append([v for v in some if v is not None and v is not MISSING])
    return list({repr(combo): combo for combo in itertools.product(*columns)}.values())


@dataclass
class _Court:
    """All keys of a rule, and what they share: how it is written now, and its budget."""

    rule: Rule
    default_lateness: float
    began: float = 0.0
    past: list[Verdict] = field(default_factory=list)
    judges: dict[tuple[bool, str], _Judge] = field(default_factory=dict)
    budget_began: float | None = None
    budget_spent: int = 0
    budget_held: int = 0

    def __post_init__(self) -> None:
        if "for_each" not in self.rule:
            self._judge(())

    def _judge(self, keys: tuple[Any, ...]) -> _Judge:
        """Return who decides about a key."""
        # Texts are told after all else, and several values as their JSON.
        is_text = len(keys) == 1 and isinstance(keys[0], str)
        order = is_text, str(keys[0]) if is_text else json.dumps(keys if len(keys) > 1 else keys[:1])
        if order not in self.judges:
            form = _FORMS[chosen(self.rule)](self.rule, self.lateness, self.began)
            self.judges[order] = _Judge(self, keys, form)
        return self.judges[order]

    @property
    def lateness(self) -> float:
        return seconds(self.rule.get("allowed_lateness"), self.default_lateness)

    def change(self, change: Change) -> None:
        """Let the rule be another; what it has seen is forgotten if it looks for something else, or was deleted."""
        old, self.rule = self.rule, change.of(self.rule)
        if change.anew:
            self.budget_began, self.budget_spent, self.budget_held = None, 0, 0
        for judge in self.judges.values():
            judge.cool_otherwise(old, change.at)
        looks = [word for word in {*old, *self.rule} if word not in _KEPT]
        if change.anew or any(old.get(word) != self.rule.get(word) for word in looks):
            self.judges.clear()
            self.began = change.at
            self.__post_init__()

    def hear(self, fact: Fact, now: float) -> None:
        for keys in _keys(self.rule["for_each"], fact) if "for_each" in self.rule else [()]:
            self._judge(keys).hear(fact, now)

    def fall_due(self, now: float) -> None:
        for _, judge in sorted(self.judges.items()):
            judge.fall_due(now)

    def pay(self, now: float) -> float | None:
        """Take one firing from the budget; return None, or until when there is nothing left of it.

        Its time begins with a firing, and once it is over, with the next.
        """
        count, per_s = _rate(self.rule["budget"])
        if self.budget_began is None or now >= self.budget_began + per_s:
            self.budget_began, self.budget_spent = now, 0
        if self.budget_spent >= count:
            self.budget_held += 1
            return self.budget_began + per_s
        self.budget_spent += 1
        return None


def _rate(written: str) -> tuple[int, float]:
    count, _, per = written.partition("/")
    return int(count), 1.0 if per == "s" else seconds(per, 0.0)


class _Judge:
    """One key of a rule, from when the rule was adopted or the key first heard of."""

    def __init__(self, court: _Court, keys: tuple[Any, ...], form: Form) -> None:
        self.court, self.keys, self.form = court, keys, form
        self.log: list[Fact] = []
        self.made: list[tuple[Place, Found]] = []
        self.past: list[Verdict] = []
        self.cools: tuple[Verdict, float] | None = None
        """The last firing, and when it was decided, if a cooldown began with it."""
        self.held = 0
        self.looked: tuple[float, int] | None = None

    @property
    def rule(self) -> Rule:
        return self.court.rule

    def hear(self, fact: Fact, now: float) -> None:
        self.log.append(fact)
        if self._says_it_is_over(fact):
            self._over(fact.time, now, (fact.id,), "condition", fact.depth)
        found = self.form.event(fact, self.log, self.made) if self.form.wants(fact) else None
        if found is not None:
            self._come_true(found, now, fact.depth)

    def fall_due(self, now: float) -> None:
        if self.looked == (now, len(self.log)):
            return
        self.looked = now, len(self.log)
        found = self.form.due(now, self.log, self.made)
        if found is not None:
            last = max(found.events, key=lambda fact: fact.place, default=None)
            self._come_true(found, now, last.depth if last is not None else 0)
        if self._quiet_ends(now):
            self._over(now, now, (), "quiet", None)

    def _come_true(self, found: Found, now: float, depth: int) -> None:
        """Tell that the condition has come true (or, of a metric, that it has ceased to be), unless it is held back."""
        self.made.append((Place(now, len(self.log)), found))
        if found.is_over:
            if self._open() is not None and "after" not in self.rule.get("resolve", {}):
                says = "resolve" in self.rule or "on_resolve" in self.rule
                self._over(found.at, now, (), "figure" if says else _UNSAID, None)
            return
        if self.rule.get("paused"):
            return
        if depth >= MAX_DEPTH:
            if depth == MAX_DEPTH:
                self._say("suppressed", found, now, depth, held=1, reason="depth")
            return
        cooldown = seconds(self.rule.get("cooldown"), 0.0)
        if self.cools is not None and cooldown:
            last = self.cools[0]
            until = last.at + cooldown
            if found.at < until and now <= last.decided + cooldown + self.court.lateness:
                self.held += 1
                self._say("suppressed", found, now, depth, held=self.held, reason="cooldown", until=until)
                return
        empty_until = self.court.pay(now)
        if empty_until is not None:
            held = self.court.budget_held
            last = self._say("suppressed", found, now, depth, held=held, reason="budget", until=empty_until)
            if held == 1:
                self._decide(replace(last, what="disabled", at=now))
            return
        fired = self._say("triggered", found, now, depth, held=self.held + self.court.budget_held)
        self.held = self.court.budget_held = 0
        self.cools = (fired, now) if cooldown else None

    def cool_otherwise(self, old: Rule, now: float) -> None:
        """Hear that the rule is another: a cooldown that is over stays over, another one counts from the firing."""
        before = seconds(old.get("cooldown"), 0.0)
        if old.get("cooldown") == self.rule.get("cooldown") or self.cools is None:
            return
        if "cooldown" not in self.rule or now > self.cools[1] + before + self.court.lateness:
            self.cools = None

    def _say(
        self,
        what: str,
        found: Found,
        now: float,
        depth: int,
        *,
        held: int,
        reason: str = "",
        until: float | None = None,
    ) -> Verdict:
        ids = tuple(fact.id for fact in found.events)
        return self._decide(
            Verdict(what, self.keys, found.at, now, ids, found.count, held, reason, until, depth)
        )

    def _decide(self, verdict: Verdict) -> Verdict:
        self.past.append(verdict)
        self.court.past.append(verdict)
        return verdict

    def _firings(self) -> list[Verdict]:
        """Return the firings since the last one that was over."""
        ends = [n for n, verdict in enumerate(self.past) if verdict.what == "resolved"]
        return [v for v in self.past[ends[-1] + 1 if ends else 0 :] if v.what == "triggered"]

    def _open(self) -> Verdict | None:
        """Return the first firing since the last one that was over."""
        if "resolve" not in self.rule and chosen(self.rule) != "metric":
            return None
        return next(iter(self._firings()), None)

    def _says_it_is_over(self, fact: Fact) -> bool:
        """Return whether ``resolve: {on: …}`` ends the open firing; what happened too long before it does not."""
        resolve, opened = self.rule.get("resolve", {}), self._open()
        return (
            "on" in resolve
            and opened is not None
            and fact.fits(resolve)
            and fact.time >= opened.at - self.court.lateness
        )

    def _quiet_ends(self, now: float) -> bool:
        """Return whether nothing of the key has matched, and nothing fired, for ``resolve: {after: …}``."""
        resolve, opened = self.rule.get("resolve", {}), self._open()
        if "after" not in resolve or opened is None:
            return False
        after = seconds(resolve["after"], 0.0)
        if chosen(self.rule) == "metric":
            # Quiet begins when the figure has come back.
            last, found = self.made[-1]
            return found.is_over and last.now + after == now
        heard = [f.recorded for f in self.log if self.form.wants(f)] + [place.now for place, _ in self.made]
        return max(heard) + after == now

    def _over(self, at: float, now: float, ids: tuple[str, ...], reason: str, depth: int | None) -> None:
        """Say that a firing is over. What no event has ended is as deep as the last firing."""
        firings = self._firings()
        deep = firings[-1].depth if depth is None else depth
        self._decide(Verdict("resolved", self.keys, at, now, ids, len(firings), 0, reason, None, deep))
