"""The rule as written: what YAML and JSON parse into, and what the ``automations`` bucket holds.

``Automation.version`` names the whole definition; ``matching_version`` only the part that window state depends on, so
that editing texts and actions keeps the windows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import orjson
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ..duration import Duration, RateSpec
from ..vocabulary import JsonObject, JsonValue
from .action import Action, AnyAction
from .composite import (
    AnyBranch,
    AnyOf,
    AnyStep,
    Branch,
    Debounce,
    Limit,
    Metric,
    Resolve,
    Step,
    _any_of,
    check_sequence,
    leaves_of,
)
from .eventbridge import with_pattern
from .given import Expected, GivenEvent, RuleTest
from .listening import Listening
from .matching.condition import Node, parse_where
from .matching.path import Path, parse_path
from .pattern import MAX_COUNT, Cel, EventPattern, Paths, Pattern, Types, Where, check_pattern
from .problem import Loc, Problem, RuleInvalid, Strict, problems_of, refuse

__all__ = [
    "Automation",
    "EventPattern",
    "Expected",
    "GivenEvent",
    "RuleTest",
    "check_pattern",
    "parse_automation",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FORMS = ("on", "expect", "sequence", "any_of", "all_of", "metric")
Kind: TypeAlias = Literal[
    "count", "absence", "heartbeat", "sequence", "any_of", "all_of", "debounce", "metric"
]


def _dotted(loc: Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


class Automation(Strict):
    """When this pattern of events, do these actions."""

    foreign_words: ClassVar[Mapping[str, str]] = {
        "trigger": "on", "triggers": "on", "when": "on", "event": "on", "match": "where", "filter": "where",
        "filters": "where", "condition": "if", "conditions": "where", "actions": "do", "action": "do", "then": "do",
        "threshold": "count", "window": "within", "group_by": "for_each", "foreach": "for_each", "key": "for_each",
        "throttle": "cooldown", "late": "allowed_lateness", "lateness": "allowed_lateness", "grace": "allowed_lateness", "steps": "sequence", "any": "any_of", "all": "all_of",
        "actions_on_resolve": "on_resolve", "recover": "resolve", "enabled": "paused", "disabled": "paused", "expects": "expect", "test": "tests",
    }  # fmt: skip

    name: str
    description: str = ""
    paused: bool = False
    mode: Literal["live", "shadow"] = "live"
    owner: str | None = Field(
        None, description="`deployment/<name>`: it is a trigger of it, and goes with it"
    )
    written: JsonObject | None = Field(None, description="what it was made of, if in another tool's words")

    on: Types | None = None
    where: Where | None = None
    if_: Cel | None = Field(None, alias="if")
    for_each: Paths | None = None
    count: int | None = Field(None, ge=1, le=MAX_COUNT)
    within: Duration | None = None
    after: Pattern | None = None
    expect: Pattern | None = None
    sequence: tuple[AnyStep, ...] | None = None
    any_of: Annotated[AnyOf, BeforeValidator(_any_of)] | None = None
    all_of: Annotated[tuple[AnyBranch, ...], Field(min_length=1)] | None = None
    debounce: Debounce | None = None
    metric: Metric | None = None
    is_: str | None = Field(None, alias="is")
    for_: Duration | None = Field(None, alias="for", gt=0)
    resolve: Resolve | None = None
    cooldown: Duration | None = None
    allowed_lateness: Duration | None = None
    budget: RateSpec | None = None

    do: tuple[AnyAction, ...] = Field((), max_length=50)
    on_resolve: tuple[AnyAction, ...] = Field((), max_length=50)
    tests: tuple[RuleTest, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _reads_event_patterns(cls, value: Any) -> Any:
        return with_pattern(value)

    @field_validator("name")
    @classmethod
    def _good_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"{value!r} is not a name: letters, digits, dots, dashes and underscores, beginning with a letter or digit, 100 at most"
            )
        return value

    @field_validator("owner")
    @classmethod
    def _of_a_deployment(cls, value: str | None) -> str | None:
        if value is not None and not (value.startswith("deployment/") and _NAME.fullmatch(value[11:])):
            raise ValueError(
                f"{value!r} owns no rules; `deployment/<name>` can, and it is written by the deployment"
            )
        return value

    @field_validator("count", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, str) and value):
            raise ValueError(f"`count` is a whole number from 1, got {value!r}")
        return value

    @field_validator("do", "on_resolve", mode="before")
    @classmethod
    def _one_or_list(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return [value]
        if not isinstance(value, list | tuple):
            raise ValueError(
                f"an action, or a list of them, such as [{{notify: oncall}}] or [{{run: nightly-etl}}]; got {value!r:.60}"
            )
        return value

    @field_validator("within", "cooldown")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("a duration of 0 can never pass; leave it out or make it longer")
        return value

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        wrong = [*self._which_form(), *self._what_goes_with_it(), *self._inner()]
        if wrong:
            refuse(self.name, wrong)
        return self

    def _which_form(self) -> Iterator[Problem]:
        """Yield what is wrong with the choice of form: exactly one has to be there."""
        if self.after is not None and self.expect is None:
            lone = self.on is None
            yield Problem(
                ("after",),
                "`after` opens a wait and needs `expect`: the event that has to follow"
                if lone
                else "`after` belongs to `expect`; a rule with `on` fires by itself",
            )
            if lone:
                return
        given = [word for word in _FORMS if getattr(self, word) is not None]
        if not given:
            yield Problem(
                (),
                f"a rule needs `on` (events to react to) or `expect` (events to miss), or one of {', '.join(_FORMS[2:])}",
            )
        elif given[:2] == ["on", "expect"]:
            yield Problem(
                ("on",),
                "`on` reacts to events, `expect` to their absence; write two rules, or `after` for what opens the wait",
            )
        elif len(given) > 1:
            yield Problem(
                (given[1],),
                f"`{given[0]}` and `{given[1]}` are two forms of rule; write two rules, or nest one in the other where it can be",
            )

    def _what_goes_with_it(self) -> Iterator[Problem]:
        """Yield the words that do not go with the form, and those it lacks."""
        kind = self.kind
        if all(getattr(self, word) is None for word in _FORMS):
            return  # what goes with which form is told once there is one
        if kind in ("absence", "heartbeat"):
            if self.within is None:
                yield Problem(
                    ("expect",), "`expect` needs `within`: how long to wait for it, such as within: 2h"
                )
            if self.count is not None:
                yield Problem(
                    ("count",), "`count` belongs to `on`; an absence is one event that does not come"
                )
        elif kind == "count":
            if (self.count or 1) > 1 and self.within is None:
                yield Problem(
                    ("count",),
                    "`count` needs `within`: the time in which they have to come, such as within: 10m",
                )
            if self.within is not None and self.count is None:
                yield Problem(("within",), "`within` needs `count`: how many have to come in that time")
        elif self.count is not None:
            where = "inside it, at the step" if kind == "sequence" else "inside it, beside `on`"
            yield Problem(("count",), f"`count` beside `{self.form_word}` says nothing; write it {where}")
        if kind in ("sequence", "any_of", "all_of") and self.within is None and self._needs_window:
            yield Problem(
                (self.form_word,),
                f"`{self.form_word}` needs `within`: the time in which all of it has to happen, such as within: 15m",
            )
        if kind in ("debounce", "metric") and self.within is not None:
            instead = "`max_wait`" if kind == "debounce" else "`over`"
            yield Problem(("within",), f"`{self.form_word}` has its own time: write {instead} inside it")
        if self.debounce is not None and self.on is None:
            yield Problem(("debounce",), "`debounce` collects the events of `on`")
        if kind != "metric":
            for word, value in (("is", self.is_), ("for", self.for_)):
                if value is not None:
                    yield Problem((word,), f"`{word}` belongs to `metric`")
        elif self.is_ is None:
            yield Problem(("metric",), 'a `metric` needs `is`: what it is compared with, such as is: "> 10m"')
        if self.on_resolve and self.resolve is None and kind != "metric":
            yield Problem(("on_resolve",), "`on_resolve` needs `resolve`: when it is over")

    def _inner(self) -> Iterator[Problem]:
        if self.sequence is not None:
            yield from check_sequence(self.sequence)
        if self.metric is not None and self.is_ is not None:
            try:
                Limit(self.is_, self.metric)
            except ValueError as exc:
                yield Problem(("is",), str(exc))
        root = self.root
        if root is not None:
            try:
                leaves = list(leaves_of(root))
                n = len(leaves)
            except ValueError as exc:
                yield Problem((self.form_word,), str(exc))
            else:
                if n > 50:
                    yield Problem((self.form_word,), "more than 50 patterns in one group")
                named: set[str] = set()
                for loc, leaf in leaves:
                    alias = leaf.as_ if isinstance(leaf, Step) else None
                    if alias is not None and alias in named:
                        yield Problem((*loc, "as"), f"{alias!r} names another step already")
                    named |= {alias} if alias is not None else set()

    @property
    def _needs_window(self) -> bool:
        root = self.root
        # One event of several kinds needs no time; anything else has to happen in some.
        return root is None or not (
            root.any_of is not None
            and root.any_of.need == 1
            and all(b.on is not None and (b.count or 1) == 1 for b in root.any_of.of)
        )

    @cached_property
    def root(self) -> Branch | None:
        """The group as one branch, None for other forms."""
        if self.any_of is None and self.all_of is None:
            return None
        return Branch.model_construct(
            on=None, where=None, if_=None, count=None, any_of=self.any_of, all_of=self.all_of, sequence=None
        )

    @property
    def kind(self) -> Kind:
        """Which form of rule it is."""
        if self.sequence is not None:
            return "sequence"
        if self.any_of is not None:
            return "any_of"
        if self.all_of is not None:
            return "all_of"
        if self.metric is not None:
            return "metric"
        if self.debounce is not None:
            return "debounce"
        if self.on is not None:
            return "count"
        return "absence" if self.after is not None else "heartbeat"

    @property
    def form_word(self) -> str:
        """The word the form is written with."""
        kind = self.kind
        return {"count": "on", "absence": "expect", "heartbeat": "expect"}.get(kind, kind)

    @cached_property
    def listens(self) -> tuple[Listening, ...]:
        """The kinds of events it listens to. Of one event, the form is told in this order."""
        one = (self.node,) if self.node is not None else ()
        ifs = (self.if_,) if self.if_ is not None else ()

        def listen(
            name: str, loc: Loc, types: tuple[str, ...], node: Node | None, if_: str | None
        ) -> Listening:
            return Listening(
                name,
                loc,
                types,
                (*one, *((node,) if node else ())),
                (*ifs, *((if_,) if if_ is not None else ())),
            )

        if self.expect is not None:
            expect = listen("expect", ("expect",), self.expect.on, self.expect.node, self.expect.if_)
            if self.after is None:
                return (expect,)
            return (expect, listen("after", ("after",), self.after.on, self.after.node, self.after.if_))
        if self.sequence is not None:
            # The last step first: one event takes a wait one step on, not two.
            return tuple(
                listen(step.as_ or f"sequence[{i}]", ("sequence", i), step.on, step.linked.node, step.if_)
                for i, step in reversed(list(enumerate(self.sequence)))
            )
        if self.metric is not None:
            conditions = self.metric.conditions
            return (
                listen(
                    "metric",
                    ("metric",),
                    self.metric.types,
                    parse_where(conditions)[0] if conditions else None,
                    None,
                ),
            )
        if self.root is not None:
            return tuple(
                listen(
                    (leaf.as_ if isinstance(leaf, Step) else None) or _dotted(loc),
                    loc,
                    leaf.on or (),
                    parse_where(leaf.where)[0] if leaf.where else None,
                    leaf.if_,
                )
                for loc, leaf in leaves_of(self.root)
            )
        return (listen("on", ("on",), self.on or (), None, None),)

    @property
    def step_names(self) -> frozenset[str]:
        """The names steps give their events, which templates of its actions may read."""
        root = self.root
        steps = [
            *(self.sequence or ()),
            *(leaf for _, leaf in (leaves_of(root) if root is not None else ()) if isinstance(leaf, Step)),
        ]
        return frozenset(step.as_ for step in steps if step.as_ is not None)

    @cached_property
    def resolves(self) -> Listening | None:
        """The events that say a firing is over, if the rule names some."""
        resolve = self.resolve
        if resolve is None or resolve.on is None:
            return None
        node = parse_where(resolve.where)[0] if resolve.where else None
        return Listening(
            "resolve",
            ("resolve",),
            resolve.on,
            (node,) if node else (),
            (resolve.if_,) if resolve.if_ else (),
        )

    @property
    def settles_s(self) -> float:
        """How long after its last event the rule may still decide something."""
        after = self.resolve.after if self.resolve is not None and self.resolve.after is not None else 0.0
        if self.debounce is not None:
            own = self.debounce.max_wait or self.debounce.quiet
        elif self.metric is not None:
            own = self.metric.over + (self.for_ or 0.0)
        else:
            own = self.within or 0.0 if self.expect is not None else 0.0
        return own + after

    def late_by(self, default_s: float) -> float:
        """Return how late events may be: what the rule says, else the service's own ``default_s``."""
        return default_s if self.allowed_lateness is None else self.allowed_lateness

    @property
    def actions(self) -> tuple[Action, ...]:
        """What it does when it fires."""
        return self.do

    @cached_property
    def node(self) -> Node | None:
        """The parsed ``where``."""
        return parse_where(self.where)[0] if self.where else None

    @cached_property
    def key_paths(self) -> tuple[Path, ...]:
        """The parsed ``for_each``."""
        return tuple(parse_path(p) for p in self.for_each or ())

    @cached_property
    def version(self) -> str:
        """Short hash of all that the rule decides and does; tests and the description do not count."""
        return _hash(
            {
                k: v
                for k, v in self.to_json().items()
                if k not in ("tests", "description", "paused", "owner", "written")
            }
        )

    @cached_property
    def matching_version(self) -> str:
        """Short hash of what window state depends on; a rule keeps its windows while this stays."""
        form = self.to_json()
        return _hash({k: form[k] for k in MATCHING if k in form})

    def to_json(self) -> JsonObject:
        """Return the definition as JSON that ``parse_automation`` reads back, defaults left out."""
        out: JsonObject = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return out

    def dumps(self) -> bytes:
        """Return the stored form."""
        return orjson.dumps(self.to_json(), option=orjson.OPT_SORT_KEYS)


MATCHING = (
    "on", "where", "if", "for_each", "count", "within", "after", "expect", "allowed_lateness", "sequence", "any_of",
    "all_of", "debounce", "metric", "is", "for", "resolve",
)  # fmt: skip
"""The fields that window state depends on."""


def _hash(value: JsonValue) -> str:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()


def parse_automation(value: object, *, name: str | None = None) -> Automation:
    """Return the rule written as a mapping (or its JSON bytes).

    Args:
        name: the rule's name, when it is the key the mapping stands under and not in the mapping.
    Raises:
        RuleInvalid: it does not stand; ``problems`` says each fault and its place.
    """
    if isinstance(value, bytes | str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as exc:
            raise RuleInvalid([Problem((), f"not JSON: {exc}")], name=name or "") from exc
    if not isinstance(value, Mapping):
        raise RuleInvalid([Problem((), f"a rule is a mapping, got {value!r:.60}")], name=name or "")
    fields = dict(value)
    if name is not None:
        fields["name"] = name
    try:
        return Automation.model_validate(fields)
    except ValidationError as exc:
        raise RuleInvalid(problems_of(exc), name=str(fields.get("name", ""))) from exc
    except RecursionError as exc:
        raise RuleInvalid([Problem((), "it nests too deep")], name=str(fields.get("name", ""))) from exc
