"""When the condition of a rule comes true, form by form and by definition; see ``oracle`` and ``oracle_metric``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = [
    "EXPRESSIONS", "FORMS", "MISSING", "Fact", "Form", "Found", "Made", "Place", "Rule", "Simple", "chosen", "seconds",
]  # fmt: skip

Rule: TypeAlias = Mapping[str, Any]
MISSING = object()

EXPRESSIONS: dict[str, Callable[[Fact], bool]] = {
    "data.n > 1": lambda fact: isinstance(n := fact.get("data.n"), int) and n > 1,
    "data.n == 0 || data.k == 'p'": lambda fact: fact.get("data.n") == 0 or fact.get("data.k") == "p",
    "type == 'a.x'": lambda fact: fact.type == "a.x",
}
"""What may stand under ``if``, and what it means."""


@dataclass(frozen=True, eq=False)
class Fact:
    """An event of the log. ``time``: when it happened, never later than it was recorded."""

    place: int
    id: str
    type: str
    recorded: float
    time: float
    data: Mapping[str, Any] = field(default_factory=dict)
    subject: str = ""
    depth: int = 0

    def get(self, path: str) -> Any:
        """Return what a path leads to, MISSING if nothing is there."""
        found: Any = {"type": self.type, "data": self.data}
        for word in path.split("."):
            found = found.get(word, MISSING) if isinstance(found, Mapping) else MISSING
        return found

    def fits(self, pattern: Rule, known: Mapping[str, Fact] | None = None) -> bool:
        """Return whether ``on``, ``where`` and ``if`` hold; ``known`` are the named events of a sequence."""
        on = pattern["on"]
        if not any(_covers(p, self.type) for p in ([on] if isinstance(on, str) else on)):
            return False
        if "if" in pattern and not EXPRESSIONS[pattern["if"]](self):
            return False
        return all(_holds(self.get(path), want, known) for path, want in pattern.get("where", {}).items())


def _covers(pattern: str, type_: str) -> bool:
    words, parts = pattern.split("."), type_.split(".")
    if words[-1] == ">":
        return len(parts) >= len(words) and _covers(".".join(words[:-1]), ".".join(parts[: len(words) - 1]))
    return len(words) == len(parts) and all(w in ("*", p) for w, p in zip(words, parts, strict=True))


def _holds(value: Any, want: Any, known: Mapping[str, Fact] | None) -> bool:
    """Return whether a value meets a condition. One with a template holds of everything while nothing is known."""
    if value is MISSING:
        return False
    if "{{" in str(want):
        if known is None:
            return True
        want = _filled(want, known)
        if want is MISSING:
            return False
    if isinstance(want, Mapping):  # of an array: no element is it
        return not _holds(value, want["not"], known)
    if isinstance(value, list):
        return any(_holds(one, want, known) for one in value)
    if isinstance(want, list):
        return any(_holds(value, one, known) for one in want)
    if isinstance(want, str) and want[:2] == ">=":
        return isinstance(value, int) and want[2:].strip().isdigit() and value >= int(want[2:])
    return bool(value == want)


def _filled(want: Any, known: Mapping[str, Fact]) -> Any:
    """Return a condition with its template filled in, MISSING if what it reads is not there."""
    if isinstance(want, Mapping):
        inner = _filled(want["not"], known)
        return MISSING if inner is MISSING else {"not": inner}
    sign, _, template = want.partition("{{")
    alias, _, path = template.removesuffix("}}").strip().partition(".")
    found = known[alias].get(path)
    if found is MISSING or found == []:
        return MISSING
    return f"{sign.strip()} {found}" if sign else found


def seconds(text: str | None, default: float) -> float:
    return default if text is None else float(text.removesuffix("s"))


def chosen(rule: Rule) -> str:
    """Return which form a rule has."""
    words = ("debounce", "after", "expect", "sequence", "any_of", "all_of", "metric")
    return next((word for word in words if word in rule), "on")


class Place(NamedTuple):
    """When something came true: the moment, and how many events of the key were in the log by then."""

    now: float
    seen: int


@dataclass(frozen=True)
class Found:
    """The condition has come true; ``is_over``: it has ceased to."""

    at: float
    events: tuple[Fact, ...]
    count: int
    is_over: bool = False


Made: TypeAlias = list[tuple[Place, Found]]


class Form(Protocol):
    """One key of a rule. ``log`` is all of the key's history so far, ``made`` what has come true so far."""

    def wants(self, fact: Fact) -> bool: ...
    def due(self, now: float, log: list[Fact], made: Made) -> Found | None: ...
    def event(self, fact: Fact, log: list[Fact], made: Made) -> Found | None: ...


@dataclass
class Simple:
    """What forms have in common that only events move."""

    rule: Rule
    lateness: float
    began: float

    def __post_init__(self) -> None:
        self.within = seconds(self.rule.get("within"), 0.0)

    def wants(self, fact: Fact) -> bool:
        return fact.fits(self.rule)

    def due(self, now: float, log: list[Fact], made: Made) -> Found | None:
        return None

    def in_time(self, facts: Iterable[Fact], emptied: Iterable[Fact] = ()) -> list[Fact]:
        """Return the events in the window, oldest first, without what came too late for it.

        It begins anew when it was emptied, and after a silence of ``within`` and the lateness.
        """
        since = max((fact.place for fact in emptied), default=-1)
        kept: list[Fact] = []
        for fact in facts:
            if fact.place <= since:
                continue
            if kept and fact.recorded > kept[-1].recorded + self.within + self.lateness:
                kept = []
            if all(fact.time >= other.time - self.lateness for other in kept):
                kept.append(fact)
        return sorted(kept, key=_in_time)


def _in_time(fact: Fact) -> tuple[float, int]:
    return fact.time, fact.place


class Counting(Simple):
    """``on`` with ``count`` and ``within``: so many in so long, the new one among them; firing empties the window."""

    def event(self, fact: Fact, log: list[Fact], made: Made) -> Found | None:
        count = self.rule.get("count", 1)
        if count == 1:
            return Found(fact.time, (fact,), 1)
        emptied = [f for place, _ in made for f in log[place.seen - 1 : place.seen]]
        window = self.in_time((f for f in log if self.wants(f)), emptied)
        for first in range(len(window) - count + 1):
            some = window[first : first + count]
            if fact in some and some[-1].time - some[0].time <= self.within:
                return Found(some[-1].time, tuple(some), count)
        return None


class Absence(Simple):
    """``after`` … ``expect`` … ``within``."""

    def wants(self, fact: Fact) -> bool:
        return fact.fits(_pattern(self.rule["after"])) or fact.fits(_pattern(self.rule["expect"]))

    def event(self, fact: Fact, log: list[Fact], made: Made) -> Found | None:
        return None

    def deadline(self, opening: Fact) -> float:
        """Return by when the answer has to be in the log: one that came late itself still leaves it some time."""
        return max(opening.time + self.within, opening.recorded + min(self.lateness, self.within))

    def due(self, now: float, log: list[Fact], made: Made) -> Found | None:
        waits: Fact | None = None
        for i, fact in enumerate(log):
            if waits is not None and self.deadline(waits) <= fact.recorded:
                waits = None  # it has fired
            is_answer = fact.fits(_pattern(self.rule["expect"]))
            if is_answer and waits is not None and fact.time >= waits.time - self.lateness:
                waits = None
            if fact.fits(_pattern(self.rule["after"])) and waits is None and not self.answered(fact, log[:i]):
                waits = fact
        if waits is not None and self.deadline(waits) == now:
            return Found(now, (waits,), 1)
        return None

    def answered(self, opening: Fact, log: list[Fact]) -> bool:
        """Return whether what it waits for is in the log already, because they came in the wrong order."""
        return self.lateness > 0 and any(
            fact.fits(_pattern(self.rule["expect"]))
            and fact.time > opening.time
            and opening.recorded - fact.recorded <= self.lateness
            for fact in log
        )


def _pattern(written: Any) -> Rule:
    return {"on": written} if isinstance(written, str | list) else written


class Heartbeat(Absence):
    """``expect`` … ``within``: silence, and again after each further ``within`` of it."""

    def wants(self, fact: Fact) -> bool:
        return fact.fits(_pattern(self.rule["expect"]))

    def due(self, now: float, log: list[Fact], made: Made) -> Found | None:
        deadline = None if "for_each" in self.rule else self.began + self.within
        missed, last, newest = 0, None, self.began
        for fact in log:
            while deadline is not None and deadline <= fact.recorded:
                missed, deadline = missed + 1, deadline + self.within
            if self.wants(fact):
                own = self.deadline(fact)
                if deadline is None or own > deadline or (missed and fact.time > newest):
                    missed, deadline, last, newest = 0, own, fact, fact.time
        while deadline is not None and deadline < now:
            missed, deadline = missed + 1, deadline + self.within
        if deadline == now:
            return Found(now, (last,) if last is not None else (), missed + 1)
        return None


class Debounce(Simple):
    """A burst, once it is over; by when events were recorded."""

    def burst(self, log: list[Fact]) -> list[Fact]:
        burst: list[Fact] = []
        for fact in log:
            if burst and self.ends(burst) <= fact.recorded:
                burst = []
            if len(burst) == self.rule["debounce"].get("max_events", 200):
                burst = []
            if self.wants(fact):
                burst.append(fact)
        return burst

    def ends(self, burst: list[Fact]) -> float:
        if len(burst) == self.rule["debounce"].get("max_events", 200):
            return -math.inf  # it has fired
        longest = seconds(self.rule["debounce"].get("max_wait"), math.inf)
        return min(
            burst[-1].recorded + seconds(self.rule["debounce"]["quiet"], 0.0), burst[0].recorded + longest
        )

    def due(self, now: float, log: list[Fact], made: Made) -> Found | None:
        burst = self.burst(log)
        return Found(now, tuple(burst), len(burst)) if burst and self.ends(burst) == now else None

    def event(self, fact: Fact, log: list[Fact], made: Made) -> Found | None:
        burst = self.burst(log)
        if len(burst) == self.rule["debounce"].get("max_events", 200):
            return Found(fact.recorded, tuple(burst), len(burst))
        return None


class Sequence(Simple):
    """``sequence``: each first event begins a wait, which takes the first events that answer its next step."""

    def wants(self, fact: Fact) -> bool:
        return any(fact.fits(step) for step in self.rule["sequence"])

    def event(self, fact: Fact, log: list[Fact], made: Made) -> Found | None:
        """Of the waits that this event completes, the one that began first fires."""
        fired: list[_Wait] = []
        ends = {log[place.seen - 1] for place, _ in made}
        for n in range(len(log)):
            now = log[n]
            done = [w for w in self.waits(log[: n + 1], ends, fired) if w.step == len(self.rule["sequence"])]
            if now in ends:
                fired.append(done[0])
            elif now is fact and done:
                return Found(fact.time, tuple(done[0].events), len(done[0].events))
        return None

    def waits(self, log: list[Fact], ends: set[Fact], fired: list[_Wait]) -> list[_Wait]:
        """Return how far each wait has come, in the order in which they began."""
        out = []
        for n, fact in enumerate(log):
            first = self.first(log[: n + 1], ends) if fact not in ends else []
            if first:
                wait = _Wait(1, first, 0, {a: fact for a in [self.rule["sequence"][0].get("as")] if a}, fact)
                if self.goes_on(wait, log[n + 1 :], fired):
                    out.append(wait)
        return out

    def first(self, log: list[Fact], ends: set[Fact]) -> list[Fact]:
        """Return the events with which a wait begins at the last of the log, none if it does not."""
        step = self.rule["sequence"][0]
        count = step.get("count", 1)
        if count == 1:
            return [log[-1]] if log[-1].fits(step) else []
        begun: list[Fact] = []
        some: list[Fact] = []
        for fact in log:
            some = []
            if fact in ends:
                begun.append(fact)
            elif fact.fits(step):
                relevant = [f for f in log if f.place <= fact.place and f.fits(step)]
                window = self.in_time(relevant, begun)
                some = _latest(window, count, seconds(step.get("within"), self.within), fact)
                if some:
                    begun.append(fact)
        return some

    def goes_on(self, wait: _Wait, log: list[Fact], fired: list[_Wait]) -> bool:
        """Take a wait through what follows; return False if a firing ended it. The event of a firing is used up."""
        begun = wait.last
        for fact in log:
            others = [other for other in fired if fact is other.last]
            if any(self.same(wait, other) for other in others):
                return False
            if (
                not others
                and wait.step < len(self.rule["sequence"])
                and fact.fits(self.rule["sequence"][wait.step], wait.known)
                and fact.time - wait.time <= self.within
                and fact.time >= wait.last.time - self.lateness
                and fact.recorded <= begun.recorded + self.within + self.lateness
            ):
                self.takes(wait, fact)
        return True

    def takes(self, wait: _Wait, fact: Fact) -> None:
        """Let a wait have an event of its step, which it completes if there are enough of them."""
        step = self.rule["sequence"][wait.step]
        begins = len(wait.events) - wait.done
        own = [*wait.events[begins:], fact]
        is_full = len(own) == step.get("count", 1)
        if "within" in step:
            if any(fact.time < other.time - self.lateness for other in own):
                return
            some = _latest(own, step["count"], seconds(step["within"], 0.0), fact)
            own, is_full = some or own, bool(some)
        wait.events[begins:], wait.done = own, len(own)
        if is_full:
            wait.step, wait.done, wait.last = wait.step + 1, 0, fact
            if "as" in step:
                wait.known[step["as"]] = fact

    def same(self, wait: _Wait, other: _Wait) -> bool:
        """Return whether a wait asks for the same values as one that has fired did at that step."""
        if wait.step == len(self.rule["sequence"]):
            return True
        for path, want in self.rule["sequence"][wait.step].get("where", {}).items():
            if isinstance(want, str) and want.startswith("{{"):
                alias, _, path = want[2:-2].strip().partition(".")
                if wait.known[alias].get(path) != other.known[alias].get(path):
                    return False
        return True


@dataclass(eq=False)
class _Wait:
    """``step`` is the one it waits for, of which it has the last ``done`` events; ``last`` completed the one before."""

    step: int
    events: list[Fact]
    done: int
    known: dict[str, Fact]
    last: Fact

    @property
    def time(self) -> float:
        return self.events[0].time


def _latest(facts: list[Fact], count: int, within: float, fact: Fact) -> list[Fact]:
    """Return the latest ``count`` in a row that lie within a time, the new one among them; none if there are not."""
    window = sorted(facts, key=_in_time)
    for first in range(len(window) - count, -1, -1):
        some = window[first : first + count]
        if fact in some and some[-1].time - some[0].time <= within:
            return some
    return []


class Group(Simple):
    """``any_of``, ``all_of``: enough of it in one window that holds the new event, in any order."""

    def wants(self, fact: Fact) -> bool:
        return any(fact.fits(leaf) for leaf in _leaves(self.rule))

    def event(self, fact: Fact, log: list[Fact], made: Made) -> Found | None:
        emptied = [f for place, _ in made for f in log[place.seen - 1 : place.seen]]
        leaves = list(_leaves(self.rule))
        mine = [n for n, leaf in enumerate(leaves) if fact.fits(leaf)]
        # An event of several patterns is told to one after the other, until it is enough.
        for upto in mine:
            members = self.members(leaves, log, emptied)
            for n in mine:
                if n > upto:
                    members[n] = [f for f in members[n] if f is not fact]
            ends = sorted({f.time for some in members.values() for f in some if f.time >= fact.time})
            for end in ends:
                start = end - self.within
                held = {n: [f for f in some if start <= f.time <= end] for n, some in members.items()}
                found = _met(self.rule, held, iter(range(len(leaves)))) if start <= fact.time else None
                if found is not None:
                    events = sorted(set(found), key=_in_time)
                    return Found(events[-1].time, tuple(events), len(events))
        return None

    def members(self, leaves: list[Rule], log: list[Fact], emptied: list[Fact]) -> dict[int, list[Fact]]:
        """Return the events of each pattern that are in time."""
        window = self.in_time((f for f in log if self.wants(f)), emptied)
        return {n: [f for f in window if f.fits(leaf)] for n, leaf in enumerate(leaves)}


def _inner(branch: Rule) -> list[Any]:
    if "any_of" in branch:
        return list(branch["any_of"]["of"] if isinstance(branch["any_of"], Mapping) else branch["any_of"])
    return list(branch.get("all_of") or branch.get("sequence") or ())


def _leaves(branch: Any) -> Iterable[Rule]:
    branch = _pattern(branch)
    if "on" in branch:
        yield branch
    for one in _inner(branch):
        yield from _leaves(one)


def _met(branch: Any, held: dict[int, list[Fact]], numbers: Any) -> list[Fact] | None:
    """Return the events that make a branch true, None if it is not: the latest of each pattern."""
    branch = _pattern(branch)
    if "on" in branch:
        some, count = held[next(numbers)], branch.get("count", 1)
        return some[len(some) - count :] if len(some) >= count else None
    if "sequence" in branch:
        return _in_order(
            [_pattern(s) for s in branch["sequence"]], [held[next(numbers)] for _ in _inner(branch)]
        )
    inner = [_met(one, held, numbers) for one in _inner(branch)]
    met = [found for found in inner if found is not None]
    need = len(inner)
    if "any_of" in branch:
        need = branch["any_of"].get("need", 1) if isinstance(branch["any_of"], Mapping) else 1
    return list(itertools.chain(*met)) if len(met) >= need else None


def _in_order(steps: list[Rule], held: list[list[Fact]]) -> list[Fact] | None:
    """Return the latest events that are all steps one after the other, by when they happened; every way is tried."""
    ways: list[list[Fact]] = []
    for parts in itertools.product(
        *(itertools.combinations(f, s.get("count", 1)) for s, f in zip(steps, held, strict=True))
    ):
        flat = [_in_time(fact) for part in parts for fact in part]
        close = all(
            "within" not in step or part[-1].time - part[0].time <= seconds(step["within"], 0.0)
            for step, part in zip(steps, parts, strict=True)
        )
        if close and all(a < b for a, b in itertools.pairwise(flat)):
            ways.append([fact for part in parts for fact in part])
    return max(ways, key=lambda way: [_in_time(f) for f in reversed(way)], default=None)


FORMS: dict[str, Callable[[Rule, float, float], Form]] = {
    "on": Counting, "after": Absence, "expect": Heartbeat, "debounce": Debounce, "sequence": Sequence,
    "any_of": Group, "all_of": Group,
}  # fmt: skip
"""All but ``metric``: made of the rule, its allowed lateness, and when it was adopted."""
