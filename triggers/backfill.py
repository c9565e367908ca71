"""Backfill: the slots of a stretch of the past, to be run now. Pure; ``backfiller.py`` carries it out.

A slot that has had no run gets the one it would have had on time, so the scheduler, this backfill and another one never
run it twice. Slots that have had one are left out, unless ``reprocess`` says otherwise; then their run has an id made of
the backfill's name, so the same backfill asked twice is still one, and one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Literal, Self, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..bus.event import Event, format_time, parse_time
from ..errors import DefinitionError, TemplateError
from ..template import check_template, render_value, template_names
from ..vocabulary import FlowRunId, JsonObject, JsonValue, derived_id
from .schedule import NAME_PATTERN, StoredSchedule, fires_between, slot_run_id
from .wall import to_instant, zone_named

__all__ = [
    "CHECKPOINT_PREFIX", "ENDED", "MAX_SLOTS", "Backfill", "BackfillProgress", "BackfillSlot", "Reprocess", "backfill_event",
    "backfill_name", "backfill_run_id", "choose", "moment_in", "parameters_of", "plan_backfill",
]  # fmt: skip

MAX_SLOTS = 10_000
CHECKPOINT_PREFIX = "backfill/"
SOURCE = "/hark/backfills"
ENDED = frozenset({"completed", "cached", "failed", "timed-out", "cancelled", "crashed"})
"""Last words of the transitions after which a run is over."""
_WELL = frozenset({"completed", "cached"})
_NAMES = frozenset({"slot", "next_slot", "schedule", "backfill"})

Reprocess: TypeAlias = Literal["none", "failed", "all"]
"""Which slots that have had a run are run again."""
Status: TypeAlias = Literal["running", "finished", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class BackfillSlot:
    """A slot of a schedule.

    Attributes:
        run_id: the run it gets, or has had if it is left out.
        was: last word of the run it has had (``completed``, ``failed``, ``running``…), None if it has had none.
        left_out: why it gets no run; empty if it gets one.
    """

    schedule: str
    slot: datetime
    run_id: FlowRunId
    was: str | None = None
    left_out: str = ""


class Backfill(BaseModel):
    """A backfill as it stands in the bucket ``backfills`` under its name. What is to be run is decided when it is asked for.

    Attributes:
        start, end: as asked; moments without an offset are read on each schedule's clock.
        parameters: laid over the schedule's; texts may be templates of ``slot, next_slot, schedule, backfill``.
        laid: the parameters of each schedule.
        slots: pairs of schedule and slot, in the order in which they are run.
        again: those of ``slots`` (by place, from 0) that have had a run before.
        round: how often it was taken up after it was cancelled or had failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field(pattern=f"^{NAME_PATTERN}$")
    deployment: str = Field(pattern=f"^{NAME_PATTERN}$")
    schedules: tuple[str, ...]
    start: str
    end: str
    reprocess: Reprocess = "none"
    newest_first: bool = False
    max_parallel: int = Field(1, ge=1, le=1000)
    queue: str | None = None
    parameters: JsonObject = Field(default_factory=dict)
    laid: dict[str, JsonObject] = Field(default_factory=dict)
    slots: tuple[tuple[str, datetime], ...] = Field(max_length=MAX_SLOTS)
    again: frozenset[int] = frozenset()
    asked_at: datetime
    cancelled: bool = False
    cancel_runs: bool = False
    round: int = 0

    @field_validator("parameters")
    @classmethod
    def _templates(cls, value: JsonObject) -> JsonObject:
        check_parameters(value)
        return value

    def asks_the_same(self, other: Backfill) -> bool:
        """Whether both ask for the same runs; how many at once may differ."""
        mine, theirs = (
            (b.deployment, b.schedules, b.start, b.end, b.reprocess, b.newest_first, b.queue, b.parameters)
            for b in (self, other)
        )
        return mine == theirs

    def run_id(self, place: int) -> FlowRunId:
        """Return the id of the run of the slot at ``place`` (from 0)."""
        schedule, slot = self.slots[place]
        if place in self.again:
            return backfill_run_id(self.name, self.deployment, schedule, slot)
        return FlowRunId(slot_run_id(self.deployment, schedule, slot))


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How far a backfill has come, as it stands in the bucket ``checkpoints``.

    Attributes:
        asked: so many slots, from the first, have been given a run.
        active: the runs asked for that are not over.
        ended: how many ended with which word.
        error: why it stopped, if it failed.
    """

    status: Status = "running"
    asked: int = 0
    active: tuple[str, ...] = ()
    ended: Mapping[str, int] = field(default_factory=dict)
    error: str = ""
    round: int = 0
    ended_at: datetime | None = None

    def begun(self, run_id: str) -> BackfillProgress:
        """Return it with one more run asked for and not over."""
        return replace(self, asked=self.asked + 1, active=(*self.active, run_id))

    def over(self, run_id: str, word: str) -> BackfillProgress:
        """Return it with an active run over."""
        left = tuple(one for one in self.active if one != run_id)
        return replace(self, active=left, ended={**self.ended, word: self.ended.get(word, 0) + 1})

    @property
    def went_wrong(self) -> int:
        """How many runs ended other than well."""
        return sum(count for word, count in self.ended.items() if word not in _WELL)

    def to_dict(self) -> JsonObject:
        """Return the JSON form that is stored and shown."""
        return {
            "status": self.status, "asked": self.asked, "active": [*self.active], "ended": dict(self.ended),
            "error": self.error, "round": self.round, "ended_at": format_time(self.ended_at) if self.ended_at else None,
        }  # fmt: skip

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read what ``to_dict`` wrote, as bytes."""
        value = orjson.loads(raw)
        ended_at = value["ended_at"]
        return cls(
            value["status"], int(value["asked"]), tuple(value["active"]), dict(value["ended"]), str(value["error"]),
            int(value["round"]), parse_time(ended_at) if ended_at else None,
        )  # fmt: skip


# --- what is to be run --------------------------------------------------------------------------------------


def moment_in(text: str, timezone: str) -> datetime:
    """Return the instant meant by a date or a moment; without an offset it is read on a clock in ``timezone``.

    Raises:
        DefinitionError: it is neither.
    """
    written = text.strip()
    try:
        if len(written) == 10:
            found = datetime.combine(date.fromisoformat(written), datetime.min.time())
        else:
            found = datetime.fromisoformat(written)
    except ValueError as exc:
        raise DefinitionError(
            f"{text[:60]!r} is neither a date nor a moment", hint="such as 2026-01-31 or 2026-01-31T09:00:00Z"
        ) from exc
    return found.astimezone(UTC) if found.tzinfo is not None else to_instant(found, zone_named(timezone))


def plan_backfill(
    stored: StoredSchedule, start: datetime, end: datetime, *, now: datetime, limit: int = MAX_SLOTS
) -> tuple[BackfillSlot, ...]:
    """Return the slots with ``start`` <= slot < ``end``, oldest first. Paused or not makes no difference.

    Args:
        limit: most slots, at most 10 000.
    Raises:
        DefinitionError: the stretch is empty, reaches into the future, or has more slots than ``limit``.
    """
    if end <= start:
        raise DefinitionError(
            f"a backfill ends after it begins, got {start.isoformat()} to {end.isoformat()}"
        )
    if end > now:
        raise DefinitionError(
            f"a backfill ends in the past, got {end.isoformat()}",
            hint="the scheduler runs what is still to come",
        )
    limit = min(limit, MAX_SLOTS)
    # `fires_between` leaves out its beginning and takes its end; a stretch of days is meant the other way round.
    tick = timedelta(microseconds=1)
    slots = fires_between(stored.schedule, start - tick, end - tick, limit + 1)
    if len(slots) > limit:
        raise DefinitionError(
            f"there are more than {limit} slots of {stored.key} from {start.isoformat()} to {end.isoformat()}",
            hint="take a shorter stretch",
        )
    return tuple(
        BackfillSlot(stored.name, slot, FlowRunId(slot_run_id(stored.deployment, stored.name, slot)))
        for slot in slots
    )


def choose(
    slots: Iterable[BackfillSlot],
    known: Mapping[str, str],
    *,
    name: str,
    deployment: str,
    reprocess: Reprocess,
) -> tuple[BackfillSlot, ...]:
    """Return the slots with what is known of them, and whether they get a run.

    Args:
        known: last words of runs that exist, by run id: those made on time and those of this backfill.
    """
    chosen = []
    for one in slots:
        was = known.get(one.run_id)
        if was is None:
            chosen.append(one)
            continue
        again = backfill_run_id(name, deployment, one.schedule, one.slot)
        reason = ""
        if reprocess == "none":
            reason = f"it has a run, {was}"
        elif was not in ENDED:
            reason = f"its run is {was}"
        elif reprocess == "failed" and was in _WELL:
            reason = f"its run {was}"
        chosen.append(replace(one, was=was, left_out=reason, run_id=one.run_id if reason else again))
    return tuple(chosen)


def backfill_run_id(name: str, deployment: str, schedule: str, slot: datetime) -> FlowRunId:
    """Return the id of a run by which a backfill runs a slot again."""
    return FlowRunId(
        derived_id("flow-run", "backfill", name, deployment, schedule, slot.astimezone(UTC).isoformat())
    )


def backfill_name(deployment: str, wanted: Sequence[JsonValue]) -> str:
    """Return the name of a backfill that was given none: the same for the same wish."""
    digest = hashlib.blake2b(orjson.dumps([deployment, *wanted], option=orjson.OPT_SORT_KEYS), digest_size=5)
    return f"{deployment[:80]}-{digest.hexdigest()}"


def check_parameters(parameters: JsonObject) -> None:
    """Raise ``ValueError`` if a template in them is broken or reads something that is not known here."""
    stack: list[JsonValue] = [parameters]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, str):
            try:
                check_template(item)
                unknown = {name.partition(".")[0] for name in template_names(item)} - _NAMES
            except TemplateError as exc:
                raise ValueError(str(exc)) from exc
            if unknown:
                raise ValueError(
                    f"{min(unknown)!r} is not known to parameters of a backfill; {', '.join(sorted(_NAMES))} are"
                )


def parameters_of(backfill: Backfill, place: int, following: datetime | None) -> JsonObject:
    """Return the parameters of the run of a slot: the schedule's, and over them the backfill's, rendered.

    Raises:
        TemplateError: one cannot be rendered.
    """
    schedule, slot = backfill.slots[place]
    context = {
        "slot": format_time(slot), "next_slot": format_time(following) if following is not None else None,
        "schedule": schedule, "backfill": backfill.name,
    }  # fmt: skip
    given = render_value(backfill.parameters, context)
    return {**backfill.laid.get(schedule, {}), **(given if isinstance(given, dict) else {})}


def backfill_event(backfill: Backfill, word: str, progress: BackfillProgress, *, now: datetime) -> Event:
    """Return ``deployment.backfill.<word>``: one id per backfill, word and round, however often it is told."""
    return Event(
        type=f"deployment.backfill.{word}",
        source=SOURCE,
        id=derived_id("backfill", backfill.name, word, str(progress.round)),
        subject=f"deployment/{backfill.deployment}",
        time=now,
        data={
            "deployment": {"name": backfill.deployment},
            "backfill": {
                "name": backfill.name, "start": backfill.start, "end": backfill.end, "slots": len(backfill.slots),
                "max_parallel": backfill.max_parallel,
            },
            "asked": progress.asked, "ended": dict(progress.ended), "error": progress.error,
        },
    )  # fmt: skip
