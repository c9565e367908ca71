"""Rules and histories for ``oracle``: few words and few times, so that things coincide.

Everything is a choice from a few values, made by ``pick``: Hypothesis makes it in the suite, so that what fails is made
small; a seeded generator makes it in long runs, at a tenth of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from hark.bus.event import format_time

from tests.automations.oracle import MAX_DEPTH, TICK_S, Change
from tests.automations.oracle_form import EXPRESSIONS, Fact
from tests.automations.oracle_metric import BEGIN

__all__ = ["FREE", "LATENESS_S", "RULES", "Pick", "changes_of", "history", "row_of"]

T = TypeVar("T")
LATENESS_S = (0.0, 0.5, 2.0, 5.0)
FREE = "100000/s"
"""A budget that nothing spends."""
_HOUR_S = 3600.0


class Pick(Protocol):
    """Chooses one of some values; the simplest stands first."""

    def __call__(self, values: Sequence[T], /) -> T: ...


def history(pick: Pick, form: str, *, most: int = 14) -> list[Fact]:
    """Return events in the order of the log: several at one moment, late ones, keys interleaved."""
    now, facts = 0.0, []
    echoes = _once_in(pick, 4)
    for n in range(pick(range(1, most + 1))):
        now += pick([0.0, 0.0, TICK_S, 0.5, 1.0, 1.5, 2.0, 4.0, 7.5 if form in _OF_RUNS else 8.0])
        late = pick([0.0, 0.0, 0.0, 0.0, TICK_S, 0.5, 1.0, 2.0, 2.25, 4.0, 5.0, 12.0])
        subject, depth = "", pick([0, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1]) if echoes else 0
        if form in _OF_RUNS:
            type_ = f"flow-run.{pick(_OF_RUNS[form])}"
            subject = f"flow-run/{pick('123')}"
            data: dict[str, Any] = {"k": pick("pq"), "n": 1, "run": _run(pick, form, now)}
        else:
            type_ = pick(["a.x", "a.y", "b.z"])
            data = {"k": pick(["p", "p", "q", 1, "1", ["p", "q"], [], None]), "n": pick([0, 1, 2, None])}
        data = {word: value for word, value in data.items() if value is not None or pick([True, False])}
        facts.append(Fact(n, f"e{n}", type_, now, now - late, data, subject, depth))
    return facts


_OF_RUNS: dict[str, Sequence[str]] = {
    "runs": ["completed", "completed", "failed", "crashed", "cached", "timed-out", "cancelled"],
    "lateness": ["running", "running", "running", "completed"],
    "queue": [
        "scheduled",
        "scheduled",
        "pending",
        "late",
        "running",
        "awaiting-retry",
        "completed",
        "cancelled",
    ],
}
"""What becomes of runs in the histories of forms that are about runs."""


def _run(pick: Pick, form: str, now: float) -> dict[str, Any]:
    if form == "runs":
        return {"duration_s": pick([1.0, 2.0, 3.0, 5.0])} if pick(range(6)) else {}
    due = _stamp(now + pick([0.0, 0.0, -1.0, -3.0] if form == "lateness" else [0.0, -3.0, 0.5, 2.0, 6.0]))
    run = {"scheduled_at": due, "started_at": _stamp(now - pick([0.0, 0.5, 2.0]))}
    return {word: value for word, value in run.items() if pick(range(8))}


def changes_of(pick: Pick, rule: dict[str, Any], facts: Sequence[Fact]) -> list[Change]:
    """Return what becomes of a rule while the events come: mostly nothing, or it is edited, paused, made anew."""
    words: list[dict[str, Any]] = [
        {"paused": True}, {"paused": None}, {"cooldown": "1s"}, {"cooldown": "4s"}, {"cooldown": None},
        {"budget": "1/2s"}, {"budget": "2/8s"}, {"description": "x"}, {"allowed_lateness": "3s"},
    ]  # fmt: skip
    if "metric" in rule:
        words += [{"on_resolve": [{"notify": "x"}]}, {"on_resolve": None}]
    some = sorted(pick(range(len(facts))) for _ in range(pick([0, 0, 1, 2, 3])))
    return [
        Change(place, facts[place].recorded, {} if (anew := _once_in(pick, 8)) else pick(words), anew)
        for place in some
    ]


def row_of(fact: Fact) -> dict[str, Any]:
    """Return an event as it stands in the log. Of those that were not late some say so, some say nothing, some lie."""
    row: dict[str, Any] = {
        "specversion": "1.0", "type": fact.type, "source": "/t", "id": fact.id, "data": fact.data,
    }  # fmt: skip
    if fact.subject:
        row["subject"] = fact.subject
    if fact.depth:
        row["causaldepth"] = fact.depth
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
    # Of several patterns and several keys of one event it is not said which is told first.
    is_plain = not {"sequence", "any_of", "all_of"} & set(rule) or rule.get("for_each") in (None, "type")
    return {**rule, "budget": pick([FREE, FREE, "1/s", "1/4s", "2/2s", "2/8s"]) if is_plain else FREE}


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


def _measured(pick: Pick, metric: dict[str, Any], limits: Sequence[str]) -> dict[str, Any]:
    rule: dict[str, Any] = {"metric": metric, "is": pick(limits)}
    _add(pick, rule, "for", ["0.5s", "3s", "6s"], once_in=2)
    _add(pick, rule, "on_resolve", [[{"notify": "x"}]], once_in=2)
    return rule


def _metric(pick: Pick) -> dict[str, Any]:
    measure = pick(["count", "event_rate"])
    metric = {"measure": measure, "on": pick(_ON), "over": pick(["15s", "30s"])}
    _add(pick, metric, "where", _WHERE)
    rates = ["> 8/m", ">= 4/m", "< 12/m", "<= 8/m", ">= 1/s"]
    return _measured(
        pick, metric, rates if measure == "event_rate" else ["> 2", ">= 1", "< 3", "< 1", ">= 4", "<= 2"]
    )


def _runs(pick: Pick) -> dict[str, Any]:
    measure = pick(
        ["failure_rate", "success_rate", "p50_duration", "p95_duration", "p99_duration", "avg_duration"]
    )
    metric: dict[str, Any] = {"measure": measure, "over": pick(["15s", "30s"])}
    _add(pick, metric, "at_least", [2, 3], once_in=2)
    shares = ["> 49%", ">= 50%", "< 20%", "<= 75%", "< 0.5", ">= 99.9%"]
    return _measured(pick, metric, shares if measure.endswith("rate") else ["> 2s", ">= 2s", "< 3s", "<= 3s"])


def _lateness(pick: Pick) -> dict[str, Any]:
    metric: dict[str, Any] = {"measure": "lateness", "over": pick(["15s", "30s"])}
    _add(pick, metric, "at_least", [2, 3], once_in=2)
    return _measured(pick, metric, ["> 1s", ">= 1s", "< 1s", "<= 0s"])


def _queue(pick: Pick) -> dict[str, Any]:
    metric: dict[str, Any] = {"measure": "queue_depth"}
    _add(pick, metric, "where", _WHERE, once_in=6)
    return _measured(pick, metric, ["> 1", ">= 1", "< 1", "<= 1", ">= 3"])


_FORMS: dict[str, Callable[[Pick], dict[str, Any]]] = {
    "counting": _counting, "absence": _absence, "heartbeat": _heartbeat, "debounce": _debounce,
    "sequence": _sequence, "group": _grouped, "metric": _metric, "runs": _runs,
    "lateness": _lateness, "queue": _queue,
}  # fmt: skip


def _maker(made: Callable[[Pick], dict[str, Any]]) -> Callable[[Pick], dict[str, Any]]:
    return lambda pick: _dressed(pick, made(pick))


RULES: dict[str, Callable[[Pick], dict[str, Any]]] = {name: _maker(made) for name, made in _FORMS.items()}
