"""Who is told what: the ``notifications:`` section of hark.yaml, and the tree of routes it makes.

An alert reaches the tree when a rule says ``notify: routes`` (or ``notify: {…}`` without a channel), or through
``POST /api/alerts``. A rule that names a channel, ``notify: oncall``, goes straight there: nothing here touches it.

The words and their meaning are Alertmanager's: an alert goes down the tree to the first route that matches and on into
its children, the deepest that matches wins, ``continue: true`` looks at the next siblings too. What no child takes is the
parent's. ``to, group_by, group_wait, group_interval, repeat_interval, send_resolved`` and ``escalate`` are inherited where
they are not written; ``mute, active`` and ``digest`` are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from ..duration import Duration, format_duration, parse_duration
from ..errors import DefinitionError
from ..template import check_template
from ..vocabulary import JsonObject, JsonValue
from .language import Facts, Holds, Language, Reads
from .mute import _DAYS, MuteTime, Weekdays, Zone, _in, _listed, clock_minutes, is_muted, mute_end

__all__ = [
    "Digest",
    "Escalation",
    "Inhibition",
    "InhibitRule",
    "Route",
    "RouteSpec",
    "Routing",
    "Tree",
    "next_digest",
]

EACH = "..."
"""In ``group_by``: every alert is a group of its own."""
MAX_ROUTES = 1000
MAX_DEPTH = 12


def _interval(value: Any) -> float:
    if value == "never" or value == math.inf:
        return math.inf
    seconds = parse_duration(value)
    if seconds < 1:
        raise ValueError(f"{value!r} is too short; write 1s or more, or never")
    return seconds


Interval = Annotated[
    float,
    BeforeValidator(_interval),
    PlainSerializer(
        lambda s: "never" if s == math.inf else format_duration(s), return_type=str, when_used="json"
    ),
]
"""A duration, or ``never``."""


def _receiver(value: Any) -> Any:
    if isinstance(value, str) and "{{" in value and "://" not in value:
        # The reference is checked when the section is applied, which a template's result cannot be.
        check_template(value)
    return value


Receivers = Annotated[
    tuple[Annotated[str, BeforeValidator(_receiver), Field(min_length=1)], ...], BeforeValidator(_listed)
]
"""Names of channels, or Apprise URLs; one or a list."""
Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, populate_by_name=True)


class Escalation(_Model):
    """Who is told when nobody has acknowledged: ``after`` is counted from the first message of the group."""

    after: Duration
    to: Receivers = Field(min_length=1)


class Digest(_Model):
    """Tell all at once, at times of the day or every so often, instead of as it comes."""

    at: Words = ()
    every: Duration | None = None
    timezone: Zone = "UTC"
    weekdays: Weekdays = ()

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"at": [value]} if ":" in value else {"every": value}
        if isinstance(value, list | tuple):
            return {"at": value}
        return value

    @model_validator(mode="after")
    def _one_of(self) -> Digest:
        if bool(self.at) == (self.every is not None):
            raise ValueError("a digest has times of the day (`at: ['09:00']`) or an interval (`every: 1h`)")
        for text in self.at:
            clock_minutes(text)
        if self.every is not None and self.every < 60:
            raise ValueError("a digest comes at most once a minute")
        return self


def next_digest(digest: Digest, after: float) -> float:
    """Return when the next digest after ``after`` goes out, in seconds since 1970."""
    if digest.every is not None:
        return (math.floor(after / digest.every) + 1) * digest.every
    zone, moment = ZoneInfo(digest.timezone), datetime.fromtimestamp(after, UTC)
    day = moment.astimezone(zone).date()
    for i in range(370):
        today = day + timedelta(days=i)
        if not _in(digest.weekdays, today.weekday(), _DAYS, 0, 6, "day of the week"):
            continue
        for minute in sorted(clock_minutes(text) % 1440 for text in digest.at):
            wall = datetime(today.year, today.month, today.day, minute // 60, minute % 60, tzinfo=zone)
            if wall.timestamp() > after:
                return wall.timestamp()
    raise AssertionError("a week has no day of the digest")


class RouteSpec(_Model):
    """One route, as it is written. ``match`` is a condition as in a rule's ``where``, on labels and the event."""

    match: dict[str, JsonValue] = Field(default_factory=dict)
    to: Receivers | None = None
    group_by: Words | None = Field(None, description="labels or paths; '...' makes every alert its own group")
    group_wait: Duration | None = Field(None, description="how long a new group waits for more")
    group_interval: Duration | None = Field(None, description="least time between two messages of a group")
    repeat_interval: Interval | None = Field(None, description="until an open alert is told again; or never")
    mute: Words = Field((), description="names of mute times in which nothing is told; it is told after")
    active: Words = Field((), description="names of mute times outside of which nothing is told")
    escalate: tuple[Escalation, ...] | None = None
    send_resolved: bool | None = Field(None, description="whether the end of a told alert is told")
    digest: Digest | None = None
    go_on: bool = Field(False, alias="continue", description="look at the next routes too")
    routes: tuple[RouteSpec, ...] = ()

    @model_validator(mode="after")
    def _order(self) -> RouteSpec:
        afters = [step.after for step in self.escalate or ()]
        if afters != sorted(afters):
            raise ValueError("the steps of `escalate` are in order of their `after`")
        return self


class InhibitRule(_Model):
    """While an alert matching ``source`` is open, those matching ``target`` are not told, where ``equal`` is equal."""

    source: dict[str, JsonValue] = Field(min_length=1)
    target: dict[str, JsonValue] = Field(min_length=1)
    equal: Words = ()


def _mute_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: [one] if isinstance(one, Mapping) else one for name, one in value.items()}
    return value


class Routing(RouteSpec):
    """The section ``notifications:``: the root route, named mute times, and inhibition.

    How a rule reaches it: ``notify: routes`` (or ``notify: {title: …}``, no channel named) goes through this tree;
    ``notify: oncall`` and ``notify: slack://…`` go straight to the channel or address, ungrouped, as ever.
    """

    mute_times: Annotated[dict[str, tuple[MuteTime, ...]], BeforeValidator(_mute_times)] = Field(
        default_factory=dict
    )
    inhibit: tuple[InhibitRule, ...] = ()
    resolve_timeout: Interval = Field(
        86_400.0, description="an alert not raised again for so long is closed without a word"
    )

    @model_validator(mode="after")
    def _names(self) -> Routing:
        if self.match:
            raise ValueError("the root takes every alert; put `match` into one of its `routes`")
        known = self.mute_times
        for count, (route, depth) in enumerate(walk(self)):
            if count >= MAX_ROUTES or depth > MAX_DEPTH:
                raise ValueError(f"at most {MAX_ROUTES} routes, {MAX_DEPTH} deep")
            for name in (*route.mute, *route.active):
                if name not in known:
                    have = ", ".join(sorted(known)) or "none"
                    raise ValueError(f"there is no mute time named {name!r}; `mute_times` has {have}")
        return self


def walk(route: RouteSpec, depth: int = 0) -> Iterator[tuple[RouteSpec, int]]:
    """Yield a route and all below it, depth first, with their depths."""
    yield route, depth
    for child in route.routes:
        yield from walk(child, depth + 1)


# --- compiled -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """One node of the tree with everything inherited filled in.

    Attributes:
        key: names the route as long as its conditions, receivers and grouping stay as they are.
    """

    key: str
    shown: str
    holds: Holds
    to: tuple[str, ...]
    group_by: tuple[tuple[str, Reads], ...]
    each: bool
    group_wait: float
    group_interval: float
    repeat_interval: float
    send_resolved: bool
    escalate: tuple[Escalation, ...]
    digest: Digest | None
    mute: tuple[tuple[str, tuple[MuteTime, ...]], ...]
    active: tuple[tuple[str, tuple[MuteTime, ...]], ...]
    go_on: bool
    routes: tuple[Route, ...] = field(repr=False)

    def labels(self, facts: Facts, alert_id: str) -> JsonObject:
        """Return what the group of an alert is told by."""
        if self.each:
            return {"alert": alert_id}
        return {name: read(facts) for name, read in self.group_by}

    def quiet(self, at: float) -> tuple[str, float] | None:
        """Return the mute time that keeps the route quiet at ``at`` and its end (may be infinite); None if none does."""
        moment = datetime.fromtimestamp(at, UTC)
        for name, times in self.mute:
            for one in times:
                if is_muted(one, moment):
                    end = mute_end(one, moment)
                    return name, end.timestamp() if end else math.inf
        if self.active and not any(is_muted(one, moment) for _, times in self.active for one in times):
            return f"outside {', '.join(name for name, _ in self.active)}", self._active_again(moment)
        return None

    def _active_again(self, at: datetime) -> float:
        from .mute import _boundaries

        found = math.inf
        for _, times in self.active:
            for one in times:
                begins = next((m for m in _boundaries(one, at) if m > at and is_muted(one, m)), None)
                if begins is not None:
                    found = min(found, begins.timestamp())
        return found


@dataclass(frozen=True, slots=True)
class Inhibition:
    source: Holds
    target: Holds
    equal: tuple[Reads, ...]

    def values(self, facts: Facts) -> str:
        """Return what has to be equal, as one text; what is missing on both sides is equal."""
        return orjson.dumps([read(facts) for read in self.equal], option=orjson.OPT_SORT_KEYS).decode()


class Tree:
    """The section, compiled: routes, inhibition. Immutable.

    Raises:
        DefinitionError: a condition or path does not stand.
    """

    def __init__(self, routing: Routing, language: Language) -> None:
        self.routing = routing
        self._language = language
        self._by_key: dict[str, Route] = {}
        self.root = self._compile(routing, None, [])
        self.inhibitions = tuple(
            Inhibition(
                language.condition(dict(rule.source)),
                language.condition(dict(rule.target)),
                tuple(language.path(p) for p in rule.equal),
            )
            for rule in routing.inhibit
        )
        self.resolve_timeout = routing.resolve_timeout

    def _compile(self, spec: RouteSpec, above: Route | None, chain: list[JsonValue]) -> Route:
        here = [*chain, dict(spec.match)] if above is not None else []
        routing = self.routing
        own_group = spec.group_by if spec.group_by is not None else (() if spec.digest else None)
        names = own_group if own_group is not None else tuple(n for n, _ in above.group_by) if above else ()
        each = EACH in names or (own_group is None and above is not None and above.each)
        names = tuple(n for n in names if n != EACH)

        def inherited(name: str, default: Any) -> Any:
            value = getattr(spec, name)
            return value if value is not None else (getattr(above, name) if above is not None else default)

        to = inherited("to", ())
        written: list[JsonValue] = [here, list(to), list(names), each, spec.digest is not None]
        key = orjson.dumps(written, option=orjson.OPT_SORT_KEYS).decode()
        while key in self._by_key:
            key += "+"  # two routes alike, of which the second is reached through `continue`
        route = Route(
            key=key,
            shown=" / ".join(_shown(m) for m in here) or "root",
            holds=self._language.condition(dict(spec.match)),
            to=to,
            group_by=tuple((n, self._language.path(n)) for n in names),
            each=each,
            group_wait=inherited("group_wait", 30.0),
            group_interval=inherited("group_interval", 300.0),
            repeat_interval=inherited("repeat_interval", 4 * 3600.0),
            send_resolved=inherited("send_resolved", True),
            escalate=inherited("escalate", ()),
            digest=spec.digest,
            mute=tuple((n, routing.mute_times[n]) for n in spec.mute),
            active=tuple((n, routing.mute_times[n]) for n in spec.active),
            go_on=spec.go_on,
            routes=(),
        )
        self._by_key[key] = route
        children = tuple(self._compile(child, route, here) for child in spec.routes)
        object.__setattr__(route, "routes", children)
        return route

    def route(self, key: str) -> Route | None:
        """Return the route a group belongs to, None if it is no longer there."""
        return self._by_key.get(key)

    def targets(self, facts: Facts) -> list[Route]:
        """Return the routes an alert goes to, in order; empty when no route that matches has a receiver."""
        return [route for route in _matching(self.root, facts) if route.to]


def _shown(match: JsonValue) -> str:
    return orjson.dumps(match).decode()


def _matching(route: Route, facts: Facts) -> list[Route]:
    found: list[Route] = []
    for child in route.routes:
        if child.holds(facts):
            found += _matching(child, facts)
            if not child.go_on:
                break
    return found or [route]


def load_tree(raw: bytes, language: Language) -> Tree:
    """Compile a stored section.

    Raises:
        DefinitionError: it does not stand.
    """
    try:
        return Tree(Routing.model_validate(orjson.loads(raw)), language)
    except ValueError as exc:
        raise DefinitionError(f"the stored routes do not load: {exc}", hint="apply them again") from exc
