"""One rule and one history: what the compiled fold decides, and what ``oracle`` says it must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hark.automations.analysis.backtest import Replay
from hark.automations.folding.decision import Decision, disabled_event
from hark.automations.folding.fold import Fold, FoldConfig
from hark.automations.model import parse_automation
from hark.automations.problem import RuleInvalid

from tests.automations.histories import FREE, LATENESS_S, RULES, Pick, changes_of, history, row_of
from tests.automations.oracle import MAX_DEPTH, Change, Verdict, verdicts
from tests.automations.oracle_form import Fact, Rule
from tests.automations.oracle_metric import BEGIN

__all__ = ["Case", "drawn", "made_small"]

AFTER_S = 20.0
"""How long time runs on after the last event."""


@dataclass(frozen=True)
class Case:
    """A rule, what is recorded, and where the fold is taken down and restored.

    Attributes:
        cuts: before which events, by place; and whether the state is put down in one piece, or else bit by bit.
        changes: of the rule, in order; one before the same event as a cut is made after it.
    """

    rule: dict[str, Any]
    facts: tuple[Fact, ...]
    lateness: float
    cuts: dict[int, bool]
    changes: tuple[Change, ...] = ()

    def __str__(self) -> str:
        """Return it as a person reads it."""
        lines = [f"rule {self.rule}, lateness {self.lateness:g}, restored before {self.cuts}"]
        lines += [
            f"  {f.id}: {f.type} recorded {f.recorded:g}, happened {f.time:g}, {f.subject} {f.depth} {f.data}"
            for f in self.facts
        ]
        lines += [
            f"  before {self.facts[c.place].id}: {'a new rule, ' if c.anew else ''}{c.words}"
            for c in self.changes
        ]
        return "\n".join(lines)

    @property
    def until(self) -> float:
        return self.facts[-1].recorded + AFTER_S

    @property
    def differs(self) -> bool:
        """Whether fold and oracle disagree; False for a rule that does not stand."""
        try:
            return self.does() != self.must()
        except RuleInvalid:
            return False

    def must(self) -> dict[str, list[Verdict]]:
        """Return what has to be decided, by key."""
        return _by_key(
            verdicts(
                self.rule, list(self.facts), until=self.until, lateness=self.lateness, changes=self.changes
            )
        )

    def does(self) -> dict[str, list[Verdict]]:
        """Return what the fold decides, by key."""
        config = FoldConfig(allowed_lateness_s=self.lateness, say_all=True, max_causal_depth=MAX_DEPTH)
        rule = parse_automation(self.rule, name="r")
        written: Rule = self.rule
        replay = Replay([rule], begins=BEGIN, config=config, keep=10_000)
        for fact in self.facts:
            if fact.place in self.cuts:
                replay.fold = _restored(replay.fold, whole=self.cuts[fact.place])
            for change in self.changes:
                if change.place == fact.place:
                    written = change.of(written)
                    replay.pass_time(BEGIN + fact.recorded)
                    if change.anew:
                        replay.fold.remove("r")
                    replay.fold.adopt(parse_automation(written, name="r"))
            replay.row(row_of(fact), seq=fact.place + 1, recorded=BEGIN + fact.recorded)
        if len(self.facts) in self.cuts:
            replay.fold = _restored(replay.fold, whole=self.cuts[len(self.facts)])
        replay.finish(BEGIN + self.until)
        decisions = replay.outcomes["r"].decisions
        ids = [decision.id for decision in decisions]
        # Made anew at the very same moment, a rule may say the very same thing, and it is the same.
        if not any(change.anew for change in self.changes):
            assert len(ids) == len(set(ids)), f"two decisions under one id are stored as one\n{self}"
        return _by_key([verdict for decision in decisions for verdict in _told(decision)])


def drawn(pick: Pick, form: str) -> Case:
    """Return a case whose rule has this form."""
    rule, facts = RULES[form](pick), history(pick, form)
    cuts = {pick(range(len(facts) + 1)): pick([True, False]) for _ in range(pick(range(4)))}
    return Case(rule, tuple(facts), pick(LATENESS_S), cuts, tuple(changes_of(pick, rule, facts)))


def _restored(fold: Fold, *, whole: bool) -> Fold:
    if whole:
        return Fold.restore(fold.dump_definitions(), fold.dump_state(), fold.config)
    snapshot = fold.snapshot()
    parts = []
    while not snapshot.is_done:
        part = snapshot.take(1e-9)
        if part is not None:
            parts.append(part)
    fold.end_snapshot(snapshot)
    return Fold.restore(fold.dump_definitions(), parts, fold.config)


def _verdict(decision: Decision) -> Verdict:
    return Verdict(
        decision.what, decision.keys, round(decision.at - BEGIN, 6), round(decision.recorded - BEGIN, 6),
        tuple(ref.id for ref in decision.refs), decision.count,
        decision.suppressed if decision.what != "resolved" else 0, decision.reason,
        round(decision.until - BEGIN, 6) if decision.until is not None else None, decision.depth,
    )  # fmt: skip


def _told(decision: Decision) -> Iterator[Verdict]:
    """Yield a decision, and that the rule stops if that is said with it."""
    verdict = _verdict(decision)
    yield verdict
    if disabled_event(decision) is not None:
        yield replace(verdict, what="disabled", at=verdict.decided)


def _by_key(found: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    out: dict[str, list[Verdict]] = {}
    for verdict in found:
        out.setdefault(repr(verdict.keys), []).append(verdict)
    return out


def made_small(case: Case) -> Case:
    """Return a case as small as can be found in which fold and oracle still differ."""
    while True:
        less = next((one for one in _smaller(case) if one.differs), None)
        if less is None:
            return case
        case = less


def _smaller(case: Case) -> Iterator[Case]:
    if case.cuts:
        yield replace(case, cuts={})
    for i in range(len(case.facts) if len(case.facts) > 1 else 0):
        left = case.facts[:i] + case.facts[i + 1 :]
        moved = [
            replace(c, place=(n := c.place - (c.place > i)), at=left[n].recorded)
            for c in case.changes
            if c.place - (c.place > i) < len(left)
        ]
        facts = tuple(replace(fact, place=n) for n, fact in enumerate(left))
        yield replace(case, facts=facts, changes=tuple(moved))
    for i in range(len(case.changes)):
        yield replace(case, changes=case.changes[:i] + case.changes[i + 1 :])
    for word in (
        "for_each",
        "cooldown",
        "resolve",
        "allowed_lateness",
        "where",
        "if",
        "for",
        "on_resolve",
        "paused",
    ):
        if word in case.rule:
            yield replace(case, rule={w: v for w, v in case.rule.items() if w != word})
    if case.rule["budget"] != FREE:
        yield replace(case, rule={**case.rule, "budget": FREE})
    for i, fact in enumerate(case.facts):
        if fact.depth:
            yield replace(case, facts=(*case.facts[:i], replace(fact, depth=0), *case.facts[i + 1 :]))
    for rule in _lighter(case.rule):
        if all(word in rule or word not in case.rule for word in ("count", "within")):
            yield replace(case, rule=rule)
    for i, fact in enumerate(case.facts):
        if fact.time != fact.recorded:
            in_time = replace(fact, time=fact.recorded)
            yield replace(case, facts=(*case.facts[:i], in_time, *case.facts[i + 1 :]))


def _lighter(written: Any) -> Iterator[Any]:
    """Yield a part of a rule with one thing less in it."""
    if isinstance(written, dict):
        for word, value in written.items():
            if word in ("where", "if", "count", "within", "max_wait", "max_events", "at_least"):
                lost = ("count", "within") if word == "count" else (word,)
                yield {w: v for w, v in written.items() if w not in lost}
            for less in _lighter(value):
                yield {**written, word: less}
    elif isinstance(written, list):
        for i, item in enumerate(written):
            for less in _lighter(item):
                yield [*written[:i], less, *written[i + 1 :]]
            if len(written) > 2:
                yield written[:i] + written[i + 1 :]
