"""The fold that decides what is told to whom and when. Pure: facts and times in, decisions out.

An alert joins a group for each route it goes to. A group is told ``group_wait`` after its first alert, of further ones
``group_interval`` after its last message, of all that is still open every ``repeat_interval``, and of what is over with
the next message. Silences, mute times and inhibition are looked at when a message is due, not when an alert comes:

- a silence or an inhibition holds a problem back while it lasts (told afterwards if still open), and drops news;
- a mute time postpones everything of its route.

A problem (warning and worse) is open until it is resolved or, not raised again, forgotten after ``resolve_timeout``. News
(info, success) is told once. Acknowledging covers what has been told: no repeats, no escalation, until something new
comes. A problem that ends before it was told is not told at all, and one that is raised again while open is counted.

Times are seconds since 1970 and never go back: a fact of an earlier time than the last is taken as of the last. Only
``set_back`` moves them back: what has happened has happened by then, what waits waits no longer than it would have.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..vocabulary import JsonObject, derived_id
from . import saying
from .alert import Alert, Cause
from .group import Decision, Group, Member, group_key, kind_of_message
from .inhibition import Sources
from .routing import Route, Tree, next_digest
from .seen import Seen
from .silence import SilenceBook
from .whereabouts import Whereabouts

__all__ = ["Grouping"]

MAX_OPEN = 5000


class Grouping:
    """The state of all groups. Every method that takes a time first lets pass what was due before it.

    ``changed`` has the keys of the groups that changed (or left) since whoever keeps them emptied it.

    Args:
        max_open: how many alerts are kept; past it the oldest is told, if it was not yet, and closed.
    """

    def __init__(self, tree: Tree, silences: SilenceBook, *, max_open: int = MAX_OPEN) -> None:
        self.tree, self.silences, self.now = tree, silences, 0.0
        self.groups: dict[str, Group] = {}
        self.changed: set[str] = set()
        self._is_drowsy = False
        self._max_open = max_open
        self._due: list[tuple[float, str]] = []
        self._where = Whereabouts()
        self._ids: dict[str, str] = {}  # incident id -> key of its group
        self._sources = Sources(tree.inhibitions)
        self.seen = Seen()
        self._out: list[Decision] = []

    # --- facts ----------------------------------------------------------------------------------------

    def raised(self, alert: Alert, at: float) -> list[Decision]:
        """Take in an alert, or that one is over."""
        self._pass(at)
        # The same event again, from a writer that did not know the first had landed.
        if self.seen.add(alert.cause.id):
            if alert.resolved:
                self._resolve([alert.id], alert)
            else:
                self._take(alert)
        return self._decided()

    def rule_resolved(self, automation: str, key: str, cause: Cause, at: float) -> list[Decision]:
        """Take in that the condition of a rule no longer holds for a key: its alerts are over."""
        self._pass(at)
        ids = [
            id_
            for id_ in self._where.said_by(automation, key)
            if any(m.alert.rule == (automation, key) for m in self._members(id_))
        ]
        if ids:
            self._resolve(ids, None, cause)
        return self._decided()

    def acknowledged(
        self, incident: str, by: str, at: float, *, stamp: float | None = None
    ) -> list[Decision]:
        """Take in that somebody has taken on an incident. Nothing happens if it is over or unknown.

        Args:
            stamp: of the message that is answered; one from before the last acknowledgement no longer counts.
        """
        self._pass(at)
        group = self.groups.get(self._ids.get(incident, ""))
        since = group.unacked_since if group is not None else None
        # A message from the future went out before the clock was set back, and may be answered.
        if group is not None and since is not None and (stamp is None or stamp == since or stamp > self.now):
            for member in group.members.values():
                if member.told_at is not None:
                    member.acked = True
            group.acked_at, group.acked_by = self.now, by
            group.unacked_since, group.escalated = None, 0
            self._schedule(group)
        return self._decided()

    def advance(self, at: float) -> list[Decision]:
        """Let time pass."""
        self._pass(at)
        return self._decided()

    def wake(self, at: float) -> None:
        """Begin again at ``at`` after having been away. Until ``rouse`` nothing falls due: first come the facts missed."""
        self.now = max(self.now, at)
        self._is_drowsy = True

    def rouse(self, silences: SilenceBook, at: float) -> list[Decision]:
        """Be back, all facts known: what fell due meanwhile and is not settled by them happens once, now.

        Silences may have ended, or been removed, with nobody there to see it.
        """
        self._is_drowsy = False
        return self.adopt_silences(silences, at)

    def set_back(self, at: float) -> list[Decision]:
        """Hear that the clock was set back: it is ``at`` now."""
        by_s, self.now = self.now - at, at
        self._where.set_back(at)
        for group in self.groups.values():
            group.set_back(by_s, to=at)
            route = self._route(group)
            for member in group.members.values():
                if member.held:
                    member.ready = at  # looked at again: what holds it back ends by the clock
                elif route.digest is not None and member.ready > at:
                    member.ready = next_digest(route.digest, at)
            group.is_rough, group.not_before, group.escalate_at = False, 0.0, 0.0
            self._wake_at(group, at)
        self._pass(at)
        return self._decided()

    def next_deadline(self) -> float | None:
        """Return when something is due next."""
        while self._due:
            at, key = self._due[0]
            group = self.groups.get(key)
            if group is not None and group.due == at:
                return at
            heapq.heappop(self._due)
        return None

    # --- what people change ---------------------------------------------------------------------------

    def adopt_silences(self, silences: SilenceBook, at: float) -> list[Decision]:
        """Take over silences as they are now; what is no longer held back is told."""
        self._pass(at)
        self.silences = silences
        for group in self.groups.values():
            self._release(group, "silence ")
        self._pass(at)
        return self._decided()

    def adopt(self, tree: Tree, at: float) -> list[Decision]:
        """Take over another section. Alerts go where it sends them; what was told stays told."""
        self._pass(at)
        before, self.tree = self.groups, tree
        self.changed |= before.keys()
        self.groups, self._due, self._where, self._ids = {}, [], Whereabouts(), {}
        self._sources = Sources(tree.inhibitions)
        for old in before.values():
            kept = tree.route(old.route) is not None
            for member in old.members.values():
                if kept:
                    routes = [r for r in (tree.route(old.route),) if r is not None]
                else:
                    routes = tree.targets(member.alert.facts)
                if not routes:
                    self._out.append(saying.unrouted(member.alert, self.now))
                for route in routes:
                    self._move(member, old, route)
            if kept and not old.members and old.key not in self.groups:
                self.groups[old.key] = old
                self._wake_at(old, old.due)
        for alert_id in self._where:
            self._note_source(alert_id)
        for group in list(self.groups.values()):
            group.muted = ""
            route = self._route(group)
            for member in group.members.values():
                if member.held:
                    member.ready = self.now
                elif member.waits and group.flushed_at is not None and route.digest is None:
                    # A shorter interval holds for what waits already, too.
                    member.ready = min(member.ready, max(self.now, group.flushed_at + route.group_interval))
            self._schedule(group)
        self._pass(at)
        return self._decided()

    def _move(self, member: Member, old: Group, route: Route) -> None:
        labels = route.labels(member.alert.facts, member.alert.id)
        key = group_key(route.key, labels)
        group = self.groups.get(key)
        if group is None:
            # The incident goes on under its id where it is still whole; parts of it become incidents of their own.
            id_ = old.id if old.id not in self._ids else derived_id("incident", key, old.id)
            group = Group(
                key, route.key, labels, id_, old.opened_at, flushed_at=old.flushed_at, sent_at=old.sent_at,
                told_to=list(old.told_to), sends=old.sends, unacked_since=old.unacked_since, escalated=old.escalated,
                acked_at=old.acked_at, acked_by=old.acked_by,
            )  # fmt: skip
            self.groups[key] = group
            self._ids[id_] = key
        if member.alert.id not in group.members:
            # A copy: with `continue` it goes to several groups, each of which tells it for itself.
            group.members[member.alert.id] = replace(member)
            self._where.join(member.alert, key, member.since)

    # --- alerts ---------------------------------------------------------------------------------------

    def _take(self, alert: Alert) -> None:
        routes = self.tree.targets(alert.facts)
        if not routes:
            self._out.append(saying.unrouted(alert, self.now))
            return
        for route in routes:
            self._join(alert, route)
        self._note_source(alert.id)
        if len(self._where) > self._max_open:
            self._evict(keep=alert.id)
        if len(self.groups) > 2 * self._max_open:
            # Empty ones only remember when they were last told; a flood may cost that.
            for group in [g for g in self.groups.values() if not g.members]:
                self._forget(group)

    def _note_source(self, alert_id: str) -> None:
        """Let an alert hold others back by what was last said of it, if it is an open problem anywhere.

        Whom it held back by what was said of it before is looked at again.
        """
        problems = [m for m in self._members(alert_id) if m.is_open_problem]
        if self._sources.replace(alert_id, max(problems, key=lambda m: m.last).alert if problems else None):
            self._release_inhibited()

    def _members(self, alert_id: str) -> list[Member]:
        """Return an alert as it is in each of its groups."""
        return [self.groups[key].members[alert_id] for key in self._where.groups_of(alert_id)]

    def _join(self, alert: Alert, route: Route) -> None:
        now = self.now
        labels = route.labels(alert.facts, alert.id)
        key = group_key(route.key, labels)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(key, route.key, labels, "", now)
        member = group.members.get(alert.id)
        if member is not None and (member.told_at is not None or member.resolved_at is None):
            member.count += 1
            member.last, member.alert = now, alert
            self._where.name(alert)
            # It came back before its end was told: for those who were told, it never ended.
            member.resolved_at = None
            member.is_news = member.is_news and alert.is_news
            if member.held:
                member.ready = max(now, group.next_look)  # what is said of it now may not be held back
            self._reconsider(group, member)
            return
        if not group.members:
            self._ids.pop(group.id, None)
            group.id, group.opened_at = derived_id("incident", key, alert.cause.id), now
            self._ids[group.id] = key
            group.told_to, group.unacked_since, group.escalated = [], None, 0
            group.acked_at, group.acked_by = None, ""
        if route.digest is not None:
            ready = next_digest(route.digest, now)
        elif group.flushed_at is None:
            ready = now + route.group_wait
        else:
            ready = max(now, group.flushed_at + route.group_interval)
        ready = max(ready, group.next_look)
        group.members[alert.id] = Member(alert, now, now, ready, is_news=alert.is_news, first=alert.cause.id)
        self._where.join(alert, key, now)
        self._wake_at(group, min(group.due, max(ready, group.not_before)))
        self._out.append(saying.grouped(alert, group, route, now))

    def _resolve(self, ids: Iterable[str], by: Alert | None, cause: Cause | None = None) -> None:
        """End alerts; ``by`` may say so in words of its own."""
        for id_ in ids:
            keys = self._where.groups_of(id_)
            if not keys and by is not None:
                self._out.append(saying.was_not_open(by, self.now))
            for key in keys:
                group = self.groups[key]
                member = group.members[id_]
                if member.resolved_at is not None:
                    continue
                route = self._route(group)
                if member.waits or not route.send_resolved or member.is_news:
                    reason = "resolved before it was told" if member.waits else "resolved"
                    self._close(group, member, reason, told=not member.waits)
                else:
                    member.resolved_at = self.now
                    member.ready = max(self.now, (group.flushed_at or self.now) + route.group_interval)
                    if by is not None:
                        facts = {**member.alert.facts, "severity": by.message.severity.value}
                        member.alert = Alert(id_, by.message, facts, True, by.cause)
                    elif cause is not None:
                        old = member.alert
                        member.alert = Alert(id_, old.message, old.facts, True, cause)
                self._reconsider(group, group.members.get(id_))
            self._freed(id_)

    def _close(self, group: Group, member: Member, reason: str, *, told: bool) -> None:
        self.changed.add(group.key)
        del group.members[member.alert.id]
        if self._where.leave(member.alert.id, group.key):
            self._freed(member.alert.id)
        if reason:
            self._out.append(saying.closed(member, group, reason, told=told, at=self.now))

    def _freed(self, alert_id: str) -> None:
        """An alert is over: whom it held back is looked at again."""
        if self._sources.replace(alert_id, None):
            self._release_inhibited()

    def _release_inhibited(self) -> None:
        for group in self.groups.values():
            self._release(group, "inhibited")

    def _release(self, group: Group, by: str) -> None:
        held = [member for member in group.members.values() if member.held.startswith(by)]
        for member in held:
            member.ready = self.now
        if held:
            self._wake_at(group, min(group.due, self.now))

    def _evict(self, *, keep: str) -> None:
        key, id_ = self._where.oldest(but=keep)
        group = self.groups[key]
        member = group.members[id_]
        if member.waits and self._may_be_told(member, group):
            member.ready = self.now
            self._look(group)
        for other in self._where.groups_of(id_):
            group = self.groups[other]
            member = group.members[id_]
            self._close(group, member, f"more than {self._max_open} alerts are open", told=not member.waits)
            self._reconsider(group, None)

    def _may_be_told(self, member: Member, group: Group) -> bool:
        """Whether to look at a group for one of its alerts can be of use: not if what has held it back holds it now."""
        quiet = self._route(group).quiet(self.now)
        if quiet is not None:
            return group.muted != "{} {}".format(*quiet)
        return not member.held or self._held(member) is None

    # --- time -----------------------------------------------------------------------------------------

    def _pass(self, at: float) -> None:
        """Do everything that is due until ``at``, in order, each at its time."""
        at = max(at, self.now)
        while not self._is_drowsy and (due := self.next_deadline()) is not None and due <= at:
            _, key = heapq.heappop(self._due)
            group = self.groups[key]
            if group.is_rough:
                self._schedule(group, not_before=group.not_before, escalate_at=group.escalate_at)
                if group.due > due:
                    continue
            self.now = max(self.now, due)
            self._look(group)
        self.now = at

    def _decided(self) -> list[Decision]:
        out, self._out = self._out, []
        return out

    def _wake_at(self, group: Group, at: float) -> None:
        self.changed.add(group.key)
        group.due = at
        if at < math.inf:
            heapq.heappush(self._due, (at, group.key))

    def _reconsider(self, group: Group, member: Member | None) -> None:
        """Have a group looked at again after one of its members has changed (None: has left), at the right time or before.

        Its own times are all that can bring it forward. What the others ask for is found out when that time comes: of thousands
        that are raised again, or are over, each would cost as much as all of them.
        """
        if not group.members:
            self._schedule(group)
            return
        self.changed.add(group.key)
        group.is_rough = True
        if member is not None:
            due = member.due_by_itself(self.tree.resolve_timeout)
            if member.wants_repeat:
                if group.escalate_at and self._held(member) is None:
                    group.escalate_at = 0.0  # what is said of it now is held back by nothing
                due = min(due, group.repeat_due(self._route(group), group.escalate_at))
            if (due := max(due, group.not_before)) < group.due:
                self._wake_at(group, due)

    def _schedule(self, group: Group, *, not_before: float = 0.0, escalate_at: float = 0.0) -> None:
        """Find out when a group has to be looked at next; an empty one is forgotten after its interval."""
        group.is_rough, group.not_before, group.escalate_at = False, not_before, escalate_at
        route = self._route(group)
        if not group.members:
            again = (group.flushed_at or -math.inf) + route.group_interval
            if again > self.now:
                self._wake_at(group, again)  # what comes until then is told then, not after a new wait
            else:
                self._forget(group)
            return
        members = group.members.values()
        due = min(m.due_by_itself(self.tree.resolve_timeout) for m in members)
        if any(m.wants_repeat for m in members):
            due = min(due, group.repeat_due(route, escalate_at))
        self._wake_at(group, max(due, not_before))

    def _forget(self, group: Group) -> None:
        self.changed.add(group.key)
        group.due = math.inf
        self._ids.pop(group.id, None)
        self.groups.pop(group.key, None)

    def _route(self, group: Group) -> Route:
        route = self.tree.route(group.route)
        assert route is not None
        return route

    def _look(self, group: Group) -> None:
        """Tell of a group what is to be told now, and find out when to look again."""
        now, route, timeout = self.now, self._route(group), self.tree.resolve_timeout
        group.looked_at = now
        for member in [m for m in group.members.values() if m.is_open_problem and m.last + timeout <= now]:
            self._close(group, member, "not raised again for the resolve timeout", told=not member.waits)
        quiet = route.quiet(now) if group.members else None
        if quiet is not None:
            self._keep_quiet(group, *quiet)
            return
        group.muted = ""
        fresh, recovered = self._ripe(group)
        repeated = self._repeated(group, route) if not fresh else []
        if fresh or recovered or repeated:
            self._tell(group, route, fresh, recovered, repeated)
        escalate_at = self._escalate(group, route)
        self._schedule(group, escalate_at=escalate_at)

    def _keep_quiet(self, group: Group, name: str, end: float) -> None:
        label = f"{name} {end}"
        if group.muted != label:
            group.muted = label
            self._out.append(saying.muted(group, name, until=end, at=self.now))
        self._schedule(group, not_before=end)

    def _ripe(self, group: Group) -> tuple[list[Member], list[Member]]:
        """Return the members that are told now, new and over; those held back are noted."""
        now = self.now
        if not any(m.ready <= now for m in group.members.values() if m.waits or m.resolved_at is not None):
            return [], []
        fresh, recovered = list[Member](), list[Member]()
        for member in list(group.members.values()):
            if (not member.waits and member.resolved_at is None) or (member.held and member.ready > now):
                continue  # what holds it back is known to, until then
            held = self._held(member)
            if held is None:
                member.held = ""
                (fresh if member.waits else recovered).append(member)
                continue
            word, ref, until = held
            dropped = member.is_news or member.resolved_at is not None
            label = f"silence {ref}" if word == "silenced" else word
            if member.held != label or dropped:
                self._out.append(saying.held_back(member, group, word, by=ref, dropped=dropped, at=now))
            member.held, member.ready = label, until
            if dropped:
                self._close(group, member, "", told=False)
        return fresh, recovered

    def _held(self, member: Member) -> tuple[str, str, float] | None:
        """Return what holds an alert back now (the word of its event, by what, until when), or None."""
        silence = self.silences.holding(member.alert.facts, self.now)
        if silence is not None:
            return "silenced", *silence
        # That something is over is told to those who were told that it began.
        by = self._sources.holding(member.alert) if member.resolved_at is None else None
        return ("inhibited", by, math.inf) if by is not None else None

    def _repeated(self, group: Group, route: Route) -> list[Member]:
        """Return the open alerts to be told again, if it is time."""
        if group.sent_at is None or group.sent_at + route.repeat_interval > self.now:
            return []
        wanted = [m for m in group.members.values() if m.wants_repeat]
        held = [h for m in wanted if (h := self._held(m)) is not None]
        if wanted and len(held) == len(wanted):
            # Looked at again when the first of what holds them ends, else after another interval.
            until = min(until for *_, until in held)
            group.sent_at = self.now if until == math.inf else until - route.repeat_interval
            return []
        return [m for m in wanted if self._held(m) is None]

    def _tell(
        self, group: Group, route: Route, fresh: list[Member], recovered: list[Member], repeated: list[Member]
    ) -> None:
        now = self.now
        kind = kind_of_message(fresh, repeated, in_digests=bool(route.digest))
        problems = [m for m in fresh if not m.is_news]
        again = {m.alert.id for m in repeated}
        open_ = [
            m
            for m in group.members.values()
            if m.wants_repeat and m.alert.id not in again and self._held(m) is None
        ]
        shown = [*fresh, *repeated, *(open_ if fresh or repeated else [])]
        for member in fresh:
            member.told_at = now
        to = route.to if shown else ()
        told = tuple(group.told_to)
        if problems:
            group.told_to = list(dict.fromkeys([*told, *to]))
            if group.unacked_since is None:
                group.unacked_since, group.escalated = now, 0
            group.acked_at, group.acked_by = None, ""
        for receiver in dict.fromkeys(to):
            new = [m.alert.id for m in fresh]
            self._out.append(
                saying.sent(group, receiver, kind, firing=shown, recovered=recovered, at=now, new=new)
            )
        if recovered:
            for receiver in told:
                if receiver not in to:
                    self._out.append(
                        saying.sent(group, receiver, "recovered", firing=[], recovered=recovered, at=now)
                    )
        if fresh or recovered:
            group.flushed_at = now
        group.sent_at = now
        group.sends += 1
        for member in [*recovered, *(m for m in fresh if m.is_news)]:
            self._close(group, member, "", told=True)

    def _escalate(self, group: Group, route: Route) -> float:
        """Do the steps that are due; return before when not to look again, 0 if that does not matter."""
        if group.unacked_since is None:
            return 0.0
        open_ = [m for m in group.members.values() if m.wants_repeat]
        if not open_:
            group.unacked_since, group.escalated = None, 0
            return 0.0
        while group.escalated < len(route.escalate):
            step = route.escalate[group.escalated]
            if group.unacked_since + step.after > self.now:
                return 0.0
            held = [h for m in open_ if (h := self._held(m)) is not None]
            if len(held) == len(open_):
                until = min(until for *_, until in held)
                return until if until < math.inf else self.now + route.group_interval
            shown = [m for m in open_ if self._held(m) is None]
            waited_s, at = self.now - group.unacked_since, self.now
            for receiver in step.to:
                said = saying.sent(
                    group, receiver, "escalation", firing=shown, recovered=[], at=at, waited_s=waited_s
                )
                self._out.append(said)
            group.sends += 1
            group.escalated += 1
            group.told_to = list(dict.fromkeys([*group.told_to, *step.to]))
            self._out.append(saying.escalated(group, step, shown, waited_s=waited_s, at=self.now))
        return 0.0

    # --- state ----------------------------------------------------------------------------------------

    def dump(self) -> JsonObject:
        """Return all there is to know, as JSON; ``load`` reads it."""
        return {
            "now": self.now, "seen": list(self.seen), "groups": [g.to_json() for g in self.groups.values()],
        }  # fmt: skip

    @classmethod
    def load(
        cls, value: Mapping[str, Any], tree: Tree, silences: SilenceBook, *, max_open: int = MAX_OPEN
    ) -> Grouping:
        """Make the fold that ``dump`` described; its routes are those of ``tree``, whatever they were then."""
        made = cls(tree, silences, max_open=max_open)
        made.now = float(value["now"])
        made.seen = Seen(value["seen"])
        for raw in value["groups"]:
            group = Group.from_json(raw)
            made.groups[group.key] = group
            if group.id:
                made._ids[group.id] = group.key
            for member in group.members.values():
                made._where.join(member.alert, group.key, member.since)
            made._wake_at(group, group.due)
        for alert_id in made._where:
            made._note_source(alert_id)
        if any(tree.route(g.route) is None for g in made.groups.values()):
            made._out += made.adopt(tree, made.now)
        return made
