"""Why a rule did, or did not, act on an event: each condition, and what its window held at that moment.

The moment is made again: the rules as they are now are folded over what happened before the event, as far back as
they remember. Beside it stands what was really decided then, from the log; the two differ when a rule has been changed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.event import format_time, parse_time, readable
from ...bus.subject import PREFIX
from ...duration import format_duration
from ...vocabulary import JsonObject, JsonValue
from ..folding.decision import RESOLVED, SUPPRESSED, TRIGGERED, Decision
from ..folding.fold import FoldConfig
from ..folding.key import key_values, keys_of, show_key
from ..forms.form import MOMENTS
from ..matching.condition import parse_where
from ..matching.matcher import pattern_covers
from ..matching.where import explain
from ..model import Automation
from .backtest import Replay, decision_json, filters_of
from .explain import Look, explain_event, predicates_of

if TYPE_CHECKING:
    from ...bus import Bus, Recorded

__all__ = ["Judgement", "Standing", "decision_of", "explain_moment", "memory_s"]

MAX_RULES = 50
"""Rules that are folded anew for one answer; of more, only the conditions are looked at."""
_DAY_S = 86_400.0
_LONGEST_S = 7 * 86_400.0
_LOOK_AHEAD = 20_000


@dataclass(frozen=True, slots=True)
class Standing:
    """How a key stood just before the event, and just behind it; ``late_s``: how much too late it came to be counted."""

    key: str
    before: JsonObject
    after: JsonObject
    cooling_until: float | None
    waits: tuple[Look, ...] = ()
    late_s: float | None = None

    def to_json(self) -> JsonObject:
        out: JsonObject = {"key": self.key, "before": _dated(self.before), "after": _dated(self.after)}
        if self.cooling_until is not None:
            out["cooldown_until"] = _stamp(self.cooling_until)
        if self.late_s is not None:
            out["too_late_by_s"] = round(self.late_s, 3)
        if self.waits:
            out["waits"] = [look.to_json() for look in self.waits]
        return out


@dataclass(frozen=True, slots=True)
class Judgement:
    """One rule and one event.

    Attributes:
        looks: how the event fared with each pattern of the rule.
        standings: by key, if it took part; ``decisions``: what the rule as it is now decides at this event.
        actual: what was decided then that rests on this event, as it stands in the log.
    """

    automation: Automation
    looks: tuple[Look, ...]
    standings: tuple[Standing, ...] = ()
    decisions: tuple[Decision, ...] = ()
    actual: tuple[JsonObject, ...] = ()

    @property
    def takes_part(self) -> bool:
        return any(look.takes_part for look in self.looks)

    @property
    def waits(self) -> tuple[Look, ...]:
        """How the event fared with what begun sequences asked of their next step, where that speaks of earlier events."""
        return tuple(look for standing in self.standings for look in standing.waits)

    @property
    def _answers_nothing(self) -> bool:
        """Whether it fits a later step of a sequence, and took no wait on."""
        if self.automation.sequence is None or not self.standings or self.looks[0].matched:
            return False
        return all(s.before == s.after for s in self.standings)

    @property
    def verdict(self) -> str:
        """What came of it, in a few words."""
        rule = self.automation
        if not self.takes_part:
            closest = max(self.looks, key=lambda look: sum(p.ok for p in look.predicates))
            return f"no match for `{closest.role}`: {closest.why}" if closest.why else "no match"
        said = [
            f"held back by {d.reason}{f' until {_stamp(d.until)}' if d.until is not None else ''}"
            if d.what == "suppressed"
            else {"triggered": "fires", "resolved": "resolves"}[d.what]
            for d in self.decisions
        ]
        if rule.paused:
            return "paused" + (f"; otherwise it {' and '.join(said)}" if said else "")
        if said:
            shadow = ", in shadow: it does not act" if rule.mode == "shadow" else ""
            return " and ".join(dict.fromkeys(said)) + shadow
        if self._answers_nothing:
            asked = next(
                (str(p).removeprefix("no  ") for w in self.waits for p in w.predicates if not p.ok), ""
            )
            return f"no match for what is waited for: {asked}" if asked else "nothing waited for it"
        late = [s.late_s for s in self.standings if s.late_s is not None]
        if late and len(late) == len(self.standings):
            return (
                f"not counted: it came {format_duration(max(1.0, round(max(late))))} later than"
                " `allowed_lateness` lets events of a key come after a newer one"
            )
        return "counted, and not enough yet" if rule.kind not in ("absence", "heartbeat") else "noted"

    def to_json(self) -> JsonObject:
        return {
            "automation": self.automation.name, "version": self.automation.version, "kind": self.automation.kind,
            "paused": self.automation.paused, "mode": self.automation.mode, "verdict": self.verdict,
            "takes_part": self.takes_part, "looks": [look.to_json() for look in self.looks],
            "standings": [s.to_json() for s in self.standings], "decisions": [decision_json(d) for d in self.decisions],
            "actual": [*self.actual],
        }  # fmt: skip


def _stamp(at: float) -> str:
    return format_time(datetime.fromtimestamp(at, UTC))


def _dated(look: JsonObject) -> JsonObject:
    return {
        k: _stamp(v) if k in MOMENTS and isinstance(v, int | float) and not isinstance(v, bool) else v
        for k, v in look.items()
    }


def memory_s(automation: Automation, config: FoldConfig) -> float:
    """Return how far back a rule remembers anything that could matter now, in seconds, at most a week."""
    lateness = (
        automation.allowed_lateness if automation.allowed_lateness is not None else config.allowed_lateness_s
    )
    if automation.metric is not None and automation.metric.measure == "queue_depth":
        return _DAY_S  # a run that has waited longer was said to be late long ago
    own = (automation.within or 0.0) + automation.settles_s + lateness
    held = (automation.cooldown or 0.0) + config.budget_per_s
    return min(_LONGEST_S, 2 * own + held + 60.0)


async def explain_moment(
    bus: Bus,
    automations: Sequence[Automation],
    record: Recorded,
    *,
    config: FoldConfig | None = None,
    longest_s: float = 30.0,
) -> list[Judgement]:
    """Return how each rule judged an event of the log, the ones that took part first, then the near misses.

    Rules that listen to other types are left out, unless there is only one to explain.
    """
    base = config or FoldConfig()
    row: Any = orjson.loads(record.raw)
    type_ = str(row.get("type", ""))
    judged: list[Judgement] = []
    for automation in automations:
        listens = (*automation.listens, *((automation.resolves,) if automation.resolves else ()))
        if len(automations) == 1 or any(pattern_covers(t, type_) for one in listens for t in one.types):
            judged.append(Judgement(automation, tuple(explain_event(automation, row))))
    judged.sort(key=lambda j: (not j.takes_part, j.automation.name))
    taking = [j.automation for j in judged if j.takes_part][:MAX_RULES]
    if not taking:
        return judged
    replay, standings = await _replayed(bus, taking, record, row, base, longest_s)
    actual = await _decided(bus, record, row)
    out = []
    for one in judged:
        name = one.automation.name
        if name not in standings:
            out.append(one)
            continue
        made = tuple(
            d for d in replay.outcomes[name].decisions if d.recorded >= record.recorded_at.timestamp()
        )
        mine = tuple(a for a in actual if a["automation"] == name)
        out.append(Judgement(one.automation, one.looks, standings[name], made, mine))
    return out


async def _replayed(
    bus: Bus,
    taking: list[Automation],
    record: Recorded,
    row: dict[str, Any],
    config: FoldConfig,
    longest_s: float,
) -> tuple[Replay, dict[str, tuple[Standing, ...]]]:
    """Fold what came before the event, then the event, and return how each key stood on either side of it."""
    far = max(memory_s(a, config) for a in taking)
    since = record.recorded_at - timedelta(seconds=far)
    deadline = time.perf_counter() + longest_s
    everything = FoldConfig(
        allowed_lateness_s=config.allowed_lateness_s, max_causal_depth=config.max_causal_depth, budget=config.budget,
        budget_per_s=config.budget_per_s, say_all=True,
    )  # fmt: skip
    replay = Replay(taking, begins=since.timestamp(), config=everything, keep=0)
    async with bus.log.read(filters_of(taking), since=since) as batches:
        async for batch in batches:
            replay.records(one for one in batch.records if one.seq < record.seq)
            if batch.records[-1].seq >= record.seq or time.perf_counter() > deadline:
                break
    at = record.recorded_at.timestamp()
    occurred = min(at, parse_time(str(row["time"])).timestamp()) if "time" in row else at
    replay.pass_time(at)
    fold = replay.fold
    before = {
        (a.name, key): (fold.look(a.name, key), fold.cooling_until(a.name, key))
        for a in taking
        for key in keys_of(a, row)[:20]
    }
    replay.keep = 100
    replay.row(row, seq=record.seq, recorded=at)
    standings: dict[str, tuple[Standing, ...]] = {}
    for automation in taking:
        name = automation.name
        standings[name] = tuple(
            Standing(
                show_key(key_values(automation, key)),
                look,
                fold.look(name, key),
                _still(until, at),
                _asked(automation, look, row),
                _late(look, occurred, automation.late_by(config.allowed_lateness_s)),
            )
            for (owner, key), (look, until) in before.items()
            if owner == name
        )
    return replay, standings


def _late(before: JsonObject, occurred: float, lateness: float) -> float | None:
    """Return by how many seconds more than is allowed an event is older than the newest of its key; None: it is in time."""
    newest = before.get("newest")
    if not isinstance(newest, int | float) or occurred >= newest - lateness:
        return None
    return newest - lateness - occurred


def _asked(automation: Automation, before: JsonObject, row: dict[str, Any]) -> tuple[Look, ...]:
    """Return how the event fares with what waits of a sequence ask for, each different wish once."""
    found: dict[bytes, Look] = {}
    waits: Any = before.get("waits") or []
    for wait in waits:
        step = (automation.sequence or ())[wait["step"]]
        asks = wait.get("asks")
        if not asks or not all(p.ok for p in predicates_of(step.on, row, step.linked.node)):
            continue
        wish = orjson.dumps([wait["step"], asks], default=str)
        node, _ = parse_where(asks)
        if wish not in found and node is not None:
            found[wish] = Look(step.as_ or f"sequence[{wait['step']}]", tuple(explain(node, row)), ("",))
    return tuple(found.values())


def _still(until: float | None, at: float) -> float | None:
    return until if until is not None and until > at else None


def decision_of(record: Recorded) -> JsonObject | None:
    """Return what an event of the log decided, with the events it rests on; None if it is no decision of a rule."""
    row: Any = orjson.loads(record.raw)
    type_, data = str(row.get("type", "")), row.get("data")
    if type_ not in (TRIGGERED, SUPPRESSED, RESOLVED) or not isinstance(data, dict):
        return None
    refs = [r for r in data.get("events") or [] if isinstance(r, dict)]
    return {
        "what": type_.partition(".")[2], "automation": (data.get("automation") or {}).get("name"),
        "version": (data.get("automation") or {}).get("version"), "key": data.get("key"), "count": data.get("count"),
        "reason": data.get("reason"), "until": data.get("until"), "shadow": data.get("shadow") is True, "events": [*refs],
    }  # fmt: skip


async def _decided(bus: Bus, record: Recorded, row: dict[str, Any]) -> list[JsonObject]:
    """Return the decisions in the log that rest on the event, oldest first."""
    wanted = (PREFIX + TRIGGERED, PREFIX + SUPPRESSED, PREFIX + RESOLVED)
    found: list[JsonObject] = []
    seen = 0
    async with bus.log.read(wanted, after=record.seq) as batches:
        async for batch in batches:
            for one in readable(batch.records):
                event: Any = orjson.loads(one.raw)
                data = event.get("data") or {}
                refs: list[JsonValue] = data.get("events") or []
                if not any(isinstance(r, dict) and r.get("seq") == record.seq for r in refs):
                    continue
                about = data.get("automation") or {}
                found.append(
                    {
                        "id": event.get("id"), "what": str(event.get("type", "")).partition(".")[2],
                        "automation": about.get("name"), "version": about.get("version"), "seq": one.seq,
                        "at": data.get("at"), "key": data.get("key"), "count": data.get("count"),
                        "reason": data.get("reason"), "until": data.get("until"),
                    }
                )  # fmt: skip
            seen += len(batch.records)
            if seen > _LOOK_AHEAD:
                break
    return found
