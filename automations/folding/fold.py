"""The rule engine's deciding half: a fold over the log, and over nothing else.

``Fold.step`` takes one event with its sequence and the time the broker recorded it, and returns what is decided.
Changes of rules and the passing of time are events of the log too (``automation.adopted``, ``automation.due``), so
the same log gives the same decisions, however it is cut into batches and wherever the fold is taken down and
restored. The same code runs live, in tests with virtual time, and over history.

Per event, in this order: deadlines that lie before its recorded time, then the event itself. Rules are told in the
order of their names.

The fold's own time never goes back. Where the log's does, by more than ``SET_BACK_S``, the clock of the broker was set
back: from there on the fold's time is the log's and ``_shift``, so that windows and waits go on as if nothing had
happened. What is asked of the fold and what it decides is told in the log's time.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from ...bus.event import Recorded, is_too_deep, lacking
from ...bus.subject import type_of_record
from ...vocabulary import JsonObject
from ..forms.catalogue import form_of
from ..forms.form import MOMENTS, Firing, Seen
from ..listening import Listening, filters_to_follow
from ..matching.expression import compile_expression
from ..matching.matcher import Matcher
from ..matching.where import Check
from ..model import Automation, parse_automation
from ..problem import RuleInvalid
from .deadlines import Deadline, Deadlines
from .decision import ADOPTED, SOURCE, Decision, earlier
from .in_force import InForce
from .key import key_values, keys_of, show_key
from .resolving import Resolving
from .snapshot import STATE_VERSION, Snapshot, encode_part

__all__ = ["SET_BACK_S", "STATE_VERSION", "Fold", "FoldConfig", "key_values", "keys_of", "show_key"]

SET_BACK_S = 10.0
"""Less than this, one of the broker's machines is only a little behind the other: what it records counts as of now."""

_RESOLVE = -1  # the role of events that say a firing is over; told before all others
_OWN_WORDS = ("automation.", "action.")


@dataclass(frozen=True, slots=True)
class FoldConfig:
    """The bounds every rule stands under."""

    allowed_lateness_s: float = 10.0
    max_causal_depth: int = 8
    budget: int = 100
    budget_per_s: float = 60.0
    say_all: bool = False
    """Tell every suppression, as tests want it; live, they thin out as they repeat."""


class Fold:
    """All rules in force and their state. Not thread-safe; one owner."""

    def __init__(self, config: FoldConfig | None = None) -> None:
        self.config = config or FoldConfig()
        self.seq = 0
        self._now = 0.0
        self._shift = 0.0  # whole seconds: added and taken away again, no moment becomes another
        self.errors: dict[str, str] = {}
        self._rules: dict[str, InForce] = {}
        self._matcher: Matcher[tuple[str, int]] = Matcher()
        self._deadlines = Deadlines(self._is_open, self._open_deadlines, self._most_deadlines)
        self._removed: dict[str, int] = {}
        self.generation = 0
        """Grows with every change of the rules in force."""
        self._snapshot: Snapshot | None = None

    # --- looking --------------------------------------------------------------------------------------

    @property
    def automations(self) -> dict[str, Automation]:
        """The rules in force (paused ones too), by name."""
        return {name: rule.automation for name, rule in sorted(self._rules.items())}

    @property
    def now(self) -> float:
        """The time of the log, in seconds since 1970."""
        return self._now - self._shift

    @property
    def size(self) -> int:
        """How many rules are in force, paused ones too."""
        return len(self._rules)

    def revision_of(self, name: str) -> int:
        """Return the revision of the definition in force, or of the removal; 0 if the name was never heard of."""
        rule = self._rules.get(name)
        return rule.revision if rule is not None else self._removed.get(name, 0)

    def keys(self, name: str | None = None) -> int:
        """Return how many keys have state, over all rules or for one."""
        rules = self._rules.values() if name is None else (self._rules[name],)
        return sum(rule.form.keys() for rule in rules if rule.form is not None)

    def window(self, name: str, key: str) -> int:
        """Return how many events rule ``name`` has counted for a key."""
        rule = self._rules.get(name)
        return rule.form.window(key) if rule is not None and rule.form is not None else 0

    def look(self, name: str, key: str) -> JsonObject:
        """Return how a key of a rule stands, for people, in the time of the log."""
        rule = self._rules.get(name)
        if rule is None or rule.form is None:
            return {}
        out = rule.form.look(key)
        for word in MOMENTS & out.keys():
            if isinstance(moment := out[word], int | float):
                out[word] = moment - self._shift
        if rule.resolving is not None:
            out["open"] = key in rule.resolving
        return out

    def cooling_until(self, name: str, key: str) -> float | None:
        """Return until when a key's firings are held back by the cooldown, None if they are not."""
        rule = self._rules.get(name)
        cooling = rule.cooling.get(key) if rule is not None else None
        return cooling[0] - self._shift if cooling is not None else None

    def wants(self, type_: str) -> bool:
        """Return whether any rule could match an event of this type; others need not be parsed."""
        return type_ == ADOPTED or self._matcher.wants(type_)

    @property
    def filters(self) -> tuple[str, ...]:
        """The bus filters under which everything stands that matters to the rules in force."""
        return filters_to_follow(self._matcher.types)

    def is_due(self, at: float) -> bool:
        """Return whether a deadline may have passed by ``at``; cheap, and never wrong when it says no."""
        return self._deadlines.first <= at + self._shift

    def next_deadline(self) -> float | None:
        """Return the earliest deadline that is still open, in seconds since 1970."""
        at = self._deadlines.next_open()
        return None if at is None else at - self._shift

    # --- deciding -------------------------------------------------------------------------------------

    def step_record(self, record: Recorded) -> list[Decision]:
        """``step`` for a record of the log. What no rule wants is not even parsed; what is no event is passed over."""
        type_, recorded = type_of_record(record), record.recorded_s
        if type_ is not None and not self._matcher.wants(type_) and type_ != ADOPTED:
            return self.skip(seq=record.seq, recorded=recorded)
        return self.step_raw(record.raw, seq=record.seq, recorded=recorded)

    def step_raw(self, raw: bytes, *, seq: int, recorded: float) -> list[Decision]:
        """``step`` for the stored bytes. What is no event moves time on and no more."""
        try:
            row = _loads(raw)
        except _NotJson:
            row = None
        return self._step(row, seq, recorded, raw)

    def skip(self, *, seq: int, recorded: float) -> list[Decision]:
        """Pass over an event no rule wants (see ``wants``): only time moves on."""
        decisions = self._tick(self._moment(recorded))
        self.seq = seq
        return decisions and self._told(decisions)

    def tick(self, now: float, *, most: float = math.inf) -> list[Decision]:
        """Move time on to ``now`` (never back) and return what the deadlines before it decide, so many of them at most."""
        return self._told(self._tick(max(now + self._shift, self._now), most))

    def _moment(self, recorded: float) -> float:
        """Return the moment of a record in the fold's own time, which is now at the earliest."""
        now, moment = self._now, recorded + self._shift
        if now - moment > SET_BACK_S:
            by = math.ceil(now - moment)
            for rule in self._rules.values():
                rule.set_back(by, now, self._snapshot)
            self._shift += by
            moment = recorded + self._shift
        return max(moment, now)

    def _told(self, decisions: list[Decision]) -> list[Decision]:
        """Return decisions in the time of the log."""
        shift = self._shift
        return [earlier(d, shift) for d in decisions] if shift else decisions

    def _tick(self, now: float, most: float = math.inf) -> list[Decision]:
        self._now = now
        deadlines = self._deadlines
        if deadlines.first > now:
            return []
        decisions: list[Decision] = []
        while deadlines.first <= now and most > 0:
            most -= 1
            at, name, key, quiet = deadlines.pop()
            rule = self._rules.get(name)
            if rule is None or rule.form is None:
                continue
            if self._snapshot is not None:
                self._snapshot.before(name, key)
            rule.dumped = None
            if quiet:
                ended = rule.resolving.due(key, at) if rule.resolving is not None else None
                if ended is not None:
                    decisions.append(rule.resolution(key, ended, at, now, reason="quiet"))
                continue
            firing = rule.form.due(key, at, now)
            if firing is not None:
                self._fire(rule, key, firing, now, decisions)
        return decisions

    def step(self, row: dict[str, Any], *, seq: int, recorded: float) -> list[Decision]:
        """Fold one event of the log.

        Args:
            row: the parsed CloudEvent.
            seq: its place in the log; not above the last one: nothing happens.
            recorded: when the broker stored it, in seconds since 1970.
        Returns:
            What is decided, in order.
        """
        return self._step(row, seq, recorded, None)

    def _step(self, row: Any, seq: int, recorded: float, raw: bytes | None) -> list[Decision]:
        """``step`` for whatever the log held, ``raw``; None: it is known to be an event."""
        if seq <= self.seq:
            return []
        recorded += self._shift
        if recorded > self._now:
            self._now = recorded
        elif self._now - recorded > SET_BACK_S:
            recorded = self._now = self._moment(recorded - self._shift)
        else:
            recorded = self._now
        decisions = self._tick(recorded) if self._deadlines.first <= recorded else []
        self.seq = seq
        type_ = row.get("type") if row.__class__ is dict else None
        if type_.__class__ is not str:
            return decisions and self._told(decisions)
        if type_ == ADOPTED and row.get("source") == SOURCE:
            if raw is None or _is_event(raw, row):
                self._adopted(row)
            return decisions and self._told(decisions)
        hits = self._matcher.match(row)
        # Few events are of interest, so the others need not be looked at any closer.
        if not hits or not (raw is None or _is_event(raw, row)):
            return decisions and self._told(decisions)
        if len(hits) > 1:
            hits.sort()
        seen = _seen(row, seq, recorded, self._shift)
        # The first letter first: it settles the question for most types.
        own = _rule_spoken_of(row) if type_[:1] == "a" and type_.startswith(_OWN_WORDS) else None
        for name, role in hits:
            rule = self._rules[name]
            if rule.form is None or name == own:
                continue  # a rule does not react to its own firings and actions
            for key in rule.keys_of(row):
                if self._snapshot is not None:
                    self._snapshot.before(name, key)
                rule.dumped = None
                resolving = rule.resolving
                if resolving is not None and key in resolving:
                    if role == _RESOLVE:
                        ended = resolving.over(key, time=seen.time, recorded=recorded)
                        if ended is not None:
                            decisions.append(
                                rule.resolution(
                                    key, ended, seen.time, recorded, reason="condition", seen=seen
                                )
                            )
                        continue
                    resolving.heard(key, recorded)
                if role == _RESOLVE:
                    continue
                firing = rule.form.event(role, key, seen)
                if firing is not None:
                    self._fire(rule, key, firing, recorded, decisions)
        return decisions and self._told(decisions)

    def _fire(self, rule: InForce, key: str, firing: Firing, recorded: float, out: list[Decision]) -> None:
        """Let a firing through, or hold it back: depth, then cooldown, then budget."""
        config, automation, resolving = self.config, rule.automation, rule.resolving
        if firing.is_over:
            ended = resolving.came_back(key, firing.at) if resolving is not None else None
            if ended is not None and rule.says_over:
                out.append(
                    rule.resolution(key, ended, firing.at, recorded, reason="figure", extra=firing.extra)
                )
            return
        if resolving is not None:
            resolving.heard(key, recorded, firing=True)
        if automation.paused:
            return  # its windows go on as they would, so that it is right about them when it is resumed
        if firing.depth >= config.max_causal_depth:
            # Deeper ones are the echo of this; saying each would be the very storm this stops.
            if firing.depth == config.max_causal_depth:
                out.append(rule.decision(key, firing, recorded, reason="depth", suppressed=1))
            return
        limit, per_s = (
            (automation.budget.count, automation.budget.per_s)
            if automation.budget
            else (config.budget, config.budget_per_s)
        )
        lateness = automation.late_by(config.allowed_lateness_s)
        reason, number, until = rule.admit(key, firing, recorded, lateness=lateness, limit=limit, per_s=per_s)
        if reason and not (config.say_all or _worth_saying(number)):
            return
        decision = rule.decision(key, firing, recorded, suppressed=number, reason=reason, until=until)
        out.append(decision)
        if resolving is not None and not reason:
            resolving.fired(key, decision.id, at=firing.at, recorded=recorded, depth=firing.depth)

    def in_another_log(self, *, seq: int) -> Fold:
        """Return a fold with these rules and no state, to begin in another log at ``seq``."""
        fold = Fold(self.config)
        fold.seq = seq
        for rule in self._rules.values():
            fold.adopt(rule.automation, revision=rule.revision)
        return fold

    # --- rules come and go ----------------------------------------------------------------------------

    def _adopted(self, row: dict[str, Any]) -> None:
        data = row.get("data")
        if not isinstance(data, dict):
            return
        name, revision, definition = data.get("name"), data.get("revision"), data.get("definition")
        if not isinstance(name, str) or not isinstance(revision, int) or revision <= self.revision_of(name):
            return
        if definition is None:
            self.remove(name, revision=revision)
            return
        try:
            automation = parse_automation(definition, name=name)
        except RuleInvalid as exc:
            # Written by a newer version, perhaps. What was in force stays, and says so.
            self.errors[name] = str(exc)
            return
        self.adopt(automation, revision=revision)

    def adopt(self, automation: Automation, *, revision: int = 1) -> None:
        """Put a rule in force from here on; its windows stay if what they depend on has not changed."""
        name = automation.name
        self.generation += 1
        self.errors.pop(name, None)
        old = self._rules.get(name)
        keeps = (
            old is not None
            and old.form is not None
            and old.automation.matching_version == automation.matching_version
        )
        if keeps and old is not None:
            if self._snapshot is not None:
                self._snapshot.before(name, "")  # it is of the definitions of its moment, too
            lateness = automation.late_by(self.config.allowed_lateness_s)
            old.recool(automation.cooldown, now=self._now, lateness=lateness)
            old.define(automation, revision)
            return
        if old is not None:
            self._unlist(old)
        rule = InForce(automation, revision)
        if old is not None:
            rule.budget_from, rule.fired, rule.held = old.budget_from, old.fired, old.held
            if old.automation.matching_version == automation.matching_version:
                rule.cooling = old.cooling
        self._enlist(rule)
        if rule.form is not None:
            rule.form.start(self._now)

    def remove(self, name: str, *, revision: int = 0) -> None:
        """Take a rule and its state away."""
        self.generation += 1
        old = self._rules.pop(name, None)
        self.errors.pop(name, None)
        if old is not None:
            self._unlist(old)
        if revision:
            self._removed[name] = revision
            while len(self._removed) > 10_000:
                del self._removed[next(iter(self._removed))]

    def _enlist(self, rule: InForce) -> None:
        automation = rule.automation
        self._rules[automation.name] = rule
        self._removed.pop(automation.name, None)
        name = automation.name
        lateness = automation.late_by(self.config.allowed_lateness_s)
        rule.form = form_of(automation, lateness_s=lateness, arm=self._arming(name, quiet=False))
        for index, listening in enumerate(automation.listens):
            self._listen((name, index), listening)
        if automation.resolve is not None or automation.metric is not None:
            rule.resolving = Resolving(automation, lateness=lateness, arm=self._arming(name, quiet=True))
            if automation.resolves is not None:
                self._listen((name, _RESOLVE), automation.resolves)

    def _listen(self, handle: tuple[str, int], listening: Listening) -> None:
        checks = [compile_expression(text).holds for text in listening.ifs]
        extra: Check | None = None
        if checks:
            extra = checks[0] if len(checks) == 1 else _all(tuple(checks))
        self._matcher.add(handle, listening.types, listening.node, extra=extra)

    def _arming(self, name: str, *, quiet: bool) -> Callable[[str, float], None]:
        def arm(key: str, at: float) -> None:
            self._deadlines.add((at, name, key, quiet))

        return arm

    def _unlist(self, rule: InForce) -> None:
        if self._snapshot is not None:
            self._snapshot.before(rule.automation.name, "")
        for index in itertools.count():
            if (rule.automation.name, index) not in self._matcher:
                break
            self._matcher.remove((rule.automation.name, index))
        self._matcher.remove((rule.automation.name, _RESOLVE))
        rule.form = rule.resolving = None

    def _is_open(self, deadline: Deadline) -> bool:
        at, name, key, quiet = deadline
        rule = self._rules.get(name)
        waits = None if rule is None else rule.resolving if quiet else rule.form
        return waits is not None and waits.deadline(key) == at

    def _most_deadlines(self) -> int:
        return self.keys() + sum(len(rule.resolving or ()) for rule in self._rules.values())

    def _open_deadlines(self) -> list[Deadline]:
        return [
            (at, name, key, waits is rule.resolving)
            for name, rule in self._rules.items()
            for waits in (rule.form, rule.resolving)
            if waits is not None
            for key, at in waits.deadlines()
        ]

    # --- taking down and restoring --------------------------------------------------------------------

    def dump_definitions(self) -> bytes:
        """Return the rules in force, for ``restore``. They change rarely and are large."""
        rules = {name: orjson.Fragment(rule.defined) for name, rule in self._rules.items()}
        return orjson.dumps({"v": STATE_VERSION, "rules": rules, "removed": self._removed})

    def dump_state(self) -> bytes:
        """Return the state by rule and key in one piece, with the place in the log it belongs to."""
        rules: Any = {
            name: orjson.Fragment(raw)
            for name, rule in self._rules.items()
            if (raw := rule.dump_raw()) != b"{}"
        }
        return encode_part(self.seq, (self._now, self._shift), rules)

    def snapshot(self) -> Snapshot:
        """Begin to take the state of this moment bit by bit; an earlier snapshot is given up."""
        if self._snapshot is not None:
            self._snapshot.drop()
        self._snapshot = Snapshot(self.seq, (self._now, self._shift), self._rules)
        return self._snapshot

    def end_snapshot(self, snapshot: Snapshot) -> None:
        """Forget a snapshot, taken or not."""
        snapshot.drop()
        if self._snapshot is snapshot:
            self._snapshot = None

    @classmethod
    def restore(
        cls, definitions: bytes, state: bytes | Iterable[bytes], config: FoldConfig | None = None
    ) -> Fold:
        """Return the fold that was dumped, in one piece or in parts.

        Raises:
            ValueError: the state was written by another version of this code.
        """
        fold = cls.defined(definitions, config)
        for part in (state,) if isinstance(state, bytes) else state:
            fold.take_up(part)
        fold.wind_up()
        return fold

    @classmethod
    def defined(cls, definitions: bytes, config: FoldConfig | None = None) -> Fold:
        """Return a fold with the rules that were dumped and none of their state: ``take_up`` its parts."""
        fold = cls(config)
        stated = orjson.loads(definitions)
        _check_version(stated)
        for name, entry in stated["rules"].items():
            try:
                automation = parse_automation(entry["definition"], name=name)
            except RuleInvalid as exc:
                fold.errors[name] = str(exc)
                continue
            fold._enlist(InForce(automation, entry["revision"]))
        fold._removed = dict(stated.get("removed", {}))
        return fold

    def take_up(self, part: bytes) -> None:
        """Take up one part of the state that was dumped; of several, in any order."""
        with _uncollected():
            stated = orjson.loads(part)
            _check_version(stated)
            self.seq, self._now, self._shift = stated["seq"], stated["now"], stated.get("shift", 0.0)
            rules = stated["rules"]
            for name, own in rules.items() if isinstance(rules, dict) else rules:
                rule = self._rules.get(name)
                if rule is not None:
                    rule.load(own)

    def wind_up(self) -> None:
        """Set the deadlines of the state that was taken up."""
        self._deadlines.rebuild()


_loads, _NotJson = orjson.loads, orjson.JSONDecodeError


def _check_version(stated: JsonObject) -> None:
    if stated.get("v") != STATE_VERSION:
        raise ValueError(f"rule state of version {stated.get('v')!r}, this is version {STATE_VERSION}")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Make many objects that stay, without the collector looking at all of them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _all(checks: tuple[Callable[[Any], bool], ...]) -> Check:
    return lambda e: all(check(e) for check in checks)


def _worth_saying(n: int) -> bool:
    """Return whether the ``n``-th suppression is told: each of the first ten, then 20, 30 … 100, 200 … and so on."""
    while n > 10 and n % 10 == 0:
        n //= 10
    return n <= 10


def _is_event(raw: bytes, row: dict[str, Any]) -> bool:
    return lacking(row) is None and not is_too_deep(raw, row)


def _seen(row: dict[str, Any], seq: int, recorded: float, shift: float) -> Seen:
    time = recorded
    text = row.get("time")
    if text.__class__ is str:
        try:
            time = datetime.fromisoformat(text).timestamp() + shift
        except ValueError:
            pass  # it occurred when it was recorded, as if it did not say
        else:
            # An event cannot occur after it was recorded: a clock that runs ahead would hold windows open for ever.
            if time > recorded:
                time = recorded
    depth, id_ = row.get("causaldepth", 0), row.get("id", "")
    # As ``Seen(…)`` makes it, in half the time: this is one of the few things done for each event that matches.
    return _new_tuple(
        Seen, (row, seq, recorded, time, str(id_), depth if depth.__class__ is int else 0, shift)
    )


_new_tuple: Callable[[type[Seen], tuple[Any, ...]], Seen] = tuple.__new__


def _rule_spoken_of(row: dict[str, Any]) -> str | None:
    data = row.get("data")
    name = data.get("automation") if isinstance(data, dict) else None
    if isinstance(name, dict):
        name = name.get("name")
    return name if isinstance(name, str) else None
