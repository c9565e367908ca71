"""Rules and histories for ``oracle``: few words and few times, so that things coincide.

Everything is a choice from a few values, made by ``pick``: Hypothesis makes it in the suite, so that what fails is made
small; a seeded generator makes it in long runs, at a tenth of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from hark.bus.event import format_time

from tests.automations.oracle import TICK_S
from tests.automations.oracle_form import EXPRESSIONS, Fact

__all__ = ["BEGIN", "LATENESS_S", "RULES", "Pick", "history", "row_of"]

T = TypeVar("T")
BEGIN = 1_767_225_600.0
LATENESS_S = (0.0, 0.5, 2.0, 5.0)
_HOUR_S = 3600.0


class Pick(Protocol):
    """Chooses one of some values; the simplest stands first."""

    def __call__(self, values: Sequence[T], /) -> T: ...


def history(pick: Pick, form: str, *, most: int = 14) -> list[Fact]:
    """Return events in the order of the log: several at one moment, late ones, keys interleaved."""
    now, facts = 0.0, []
    for n in range(pick(range(1, most + 1))):
        now += pick([0.0, 0.0, TICK_S, 0.5, 1.0, 1.5, 2.0, 4.0, 7.5 if form == "runs" else 8.0])
        late = pick([0.0, 0.0, 0.0, 0.0, TICK_S, 0.5, 1.0, 2.0, 2.25, 4.0, 5.0, 12.0])
        if form == "runs":
            type_ = pick(["flow-run.completed", "flow-run.completed", "flow-run.failed", "flow-run.crashed"])
            run = {"duration_s": pick([1.0, 2.0, 3.0, 5.0])} if pick(range(6)) else {}
            data: dict[str, Any] = {"k": pick("pq"), "n": 1, "run": run}
        else:
            type_ = pick(["a.x", "a.y", "b.z"])
            data = {"k": pick(["p", "p", "q", 1, "1", ["p", "q"], [], None]), "n": pick([0, 1, 2, None])}
        data = {word: value for word, value in data.items() if value is not None or pick([True, False])}
        facts.append(Fact(n, f"e{n}", type_, now, now - late, data))
    return facts


def row_of(fact: Fact) -> dict[str, Any]:
    """Return an event as it stands in the log. Of those that were not late some say so, some say nothing, some lie."""
    row: dict[str, Any] = {
        "specversion": "1.0", "type": fact.type, "source": "/t", "id": fact.id, "data": fact.data,
    }  # fmt: skip
    if fact.time != fact.recorded or fact.place % 3 == 0:
        row["time"] = _stamp(fact.time)
    elif fact.place % 3 == 1:
        row["time"] = _stamp(fact.time + _HOUR_S)
    return row


def _stamp(at: float) -> str:
    return format_time(datetime.fromtimestamp(BEGIN + at, UTC))


_ON: list[Any] = ["a.x", "a.x", "a.y", "a.*", "a.>", ["a.x", "b.z"], ">"]
_WHERE: list[dict[str, Any]] = [
    {"data.n": ">= 1"}, {"data.k": ["p", 1]}, {"data.k": {"not": "p"}}, {"data.k": "p"}, {"data.n": 0},
]  # fmt: skip
_BACK: list[dict[str, Any]] = [
    {"data.k": "{{ first.data.k }}"},
    {"data.k": "{{ first.data.k }}", "data.n": ">= {{ first.data.n }}"},
    {"data.n": "{{ first.data.n }}"},
    {"data.k": {"not": "{{ first.data.k }}"}},
    {"data.n": ">= {{ first.data.n }}"},
]
_BACK_FURTHER: list[dict[str, Any]] = [
    {"data.k": "{{ then.data.k }}"},
    {"data.k": "{{ first.data.k }}", "data.n": "{{ then.data.n }}"},
]


def _once_in(pick: Pick, n: int) -> bool:
    return pick(range(n)) == n - 1


def _add(pick: Pick, rule: dict[str, Any], word: str, values: Sequence[Any], *, once_in: int = 4) -> None:
    if _once_in(pick, once_in):
        rule[word] = pick(values)


def _pattern(pick: Pick, on: Sequence[Any] = _ON) -> dict[str, Any]:
    pattern: dict[str, Any] = {"on": pick(on)}
    _add(pick, pattern, "where", _WHERE)
    _add(pick, pattern, "if", sorted(EXPRESSIONS), once_in=6)
    return pattern


def _dressed(pick: Pick, rule: dict[str, Any]) -> dict[str, Any]:
    """Add what goes with every form."""
    _add(pick, rule, "for_each", ["data.k", "data.k", "type", ["data.k", "data.n"]], once_in=2)
    _add(pick, rule, "cooldown", ["0.5s", "2s", "6s"])
    _add(pick, rule, "allowed_lateness", ["0s", "1s", "5s"], once_in=6)
    if _once_in(pick, 3):
        resolve = _pattern(pick, ["b.z", "a.y", "a.x"]) if _once_in(pick, 2) else {}
        if not resolve or _once_in(pick, 2):
            resolve["after"] = pick(["0.5s", "1s", "4s"])
        rule["resolve"] = resolve
    return {**rule, "budget": "100000/s"}


def _counting(pick: Pick) -> dict[str, Any]:
    rule = _pattern(pick)
    count = pick([2, 1, 3, 4])
    if count > 1:
        rule |= {"count": count, "within": pick(["0.5s", "1s", "2s", "4s", "8s"])}
    return rule


def _absence(pick: Pick) -> dict[str, Any]:
    answers: list[Any] = ["a.y", "a.y", ["a.x", "a.y"], "a.x", "b.*"]
    return {
        "after": _pattern(pick, ["a.x", "a.*"]) if _once_in(pick, 2) else "a.x",
        "expect": _pattern(pick, answers) if _once_in(pick, 2) else pick(answers),
        "within": pick(["0.5s", "1s", "2.5s", "4s", "8s"]),
    }


def _heartbeat(pick: Pick) -> dict[str, Any]:
    return {
        "expect": _pattern(pick) if _once_in(pick, 2) else "a.x",
        "within": pick(["1s", "2.5s", "4s", "8s"]),
    }


def _debounce(pick: Pick) -> dict[str, Any]:
    debounce: dict[str, Any] = {"quiet": pick(["0.25s", "0.5s", "1s", "2s"])}
    _add(pick, debounce, "max_wait", ["2s", "3.5s"], once_in=2)
    _add(pick, debounce, "max_events", [1, 2, 3], once_in=2)
    return {**_pattern(pick), "debounce": debounce}


def _counted(pick: Pick, step: dict[str, Any], most: int) -> dict[str, Any]:
    if _once_in(pick, 4):
        step["count"] = pick(range(2, most + 1))
        _add(pick, step, "within", ["0.5s", "2s"], once_in=2)
    return step


def _sequence(pick: Pick) -> dict[str, Any]:
    steps = [_counted(pick, {"as": "first", **_pattern(pick)}, 3)]
    for n in range(pick([1, 2])):
        step = _pattern(pick)
        if n == 0:
            step["as"] = "then"
        _add(pick, step, "where", _BACK if n == 0 else _BACK + _BACK_FURTHER, once_in=2)
        steps.append(_counted(pick, step, 3))
    return {"sequence": steps, "within": pick(["1s", "2s", "4s", "8s"])}


def _branch(pick: Pick, depth: int) -> Any:
    kind = pick(["text", "on", "on", "on", "sequence", "any_of", "all_of"][: 4 if depth > 1 else 7])
    if kind == "text":
        return pick(["a.x", "a.y", "b.z"])
    if kind == "on":
        pattern = _pattern(pick)
        _add(pick, pattern, "count", [1, 2])
        return pattern
    if kind == "sequence":
        return {"sequence": [_counted(pick, _pattern(pick), 2) for _ in range(2)]}
    return _group(pick, depth + 1)


def _group(pick: Pick, depth: int = 0) -> dict[str, Any]:
    branches = [_branch(pick, depth) for _ in range(pick([2, 1, 3]))]
    if _once_in(pick, 2):
        return {"all_of": branches}
    if _once_in(pick, 2):
        return {"any_of": branches}
    return {"any_of": {"need": pick(range(len(branches), 0, -1)), "of": branches}}


def _grouped(pick: Pick) -> dict[str, Any]:
    return {**_group(pick), "within": pick(["0.5s", "1s", "2s", "4s", "8s"])}


def _metric(pick: Pick) -> dict[str, Any]:
    metric = {"measure": "count", "on": pick(_ON), "over": pick(["15s", "30s"])}
    _add(pick, metric, "where", _WHERE)
    rule: dict[str, Any] = {"metric": metric, "is": pick(["> 2", ">= 1", "< 3", "< 1", ">= 4"])}
    _add(pick, rule, "for", ["0.5s", "3s", "6s"], once_in=2)
    _add(pick, rule, "on_resolve", [[{"notify": "x"}]], once_in=2)
    return rule


def _runs(pick: Pick) -> dict[str, Any]:
    measure = pick(["failure_rate", "p50_duration", "p95_duration", "avg_duration"])
    metric: dict[str, Any] = {"measure": measure, "over": pick(["15s", "30s"])}
    _add(pick, metric, "at_least", [2, 3], once_in=2)
    limits = ["> 49%", ">= 50%", "< 20%"] if measure == "failure_rate" else ["> 2s", ">= 2s", "< 3s"]
    rule: dict[str, Any] = {"metric": metric, "is": pick(limits)}
    _add(pick, rule, "for", ["1s", "6s"], once_in=2)
    _add(pick, rule, "on_resolve", [[{"notify": "x"}]], once_in=2)
    return rule


_FORMS: dict[str, Callable[[Pick], dict[str, Any]]] = {
    "counting": _counting, "absence": _absence, "heartbeat": _heartbeat, "debounce": _debounce,
    "sequence": _sequence, "group": _grouped, "metric": _metric, "runs": _runs,
}  # fmt: skip


def _maker(made: Callable[[Pick], dict[str, Any]]) -> Callable[[Pick], dict[str, Any]]:
    return lambda pick: _dressed(pick, made(pick))


RULES: dict[str, Callable[[Pick], dict[str, Any]]] = {name: _maker(made) for name, made in _FORMS.items()}
