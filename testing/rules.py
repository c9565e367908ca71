"""Rules in tests: one over events of yours, or several over a history; in virtual time, nothing is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..duration import seconds_of
from ..errors import DefinitionError, UnknownName

if TYPE_CHECKING:
    from ..automations import Automation, Backtest, TestOutcome
    from ..bus.event import Event

__all__ = ["RuleLike", "replay", "rule_named", "rule_test"]

RuleLike: TypeAlias = "Automation | Mapping[str, Any] | str | Path"
"""A rule: the model, its settings, or the file it stands in (with ``name`` where that has several)."""


def rule_named(rule: RuleLike, name: str | None = None) -> Automation:
    """Return a rule.

    Args:
        name: which one of a file; or how to call one that is given by its settings.
    Raises:
        DefinitionError: it is none, or the file has faults or several rules.
        UnknownName: the file has no rule of this name.
    """
    from ..automations.model import Automation, parse_automation

    if isinstance(rule, Automation):
        return rule
    if isinstance(rule, Mapping):
        return parse_automation(dict(rule), name=name or str(rule.get("name", "rule")))
    rules = rules_in(Path(rule))
    if name is None:
        if len(rules) != 1:
            raise DefinitionError(
                f"{rule} has {len(rules)} rules", hint=f"say which: name= one of {', '.join(sorted(rules))}"
            )
        return next(iter(rules.values()))
    if name not in rules:
        raise UnknownName("automation", name, known=sorted(rules))
    return rules[name]


def rules_in(path: Path) -> dict[str, Automation]:
    """Return the rules of a file or folder by name; what they refer to need not be defined there.

    Raises:
        ManifestInvalid: with every fault there is.
    """
    from ..automations.model import Automation
    from ..server.fault import ManifestInvalid
    from ..server.manifest import check_manifest

    manifest, faults = check_manifest(path, references=False)
    if any(not fault.is_warning for fault in faults):
        raise ManifestInvalid(faults)
    return {
        name: Automation.model_validate(manifest.records["automations", name].value)
        for name in manifest.names("automations")
    }


def rule_test(
    rule: RuleLike,
    *,
    given: Sequence[Mapping[str, Any]] | None = None,
    expect: Any = None,
    until: float | str | None = None,
    name: str | None = None,
) -> list[TestOutcome]:
    """Play events into one rule in virtual time and fail unless it decides what is expected.

    >>> rule_test(
    ...     {"on": "order.paid", "count": 3, "within": "10m", "do": []},
    ...     given=[{"type": "order.paid"}, {"at": "1m", "same": 0}, {"at": "2m", "same": 0}],
    ...     expect={"fired": 1, "at": "2m"},
    ... )

    Args:
        given: as in a rule's ``tests:``, each with ``at`` (an offset), ``type``, ``data`` …, or ``same`` with the index of
            an earlier one. None: the tests written inside the rule are run instead.
        expect: ``"fired"``, ``"not fired"``, ``{"fired": 2, "key": "etl"}`` or a list of such, as in ``tests:``.
        until: how long to go on after the first moment. Default: until the rule has nothing to wait for any more.
        name: of the rule, see ``rule_named``.
    Returns:
        What each test came to, with the decisions.
    Raises:
        AssertionError: why it failed, and how each event fared.
        DefinitionError: the rule or the test is none.
    """
    from ..automations.analysis.ruletest import run_test, run_tests
    from ..automations.given import RuleTest

    found = rule_named(rule, name)
    if given is None:
        outcomes = run_tests(found)
        if not outcomes:
            raise AssertionError(f"rule {found.name!r} has no tests: give events, or write `tests:` into it")
    else:
        written: dict[str, Any] = {"given": list(given), "expect": "fired" if expect is None else expect}
        if until is not None:
            written["until"] = until
        outcomes = [run_test(found, RuleTest.model_validate(written))]
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if failed:
        raise AssertionError("\n".join(str(outcome) for outcome in failed))
    return outcomes


def replay(
    events: Iterable[Event | Mapping[str, Any]] | Path | str,
    *rules: RuleLike,
    until: float | str | None = None,
) -> Backtest:
    """Return what rules decide over a history: ``replay(events, rule).rules["my-rule"].fired``.

    Args:
        events: in order, or a file with one JSON event on each line, as ``hark events ls --json`` and ``hark backtest``
            know it. One without a ``time`` happens when the one before it did.
        until: how long to let pass after the last event. Default: until no rule has anything to wait for.
    """
    from ..automations.analysis.backtest import Replay
    from ..bus.event import parse_time

    automations = [rule_named(rule) for rule in rules]
    rows = [_row(event) for event in (_lines(events) if isinstance(events, str | Path) else events)]
    at = first = _time_of(rows[0], parse_time) or _START if rows else _START
    played = Replay(automations, begins=first)
    for seq, row in enumerate(rows, 1):
        # The log's order is the one that counts: an event that happened earlier is one that came late.
        at = max(at, _time_of(row, parse_time) or at)
        played.row(row, seq=seq, recorded=at)
    wait = seconds_of(until) if until is not None else max((a.settles_s for a in automations), default=0.0)
    return played.finish(at + wait)


_START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def _lines(path: Path | str) -> Iterable[Mapping[str, Any]]:
    import orjson

    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        if line.strip():
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as exc:
                raise DefinitionError(f"{path}:{number}: no JSON: {exc}") from exc
            yield value


def _row(event: Event | Mapping[str, Any]) -> dict[str, Any]:
    from ..bus.event import Event, lacking
    from ..vocabulary import new_id

    if isinstance(event, Event):
        return dict(event.to_dict())
    row = {"specversion": "1.0", "source": "/test", "id": new_id(), **event}
    if (why := lacking(row)) is not None:
        raise DefinitionError(f"{event!r:.200} is no event: {why}")
    return row


def _time_of(row: Mapping[str, Any], parse: Any) -> float | None:
    text = row.get("time")
    return parse(text).timestamp() if text is not None else None
