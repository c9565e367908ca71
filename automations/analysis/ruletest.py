"""Running the tests written into a rule, in virtual time: a day of waiting takes no time at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ...bus.event import format_time
from ...duration import format_duration
from ...vocabulary import JsonValue
from ..folding.decision import Decision
from ..folding.fold import Fold, FoldConfig, keys_of
from ..model import Automation, Expected, GivenEvent, RuleTest
from .explain import describe_offset, explain_event

__all__ = ["START", "TestOutcome", "play", "run_test", "run_tests"]

START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""The first moment of virtual time."""

_TOLERANCE_S = 0.0005


@dataclass(frozen=True, slots=True)
class TestOutcome:
    """What a test came to. ``problems`` are empty when it passed; ``notes`` say how each event fared otherwise."""

    __test__ = False  # not for pytest to collect

    automation: str
    name: str
    index: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    decisions: tuple[Decision, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    passed = ok

    @property
    def message(self) -> str:
        """Why it failed, on several lines; empty when it passed."""
        return "\n".join([*self.problems, *(f"  {note}" for note in self.notes)]) if self.problems else ""

    def __str__(self) -> str:
        head = f"{self.automation}, {self.name}: {'ok' if self.ok else 'failed'}"
        lines = [head, *(f"  {p}" for p in self.problems)]
        if self.problems:
            lines += [f"    {n}" for n in self.notes]
        return "\n".join(lines)


def run_tests(automation: Automation, *, config: FoldConfig | None = None) -> list[TestOutcome]:
    """Run every inline test of a rule; an empty list if it has none. Pure."""
    return [run_test(automation, test, index=i, config=config) for i, test in enumerate(automation.tests)]


def run_test(
    automation: Automation, test: RuleTest, *, index: int = 0, config: FoldConfig | None = None
) -> TestOutcome:
    """Play the given events into the rule alone and compare what it decides with what is expected."""
    rows = _rows(test.given)
    last = max((at for at, _ in rows), default=0.0)
    # Long enough for the last event to go unanswered, if that is what the rule is about.
    horizon = test.until if test.until is not None else last + automation.settles_s
    windows: dict[int, int] = {}

    def observe(i: int, fold: Fold) -> None:
        keys = keys_of(automation, rows[i][1])
        windows[i] = fold.window(automation.name, keys[0]) if keys else 0

    decisions = play(automation, rows, until=max(horizon, last), config=config, observe=observe)
    problems = [p for expected in test.expect for p in _compare(expected, decisions)]
    notes = _notes(automation, rows, decisions, windows) if problems else []
    return TestOutcome(
        automation.name, test.name or f"test {index}", index, tuple(problems), tuple(notes), tuple(decisions)
    )


def play(
    automation: Automation,
    rows: list[tuple[float, dict[str, Any]]],
    *,
    until: float,
    config: FoldConfig | None = None,
    observe: Callable[[int, Fold], None] | None = None,
) -> list[Decision]:
    """Return what a rule decides about events at offsets (s) from ``START``, stopping at each deadline on the way.

    Args:
        observe: told the index of each event once it has been folded.
    """
    base = config or FoldConfig()
    fold = Fold(
        FoldConfig(
            allowed_lateness_s=base.allowed_lateness_s, max_causal_depth=base.max_causal_depth, budget=base.budget,
            budget_per_s=base.budget_per_s, say_all=True,
        )
    )  # fmt: skip
    fold.tick(START)
    fold.adopt(automation.model_copy(update={"paused": False}))
    decisions: list[Decision] = []

    def advance(to: float) -> None:
        while (deadline := fold.next_deadline()) is not None and deadline <= to:
            decisions.extend(fold.tick(deadline))
        decisions.extend(fold.tick(to))

    for seq, i in enumerate(sorted(range(len(rows)), key=lambda i: rows[i][0]), 1):
        at, row = rows[i]
        advance(START + at)
        decisions += fold.step(row, seq=seq, recorded=START + at)
        if observe is not None:
            observe(i, fold)
    advance(START + until)
    return decisions


def _rows(given: tuple[GivenEvent, ...]) -> list[tuple[float, dict[str, Any]]]:
    """Return the given events as (offset, parsed CloudEvent)."""
    rows: list[tuple[float, dict[str, Any]]] = []
    for i, event in enumerate(given):
        at = event.at
        occurred = event.time if event.time is not None else at
        row: dict[str, Any] = (
            dict(rows[event.same][1]) if event.same is not None else {"specversion": "1.0", "source": "/test"}
        )
        for name in ("type", "source", "subject", "data"):
            value = getattr(event, name)
            if value is not None:
                row[name] = value
        row["id"] = event.id or f"given-{i}"
        row["time"] = format_time(datetime.fromtimestamp(START + occurred, UTC))
        if event.causaldepth:
            row["causaldepth"] = event.causaldepth
        rows.append((at, row))
    return rows


def _is_key(decision: Decision, wanted: Any) -> bool:
    if isinstance(wanted, tuple | list):
        return list(decision.keys) == list(wanted)
    return decision.key == str(wanted) or (len(decision.keys) == 1 and _same(decision.keys[0], wanted))


def _same(left: JsonValue, right: Any) -> bool:
    return isinstance(left, bool) is isinstance(right, bool) and left == right


def _compare(expected: Expected, decisions: list[Decision]) -> list[str]:
    mine = [d for d in decisions if expected.key is None or _is_key(d, expected.key)]
    fired = [d for d in mine if d.what == "triggered"]
    held = [d for d in mine if d.what == "suppressed"]
    whom = f" for key {expected.key!r}" if expected.key is not None else ""
    problems = []
    wanted = expected.fired
    if wanted is None and (expected.count is not None or expected.at is not None):
        wanted = len(expected.at) if expected.at is not None else max(1, len(fired))
    if wanted is not None and len(fired) != wanted:
        others = sorted({d.key for d in decisions if d.what == "triggered"})
        also = f"; it fired for {', '.join(repr(k) for k in others)}" if whom and others and not fired else ""
        problems.append(f"expected to fire {_times(wanted)}{whom}, fired {_times(len(fired))}{also}")
    elif expected.count is not None and fired and fired[-1].count != expected.count:
        problems.append(f"expected count {expected.count}{whom}, it was {fired[-1].count}")
    if expected.at is not None and not problems:
        for want, decision in zip(expected.at, fired, strict=True):
            if abs(decision.at - START - want) > _TOLERANCE_S:
                problems.append(
                    f"expected to fire at {format_duration(want)}{whom}, fired at {describe_offset(decision.at - START)}"
                )
    if expected.suppressed is not None and len(held) != expected.suppressed:
        problems.append(f"expected {_times(expected.suppressed)} suppressed{whom}, was {_times(len(held))}")
    over = [d for d in mine if d.what == "resolved"]
    if expected.resolved is not None and len(over) != expected.resolved:
        problems.append(f"expected {_times(expected.resolved)} resolved{whom}, was {_times(len(over))}")
    return problems


def _times(n: int) -> str:
    return "never" if n == 0 else "once" if n == 1 else f"{n} times"


def _notes(
    automation: Automation,
    rows: list[tuple[float, dict[str, Any]]],
    decisions: list[Decision],
    windows: dict[int, int],
) -> list[str]:
    """Say how each event fared and what was decided, in order of time."""
    notes: list[tuple[float, int, str]] = []
    for i, (at, row) in enumerate(rows):
        looks = explain_event(automation, row)
        takers = [look for look in looks if look.takes_part]
        head = f"event {i} at {describe_offset(at)} ({row['type']})"
        if takers:
            roles = " and ".join(look.role for look in takers)
            key = f", key {', '.join(repr(k) for k in takers[0].keys)}" if automation.for_each else ""
            counted = (
                f", {windows[i]} of {automation.count} in the window"
                if (automation.count or 1) > 1 and windows.get(i)
                else ""
            )
            notes.append((at, 0, f"{head}: matched `{roles}`{key}{counted}"))
        else:
            # Of several patterns, the one whose type fits came closest.
            closest = max(looks, key=lambda look: sum(p.ok for p in look.predicates))
            notes.append((at, 0, f"{head}: no match for `{closest.role}`: {closest.why}"))
    for decision in decisions:
        at = decision.at - START
        key = f" for key {decision.key!r}" if decision.key else ""
        what = {
            "triggered": f"fired{key}, count {decision.count}",
            "resolved": f"resolved{key} by {decision.reason}",
            "suppressed": f"held back{key} by {decision.reason}",
        }[decision.what]
        notes.append((at, 1, f"at {describe_offset(at)}: {what}"))
    return [text for _, _, text in sorted(notes, key=lambda n: n[:2])]
