"""`if` in CEL: decides what `where` cannot say, never raises, never runs away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hark.automations.matching.expression import compile_expression

EVENT: dict[str, Any] = {
    "type": "flow-run.failed", "subject": "flow-run/1",
    "data": {"n": 5, "m": 3, "s": "prod-eu", "tags": ["a", "b"], "run": {"attempt": 2}, "none": None},
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("data.n > data.m", True), ("data.n < data.m", False), ("type.startsWith('flow-run.') && subject != ''", True),
        ("event.data.run.attempt == 2", True), ("data.tags.exists(t, t == 'b')", True), ("data.s.matches('^prod-')", True),
        ("size(data.tags) == 2", True), ("has(data.gone)", False), ("data.none == null", True),
    ],
)  # fmt: skip
def test_an_expression_decides(source: str, holds: bool) -> None:
    """Fields by name, the event as a whole, comprehensions and functions."""
    assert compile_expression(source).holds(EVENT) is holds


@pytest.mark.parametrize(
    ("source", "note"),
    [("data.gone > 1", "missing gone"), ("data.s > 1", "No such overload"), ("data.n", "not true or false"), ("count > 2", "Undefined variable or function: 'count'"), ("1 / (data.n - 5) > 0", "")],
)  # fmt: skip
def test_what_cannot_be_decided_does_not_match_and_says_why(source: str, note: str) -> None:
    """A missing field, wrong types, and results that are no truth value are not matches."""
    outcome = compile_expression(source).decide(EVENT)
    assert not outcome.ok
    assert note in outcome.note


@pytest.mark.parametrize(
    ("source", "data", "holds"),
    [
        ("data.total > data.limit * 2.0 && data.tags.exists(t, t == 'prod')", {"total": 5, "limit": 2, "tags": ["prod"]}, True),
        ("data.total > data.limit * 2.0", {"total": 3, "limit": 2}, False),
        ("data.n / 2 > 2", {"n": 5.5}, True), ("data.n + 1 > data.m", {"n": 1.5, "m": 2}, True),
        ("data.a[1][0] * 1.5 == 3.0 && data.n * 2 == 5.0", {"a": [0, [2]], "n": 2.5}, True), ("data.a[0] * 1.5 == 3.0 && data.s == 'a1'", {"a": [2], "s": "a1"}, True),
        ("data.n % 2 == 0", {"n": 4}, True), ("data.s + 1 == 'x'", {"s": "x"}, False),
        ("data.n * 1.5 > 1.0", {"n": 1 << 60}, True), ("data.n * 1.5 > 1.0", {"n": True}, False),
    ],
)  # fmt: skip
def test_whole_and_broken_numbers_are_one_kind(source: str, data: dict[str, Any], holds: bool) -> None:
    """JSON tells 2 from 2.0 by chance of the sender; arithmetic on either gives the same."""
    outcome = compile_expression(source).decide({"data": data})
    assert outcome.ok is holds, outcome


def test_actions_see_key_and_count() -> None:
    """Extra names go before attributes."""
    assert compile_expression("count > 2 && key == 'etl'").holds(EVENT, {"count": 3, "key": "etl"})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "is empty"), ("data.n >", "does not parse: .* something is missing at the end$"),
        ("data.n = 1", "write `==` to compare"), ("data.n > 1 and data.m", "CEL writes `&&` for `and`"),
        ('data.n == "and" ||', "missing at the end$"), ("dta.n > 1", "did you mean 'data'"), ("x" * 3000, "too long"),
        ("(" * 60 + "true" + ")" * 60, "nests deeper"), ("!" * 100 + "true", "nests deeper"),
        ("data.x.all(a, data.x.all(b, data.x.all(c, true)))", "comprehensions nest"),
    ],
)  # fmt: skip
def test_what_cannot_be_bounded_is_refused(source: str, words: str) -> None:
    """Faults and runaways are refused when they are written."""
    with pytest.raises(ValueError, match=words):
        compile_expression(source)


def test_a_comprehension_over_huge_arrays_is_not_run() -> None:
    """A quadratic walk over ten thousand elements is refused before it begins."""
    expression = compile_expression("data.x.all(a, data.x.all(b, a + b >= 0))")
    ran: list[object] = []

    class Counted:
        def execute(self, context: Any) -> object:
            ran.append(context)
            return expression.program.execute(context)

    counted = replace(expression, program=Counted())  # type: ignore[arg-type]
    outcome = counted.decide({"data": {"x": list(range(10_000))}})
    assert not outcome.ok
    assert "too large" in outcome.note
    assert ran == []
    assert counted.holds({"data": {"x": list(range(50))}})
    assert len(ran) == 1
