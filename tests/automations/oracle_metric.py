"""When a metric fires and when it is over, by definition: looked at at every instant and with every event."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from functools import cache

from tests.automations.oracle_form import MISSING, Fact, Found, Made, Simple, seconds

__all__ = ["BEGIN", "Metric"]

BEGIN = 1_767_225_600.0
"""What 0 means on the clocks that events name."""
_GOOD = ("flow-run.completed", "flow-run.cached")
_BAD = ("flow-run.failed", "flow-run.crashed", "flow-run.timed-out")
_WAITS = ("scheduled", "late", "awaiting-retry", "awaiting-concurrency-slot", "resuming")
_SHARE = {
    "p50_duration": Fraction(1, 2), "p95_duration": Fraction(95, 100), "p99_duration": Fraction(99, 100),
    "lateness": Fraction(95, 100),
}  # fmt: skip
_COMPARE: dict[str, Callable[[Fraction, Fraction], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip


def _limit(written: str) -> tuple[str, Fraction]:
    """Return the sign and the figure itself, not the nearest that a float can hold."""
    sign, bound = written.split()
    if "/" in bound:
        count, _, per = bound.partition("/")
        return sign, Fraction(count) / {"s": 1, "m": 60, "h": 3600}[per]
    return sign, Fraction(bound[:-1]) / 100 if bound[-1] == "%" else Fraction(bound.removesuffix("s"))


class Metric(Simple):
    """``metric`` … ``is`` … ``for``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.metric = self.rule["metric"]
        self.measure = self.metric["measure"]
        self.over = seconds(self.metric.get("over"), 0.0)
        self.sign, self.bound = _limit(self.rule["is"])
        self.looks: list[tuple[float, bool]] = []

    def wants(self, fact: Fact) -> bool:
        if self.measure in ("count", "event_rate"):
            on = self.metric["on"]
        elif self.measure == "queue_depth":
            on = "flow-run.*"
        else:
            on = "flow-run.running" if self.measure == "lateness" else [*_GOOD, *_BAD]
        return fact.fits({"on": on, "where": self.metric.get("where", {})}) and (
            (self.measure not in _SHARE and self.measure != "avg_duration") or self.value(fact) is not None
        )

    def value(self, fact: Fact) -> Fraction | None:
        """Return the time that a run took, or by how much it began too late."""
        if self.measure != "lateness":
            took = fact.get("data.run.duration_s")
            return None if took is MISSING else Fraction(took)
        due, began = fact.get("data.run.scheduled_at"), fact.get("data.run.started_at")
        if MISSING in (due, began):
            return None
        return max(Fraction(0), Fraction(_moment(began)) - Fraction(_moment(due)))

    def due(self, now: float, log: list[Fact], made: Made) -> Found | None:
        return self.look(now, log, made)

    def event(self, fact: Fact, log: list[Fact], made: Made) -> Found | None:
        return self.look(fact.recorded, log, made)

    def look(self, now: float, log: list[Fact], made: Made) -> Found | None:
        """It fires once the figure has passed the limit at every look for so long, and is over at the first it has not."""
        samples = [f for f in log if self.wants(f)]
        if "for_each" in self.rule and not samples:
            return None
        held = self.waiting(now, samples) if self.measure == "queue_depth" else self.window(now, samples)
        figure = self.figure(now, held, samples)
        self.looks.append((now, figure is not None and _COMPARE[self.sign](figure, self.bound)))
        fires = bool(made) and not made[-1][1].is_over
        last = tuple(samples[-1:])
        if not self.looks[-1][1]:
            return Found(now, last, len(held), is_over=True) if fires else None
        run = list(itertools.takewhile(lambda look: look[1], reversed(self.looks)))
        if not fires and now - run[-1][0] >= seconds(self.rule.get("for"), 0.0):
            return Found(now, last, len(held))
        return None

    def window(self, now: float, samples: list[Fact]) -> list[Fact]:
        """Return the samples of the window, which slides in sixtieths of itself."""
        step = self.over / 60
        begins = math.floor(now / step + 1e-9) * step - self.over
        return [f for f in samples if f.recorded >= begins]

    def waiting(self, now: float, samples: list[Fact]) -> list[Fact]:
        """Return of each run that is due and has not started the last that was heard of it."""
        last = {fact.subject: fact for fact in samples}
        out = []
        for fact in last.values():
            due = fact.get("data.run.scheduled_at")
            if fact.type.removeprefix("flow-run.") in _WAITS and (due is MISSING or _moment(due) <= now):
                out.append(fact)
        return out

    def figure(self, now: float, held: list[Fact], samples: list[Fact]) -> Fraction | None:
        """Return the figure, None if it cannot be said yet."""
        n = len(held)
        if self.measure == "queue_depth":
            return Fraction(n)
        if self.measure in ("count", "event_rate"):
            began = samples[0].recorded if "for_each" in self.rule else self.began
            if self.sign[0] == "<" and now < began + self.over:
                return None  # too early to say that little came
            return Fraction(n) if self.measure == "count" else Fraction(n) / Fraction(self.over)
        if n < self.metric.get("at_least", 1):
            return None
        if self.measure in ("failure_rate", "success_rate"):
            bad = len([f for f in held if f.type in _BAD])
            return Fraction(bad if self.measure == "failure_rate" else n - bad, n)
        values = sorted(v for f in held if (v := self.value(f)) is not None)
        if self.measure == "avg_duration":
            return Fraction(sum(values), n)
        return next(v for i, v in enumerate(values, 1) if i >= _SHARE[self.measure] * n)


@cache
def _moment(written: str) -> float:
    return datetime.fromisoformat(written).timestamp() - BEGIN
