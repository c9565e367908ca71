"""The words of rules that join several patterns, or look at more than single events: as written.

``sequence``, ``any_of``, ``all_of``, ``debounce``, ``metric``, ``resolve``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..duration import Duration, format_duration, parse_duration, parse_rate
from .pattern import Cel, Types, Where
from .problem import Loc, Problem, Strict, refuse
from .reference import RESERVED, Linked, link, link_problems

__all__ = ["AnyOf", "Branch", "Debounce", "Limit", "Metric", "Resolve", "Step", "check_sequence"]

MAX_STEPS = 20
MAX_STEP_COUNT = 1000
MAX_DEPTH = 5
MAX_DEBOUNCED = 1000
_ALIAS = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_PATTERN_WORDS = {"type": "on", "match": "where", "filter": "where", "condition": "if", "threshold": "count"}


def _step_where(value: Any) -> Any:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"`where` is a mapping of paths to conditions, such as data.flow.name: etl; got {value!r:.80}"
        )
    problems = link_problems(value)
    if problems:
        refuse("where", problems, value)
    return dict(value)


class Step(Strict):
    """One step of a sequence. ``as`` names its event, for the conditions of later steps and for templates."""

    foreign_words: ClassVar[Mapping[str, str]] = {**_PATTERN_WORDS, "name": "as", "id": "as", "alias": "as"}

    as_: str | None = Field(None, alias="as", description="the name later steps know its (last) event by")
    on: Types
    where: Annotated[dict[str, Any], BeforeValidator(_step_where)] | None = None
    if_: Cel | None = Field(None, alias="if")
    count: int = Field(1, ge=1, le=MAX_STEP_COUNT)
    within: Duration | None = Field(None, gt=0, description="the time in which `count` of them have to come")

    @cached_property
    def linked(self) -> Linked:
        """Its conditions, taken apart."""
        return link(self.where)

    @model_validator(mode="after")
    def _stands(self) -> Self:
        if self.as_ is not None and (not _ALIAS.fullmatch(self.as_) or self.as_ in RESERVED):
            why = (
                "templates read that name anyway" if self.as_ in RESERVED else "lower-case letters, digits, _"
            )
            refuse("step", [Problem(("as",), f"{self.as_!r} cannot name a step: {why}")], self)
        if self.within is not None and self.count == 1:
            refuse(
                "step",
                [
                    Problem(
                        ("within",), "`within` of a step is about its `count`; the whole sequence has its own"
                    )
                ],
            )
        return self


def _step(value: Any) -> Any:
    return {"on": value} if isinstance(value, str) else value


AnyStep: TypeAlias = Annotated[Step, BeforeValidator(_step)]


def check_sequence(steps: tuple[Step, ...]) -> Iterator[Problem]:
    """Yield what is wrong with the steps as a whole."""
    if len(steps) < 2:
        yield Problem(("sequence",), "a sequence has at least two steps; for one kind of event write `on`")
    if len(steps) > MAX_STEPS:
        yield Problem(("sequence",), f"more than {MAX_STEPS} steps")
    known: list[str] = []
    for i, step in enumerate(steps):
        for alias, _ in sorted(step.linked.reads):
            if alias not in known:
                named = (
                    f"named before it: {', '.join(known)}" if known else "named before it; name one with `as`"
                )
                yield Problem(("sequence", i, "where"), f"{alias!r} is no step {named}")
        if step.as_ is not None:
            if step.as_ in known:
                yield Problem(("sequence", i, "as"), f"{step.as_!r} names an earlier step already")
            known.append(step.as_)


def _branch(value: Any) -> Any:
    return {"on": value} if isinstance(value, str) else value


def _any_of(value: Any) -> Any:
    return {"need": 1, "of": value} if isinstance(value, list | tuple) else value


class AnyOf(Strict):
    """At least ``need`` of the branches."""

    foreign_words: ClassVar[Mapping[str, str]] = {
        "min": "need",
        "at_least": "need",
        "count": "need",
        "n": "need",
    }

    need: int = Field(1, ge=1)
    of: tuple[AnyBranch, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.need > len(self.of):
            refuse(
                "any_of",
                [Problem(("need",), f"needs {self.need} of {len(self.of)} branches, which never comes")],
            )
        return self


class Branch(Strict):
    """One branch of ``any_of`` or ``all_of``: events, a sequence of them, or again a group."""

    foreign_words: ClassVar[Mapping[str, str]] = _PATTERN_WORDS

    on: Types | None = None
    where: Where | None = None
    if_: Cel | None = Field(None, alias="if")
    count: int | None = Field(None, ge=1, le=MAX_STEP_COUNT)
    any_of: Annotated[AnyOf, BeforeValidator(_any_of)] | None = None
    all_of: tuple[AnyBranch, ...] | None = None
    sequence: tuple[AnyStep, ...] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("on", "any_of", "all_of", "sequence") if getattr(self, name) is not None]
        if len(given) != 1:
            refuse(
                "branch",
                [
                    Problem(
                        (), "a branch is `on` (events), or `any_of`, or `all_of`, or `sequence`: one of them"
                    )
                ],
            )
        if self.sequence is not None:
            faults = list(check_sequence(self.sequence)) or [
                Problem(
                    ("sequence", i, "where"),
                    "inside a group a step cannot look back at an earlier one; a rule that is a `sequence` can",
                )
                for i, step in enumerate(self.sequence)
                if step.linked.reads
            ]
            if faults:
                refuse("branch", faults)
        if self.on is None:
            wrong = [
                n
                for n, v in (("where", self.where), ("if", self.if_), ("count", self.count))
                if v is not None
            ]
            if wrong:
                refuse("branch", [Problem((wrong[0],), f"`{wrong[0]}` belongs to `on`, inside the group")])
        return self


AnyBranch: TypeAlias = Annotated[Branch, BeforeValidator(_branch)]
AnyOf.model_rebuild()
Branch.model_rebuild()


def leaves_of(branch: Branch, loc: Loc = (), depth: int = 0) -> Iterator[tuple[Loc, Branch | Step]]:
    """Yield the branches that are events, and the steps of sequences, with their places, in the order they are written."""
    if depth > MAX_DEPTH:
        raise ValueError(f"groups nest deeper than {MAX_DEPTH}")
    if branch.on is not None:
        yield loc, branch
    elif branch.any_of is not None:
        for i, inner in enumerate(branch.any_of.of):
            yield from leaves_of(inner, (*loc, "any_of", "of", i), depth + 1)
    elif branch.sequence is not None:
        for i, step in enumerate(branch.sequence):
            yield (*loc, "sequence", i), step
    else:
        for i, inner in enumerate(branch.all_of or ()):
            yield from leaves_of(inner, (*loc, "all_of", i), depth + 1)


class Debounce(Strict):
    """Wait until it is quiet, then fire once with all that came."""

    foreign_words: ClassVar[Mapping[str, str]] = {
        "period": "quiet", "wait": "quiet", "timeout": "max_wait", "max_size": "max_events", "maxDelay": "max_wait",
    }  # fmt: skip

    quiet: Duration = Field(gt=0, description="how long nothing may come before it fires")
    max_wait: Duration | None = Field(None, gt=0, description="fires this long after the first, quiet or not")
    max_events: int = Field(200, ge=1, le=MAX_DEBOUNCED, description="fires at once when so many have come")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.max_wait is not None and self.max_wait < self.quiet:
            refuse(
                "debounce",
                [Problem(("max_wait",), "`max_wait` is shorter than `quiet`, which then never counts")],
            )
        return self


Measure: TypeAlias = Literal[
    "success_rate", "failure_rate", "p50_duration", "p95_duration", "p99_duration", "avg_duration", "lateness",
    "count", "event_rate", "queue_depth",
]  # fmt: skip
_FAILED = ("flow-run.failed", "flow-run.crashed", "flow-run.timed-out")
_DONE = ("flow-run.completed", "flow-run.cached")


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Metric(Strict):
    """A figure over a window of time.

    ``success_rate`` and ``failure_rate`` are shares of finished flow runs; ``p50``, ``p95``, ``p99`` and
    ``avg_duration`` are of their durations, failed ones included; ``lateness`` is the 95th percentile of how late
    runs start; ``count`` is how many events came and ``event_rate`` how many per second. ``queue_depth`` is no matter of
    a window: how many runs are due and wait to start.
    """

    foreign_words: ClassVar[Mapping[str, str]] = {
        "name": "measure", "metric": "measure", "window": "over", "within": "over", "min_samples": "at_least",
        "type": "on",
    }  # fmt: skip

    measure: Measure
    over: Duration = Field(0.0, description="the window")
    flow: Annotated[tuple[str, ...], BeforeValidator(_names)] | None = None
    deployment: Annotated[tuple[str, ...], BeforeValidator(_names)] | None = None
    pool: Annotated[tuple[str, ...], BeforeValidator(_names)] | None = None
    queue: Annotated[tuple[str, ...], BeforeValidator(_names)] | None = None
    on: Types | None = Field(None, description="events to count; of runs, those that finish (or start)")
    where: Where | None = None
    at_least: int = Field(1, ge=1, le=10_000, description="fewer samples than this say nothing")

    @model_validator(mode="after")
    def _events(self) -> Self:
        if self.measure == "queue_depth":
            if self.over:
                refuse(
                    "metric",
                    [
                        Problem(
                            ("over",),
                            "`queue_depth` is how many wait now; write `for` beside `is` for how long",
                        )
                    ],
                )
        elif self.over <= 0:
            refuse("metric", [Problem((), "a `metric` needs `over`: the window, such as over: 1h")])
        if self.measure in ("count", "event_rate"):
            if self.on is None and self.flow is None and self.deployment is None:
                refuse(
                    "metric",
                    [
                        Problem(
                            ("measure",),
                            f"`{self.measure}` needs `on` beside it, inside `metric`: the events to count",
                        )
                    ],
                )
        elif self.on is not None:
            refuse(
                "metric",
                [
                    Problem(
                        ("on",), f"`{self.measure}` is about flow runs; narrow it by flow, deployment, where"
                    )
                ],
            )
        return self

    @property
    def types(self) -> tuple[str, ...]:
        """The event types it looks at."""
        if self.on is not None:
            return self.on
        if self.measure == "queue_depth":
            return ("flow-run.*",)
        return ("flow-run.running",) if self.measure == "lateness" else (*_DONE, *_FAILED)

    @property
    def conditions(self) -> dict[str, Any]:
        """``where`` with the flow and deployment names."""
        out = dict(self.where or {})
        if self.flow is not None:
            out["data.flow.name"] = list(self.flow)
        if self.deployment is not None:
            out["data.deployment.name"] = list(self.deployment)
        if self.pool is not None:
            out["data.pool"] = list(self.pool)
        if self.queue is not None:
            out["data.queue"] = list(self.queue)
        return out

    @property
    def is_share(self) -> bool:
        return self.measure in ("success_rate", "failure_rate")

    @property
    def is_time(self) -> bool:
        return self.measure.endswith("duration") or self.measure == "lateness"


_IS = re.compile(r"\s*(>=|<=|>|<)\s*(.+?)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip


class Limit:
    """What a figure is compared with: ``"> 10m"``, ``"< 95%"``, ``">= 100"``, ``"> 5/m"``."""

    def __init__(self, text: str, metric: Metric) -> None:
        found = _IS.fullmatch(text)
        if found is None or found[2][:1] in ("<", ">", "="):
            raise ValueError(f"{text!r} is not a comparison; write {self._example(metric)!r}")
        self.sign, self.bound = found[1], self._bound(found[2], metric)
        self._compare = _COMPARE[self.sign]

    @staticmethod
    def _example(metric: Metric) -> str:
        if metric.is_time:
            return "> 10m"
        return "< 95%" if metric.is_share else "> 5/m" if metric.measure == "event_rate" else "> 100"

    def _bound(self, text: str, metric: Metric) -> float:
        try:
            if metric.is_time:
                return parse_duration(text)
            if metric.measure == "event_rate":
                rate = parse_rate(text)
                return rate.count / rate.per_s
            # 99.9 / 100 is above 0.999 in floats, and 999 of 1000 would be below the limit.
            value = float(Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1))
            if not math.isfinite(value):
                raise ValueError("it is no number")
        except (ValueError, ArithmeticError) as exc:
            raise ValueError(
                f"{text!r} does not go with {metric.measure}; write {self._example(metric)!r}"
            ) from exc
        if metric.is_share and not 0 <= value <= 1:
            raise ValueError(f"a share is between 0% and 100% (or 0 and 1), got {text!r}")
        if text.endswith("%") and not metric.is_share:
            raise ValueError(f"{metric.measure} is not a share; write {self._example(metric)!r}")
        return value

    @property
    def is_upward(self) -> bool:
        return self.sign[0] == ">"

    def holds(self, value: float) -> bool:
        return self._compare(value, self.bound)


def show_figure(metric: Metric, value: float) -> str:
    """Return a figure as people read it."""
    if metric.is_time:
        return format_duration(max(0.0, round(value, 3)))
    if metric.is_share:
        return f"{value * 100:.4g}%"
    return f"{value:.4g}/s" if metric.measure == "event_rate" else f"{value:g}"


class Resolve(Strict):
    """When a firing is over: its own condition, or so long a quiet time; whichever comes first."""

    foreign_words: ClassVar[Mapping[str, str]] = {**_PATTERN_WORDS, "quiet": "after", "timeout": "after"}

    on: Types | None = None
    where: Where | None = None
    if_: Cel | None = Field(None, alias="if")
    after: Duration | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.on is None and (self.where is not None or self.if_ is not None):
            refuse(
                "resolve",
                [Problem((), "the condition of `resolve` needs `on`: the event that says it is over")],
            )
        if self.on is None and self.after is None:
            refuse(
                "resolve",
                [Problem((), "say when it is over: `on` an event, or `after` so long a quiet time")],
            )
        return self
