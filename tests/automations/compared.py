"""One rule and one history: what the compiled fold decides, and what ``oracle`` says it must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hark.automations.backtest import Replay
from hark.automations.decision import Decision
from hark.automations.fold import Fold, FoldConfig
from hark.automations.model import parse_automation
from hark.automations.problem import RuleInvalid

from tests.automations.histories import BEGIN, LATENESS_S, RULES, Pick, history, row_of
from tests.automations.oracle import Verdict, verdicts
from tests.automations.oracle_form import Fact

__all__ = ["Case", "drawn", "made_small"]

AFTER_S = 20.0
"""How long time runs on after the last event."""


@dataclass(frozen=True)
class Case:
    """A rule, what is recorded, and where the fold is taken down and restored.

    Attributes:
        cuts: before which events, by place; and whether the state is put down in one piece, or else bit by bit.
    """

    rule: dict[str, Any]
    facts: tuple[Fact, ...]
    lateness: float
    cuts: dict[int, bool]

    def __str__(self) -> str:
        """Return it as a person reads it."""
        lines = [f"rule {self.rule}, lateness {self.lateness:g}, restored before {self.cuts}"]
        lines += [
            f"  {f.id}: {f.type} recorded {f.recorded:g}, happened {f.time:g}, {f.data}" for f in self.facts
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
        return _by_key(verdicts(self.rule, list(self.facts), until=self.until, lateness=self.lateness))

    def does(self) -> dict[str, list[Verdict]]:
        """Return what the fold decides, by key."""
        config = FoldConfig(allowed_lateness_s=self.lateness, say_all=True)
        rule = parse_automation(self.rule, name="r")
        replay = Replay([rule], begins=BEGIN, config=config, keep=10_000)
        for fact in self.facts:
            if fact.place in self.cuts:
                replay.fold = _restored(replay.fold, whole=self.cuts[fact.place])
            replay.row(row_of(fact), seq=fact.place + 1, recorded=BEGIN + fact.recorded)
        if len(self.facts) in self.cuts:
            replay.fold = _restored(replay.fold, whole=self.cuts[len(self.facts)])
        replay.finish(BEGIN + self.until)
        return _by_key([_verdict(decision) for decision in replay.outcomes["r"].decisions])


def drawn(pick: Pick, form: str) -> Case:
    """Return a case whose rule has this form."""
    rule, facts = RULES[form](pick), history(pick, form)
    cuts = {pick(range(len(facts) + 1)): pick([True, False]) for _ in range(pick(range(4)))}
    return Case(rule, tuple(facts), pick(LATENESS_S), cuts)


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
    )  # fmt: skip


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
        yield replace(case, facts=tuple(replace(fact, place=n) for n, fact in enumerate(left)))
    for word in ("for_each", "cooldown", "resolve", "allowed_lateness", "where", "if", "for"):
        if word in case.rule:
            yield replace(case, rule={w: v for w, v in case.rule.items() if w != word})
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
