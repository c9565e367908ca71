"""What rules would have done about what has happened: the fold over history, with nobody acting on what it decides.

``Replay`` is the pure part; it is fed events in the order of the log, and keeps what is decided. ``backtest_log`` feeds
it from the live log, asking the broker only for events the rules listen to; ``backtest_lines`` from a file of events.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import orjson

from ...bus.event import format_time
from ...bus.subject import ALL_EVENTS, PREFIX, TASK_RUNS, filters_for
from ...errors import DefinitionError
from ...vocabulary import JsonObject, JsonValue
from ..folding.decision import ADOPTED, Decision
from ..folding.fold import Fold, FoldConfig
from ..model import Automation

if TYPE_CHECKING:
    from ...bus import Bus
    from ...bus.event import Recorded

__all__ = [
    "Backtest",
    "Replay",
    "RuleOutcome",
    "backtest_lines",
    "backtest_log",
    "filters_of",
]

_ADOPTIONS = PREFIX + ADOPTED
KEEP = 1000
"""Decisions of one rule that are kept; all are counted."""
_BATCH = 2000


@dataclass(slots=True)
class RuleOutcome:
    """What one rule would have done. ``decisions`` are the first ``KEEP``, in order; the counts are of all."""

    automation: str
    version: str
    fired: int = 0
    suppressed: int = 0
    resolved: int = 0
    actions: int = 0
    decisions: list[Decision] = field(default_factory=list)

    def add(self, decision: Decision, keep: int) -> None:
        match decision.what:
            case "triggered":
                self.fired += 1
                self.actions += len(decision.actions)
            case "resolved":
                self.resolved += 1
                self.actions += len(decision.actions)
            case "suppressed":
                self.suppressed += 1
        if len(self.decisions) < keep:
            self.decisions.append(decision)

    def to_json(self) -> JsonObject:
        return {
            "automation": self.automation, "version": self.version, "fired": self.fired, "suppressed": self.suppressed,
            "resolved": self.resolved, "actions": self.actions, "decisions": [decision_json(d) for d in self.decisions],
            "kept": len(self.decisions),
        }  # fmt: skip


def decision_json(decision: Decision) -> JsonObject:
    """Return a decision that was never stored, as JSON."""
    row = decision.row or {}
    out: JsonObject = {
        "what": decision.what, "at": _stamp(decision.at), "key": decision.key, "count": decision.count,
        "events": [{"id": r.id, "seq": r.seq, "time": _stamp(r.time)} for r in decision.refs],
        "event": {name: row.get(name) for name in ("id", "type", "subject")} if row else None,
    }  # fmt: skip
    if decision.reason:
        out["reason"] = decision.reason
    if decision.suppressed:
        out["suppressed"] = decision.suppressed
    if decision.extra:
        out |= decision.extra
    return out


def _stamp(at: float) -> str:
    return format_time(datetime.fromtimestamp(at, UTC))


@dataclass(slots=True)
class Backtest:
    """What came of it.

    Attributes:
        begins_at, ends_at: of the events looked at (recorded), in seconds; None if there were none.
        events: how many were read; ``whole`` is False when time ran out before the end.
    """

    rules: dict[str, RuleOutcome]
    events: int
    begins_at: float | None
    ends_at: float | None
    took_s: float
    whole: bool = True

    def to_json(self) -> JsonObject:
        rules: list[JsonValue] = [outcome.to_json() for outcome in self.rules.values()]
        return {
            "rules": rules, "events": self.events, "took_s": round(self.took_s, 3), "whole": self.whole,
            "begins_at": _stamp(self.begins_at) if self.begins_at is not None else None,
            "ends_at": _stamp(self.ends_at) if self.ends_at is not None else None,
        }  # fmt: skip


class Replay:
    """Some rules over some history. Pure: feed it, then ``finish`` it.

    Deadlines are passed one by one, as a live engine would pass them, and not all at once at the next event.

    Args:
        begins: the moment the rules are taken to have been adopted, in seconds since 1970.
    """

    def __init__(
        self,
        automations: Iterable[Automation],
        *,
        begins: float,
        config: FoldConfig | None = None,
        keep: int = KEEP,
    ) -> None:
        base = config or FoldConfig()
        self.fold = Fold(base)
        self.fold.tick(begins)
        self.outcomes: dict[str, RuleOutcome] = {}
        for automation in automations:
            self.fold.adopt(automation.model_copy(update={"paused": False}))
            self.outcomes[automation.name] = RuleOutcome(automation.name, automation.version)
        self.keep = keep
        self.events = 0
        self._begins: float | None = None
        self._began = time.perf_counter()

    def records(
        self, records: Iterable[Recorded], *, until: float = float("inf"), sifted: bool = False
    ) -> bool:
        """Feed events as they stand in the log; return False at one recorded after ``until``, which is not fed.

        Args:
            sifted: nearly all are listened to, since the broker was asked for no others. Else one that nobody listens to
                is not even parsed; what is decided is the same.
        """
        fold = self.fold
        step, step_raw, is_due = fold.step_record, fold.step_raw, fold.is_due
        for record in records:
            recorded = record.recorded_s
            if recorded > until:
                return False
            self.events += 1
            if self._begins is None:
                self._begins = recorded
            if is_due(recorded):
                self._advance(recorded)
            if record.subject == _ADOPTIONS:  # a rule's own adoption in the past is no adoption now
                decided = fold.skip(seq=record.seq, recorded=recorded)
            elif sifted:
                decided = step_raw(record.raw, seq=record.seq, recorded=recorded)
            else:
                decided = step(record)
            if decided:
                self._take(decided)
        return True

    def row(self, row: dict[str, Any], *, seq: int, recorded: float) -> None:
        """Feed one parsed event."""
        self.events += 1
        if self._begins is None:
            self._begins = recorded
        fold = self.fold
        if fold.is_due(recorded):
            self._advance(recorded)
        if row["type"] == ADOPTED:
            decided = fold.skip(seq=seq, recorded=recorded)
        else:
            decided = fold.step(row, seq=seq, recorded=recorded)
        if decided:
            self._take(decided)

    def _advance(self, to: float) -> None:
        fold = self.fold
        while (deadline := fold.next_deadline()) is not None and deadline <= to:
            self._take(fold.tick(deadline))

    def pass_time(self, to: float) -> None:
        """Let time pass without an event."""
        self._advance(to)
        self._take(self.fold.tick(to))

    def _take(self, decided: list[Decision]) -> None:
        for decision in decided:
            self.outcomes[decision.automation].add(decision, self.keep)

    def finish(self, until: float | None = None, *, whole: bool = True) -> Backtest:
        """Let time pass up to ``until`` (None: no further than the last event) and return what came of it."""
        if until is not None and whole:
            self.pass_time(until)
        return Backtest(
            self.outcomes, self.events, self._begins, self.fold.now if self.events else None,
            time.perf_counter() - self._began, whole,
        )  # fmt: skip


def filters_of(automations: Iterable[Automation]) -> list[str]:
    """Return the bus filters under which all the events stand that the rules listen to."""
    found: dict[str, None] = {}
    for automation in automations:
        for listening in (*automation.listens, *((automation.resolves,) if automation.resolves else ())):
            for pattern in listening.types:
                found |= dict.fromkeys(filters_for(pattern))
    # Beyond some, the broker is quicker with all of it than with so many questions per message.
    return [ALL_EVENTS] if ALL_EVENTS in found or len(found) > 100 else list(found)


async def backtest_log(
    bus: Bus,
    automations: Sequence[Automation],
    *,
    since: datetime,
    until: datetime | None = None,
    now: datetime,
    config: FoldConfig | None = None,
    longest_s: float = 300.0,
    keep: int = KEEP,
) -> Backtest:
    """Return what rules would have done about the live log.

    Args:
        until: stop before the first event recorded later; None: go on to the log's end, and let time pass to ``now``.
        longest_s: give up after this long and return what has been found by then (``whole`` is False).
    """
    replay = Replay(automations, begins=since.timestamp(), config=config, keep=keep)
    deadline = time.perf_counter() + longest_s
    stop = until.timestamp() if until is not None else float("inf")
    filters = filters_of(automations)
    sifted = not {ALL_EVENTS, TASK_RUNS} & set(filters)
    async with bus.log.read(filters, since=since, batch=_BATCH) as batches:
        async for batch in batches:
            if not replay.records(batch.records, until=stop, sifted=sifted):
                return replay.finish(stop)
            if time.perf_counter() > deadline:
                return replay.finish(whole=False)
            await anyio.lowlevel.checkpoint()
    return replay.finish(min(stop, now.timestamp()))


def backtest_lines(
    lines: Iterable[bytes],
    automations: Sequence[Automation],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    config: FoldConfig | None = None,
    keep: int = KEEP,
    name: str = "events",
) -> Backtest:
    """Return what rules would have done about a file of events, one JSON object a line, or one list of them.

    A line is a CloudEvent, or what ``hark events watch --json`` prints: ``{"seq", "recorded_at", "event"}``. An event
    without a recorded time counts as recorded when it occurred. The order is that of the file; time never goes back.
    A list that is what ``hark events ls --json`` prints, newest first, is put in the order of the log.

    Args:
        until: stop before the first event recorded later, and let time pass so far; None: no further than the last event.
    Raises:
        DefinitionError: a line is no event; says which.
    """
    replay: Replay | None = None
    first = since.timestamp() if since is not None else None
    stop = until.timestamp() if until is not None else None
    now = 0.0
    seq = 0
    for n, line in enumerate(_one_by_one(lines, name), 1):
        if line.__class__ is bytes and (not line or line.isspace()):
            continue
        try:
            row: Any = orjson.loads(line) if line.__class__ is bytes else line
            if row.__class__ is not dict:
                raise TypeError("it is no object")
            at: Any = None
            if "event" in row and "specversion" not in row:
                at, row = row.get("recorded_at"), row["event"]
            at = at or row.get("recordedtime") or row["time"]
            type_ = row["type"]
            if at.__class__ in (int, float):
                recorded: float = at
            else:
                moment = datetime.fromisoformat(at)
                if moment.tzinfo is None:
                    raise ValueError(f"{at!r} has no time zone offset, such as Z")
                recorded = moment.timestamp()
            if type_.__class__ is not str:
                raise TypeError("`type` is not text")
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            why = f"{exc.args[0]!r} is missing" if isinstance(exc, KeyError) else str(exc)
            raise DefinitionError(
                f"{name}, line {n}: not an event ({why})",
                hint="each line is a CloudEvent as JSON, with type and time; or all of it is a list of them",
            ) from exc
        if first is not None and recorded < first:
            continue
        if stop is not None and recorded > stop:
            break
        if replay is None:
            replay = Replay(
                automations, begins=recorded if first is None else first, config=config, keep=keep
            )
        now = max(now, recorded)
        seq += 1
        replay.row(row, seq=seq, recorded=now)
    if replay is None:
        replay = Replay(automations, begins=first or 0.0, config=config, keep=keep)
        return replay.finish(stop)
    return replay.finish(now if stop is None else stop)


def _one_by_one(lines: Iterable[bytes], name: str) -> Iterator[Any]:
    """Yield the lines as they are, or of a file that is one JSON list its items, in the order of the log."""
    rest = iter(lines)
    for line in rest:
        if not line.lstrip().startswith(b"["):
            yield line
            continue
        try:
            items: Any = orjson.loads(b"".join((line, *rest)))
        except orjson.JSONDecodeError as exc:
            raise DefinitionError(f"{name} is a list that is not JSON: {exc}") from exc
        if all(isinstance(item, dict) and isinstance(item.get("seq"), int) for item in items):
            items.sort(key=lambda item: item["seq"])
        yield from items
