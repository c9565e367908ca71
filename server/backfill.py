"""Backfills behind the API: planning one from what was asked, and the engine as the backfiller's starter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from ..bus.event import format_time
from ..clock import SYSTEM_CLOCK, Clock
from ..engine.dispatching.control import check_parameters
from ..engine.runs.run import Cause
from ..engine.states import event_word
from ..errors import DefinitionError, LimitError, UnknownName
from ..triggers.backfill import (
    MAX_SLOTS,
    Backfill,
    BackfillSlot,
    Reprocess,
    backfill_name,
    choose,
    moment_in,
    parameters_of,
    plan_backfill,
)
from ..triggers.backfiller import last_words
from ..triggers.schedule import StoredSchedule, next_fire
from ..vocabulary import FlowRunId, JsonObject, JsonValue

if TYPE_CHECKING:
    from ..bus import Bus
    from ..engine.dispatching.control import Control

__all__ = ["BackfillPlan", "BackfillRequest", "ControlBackfillStarter", "make_plan"]

# Half of what a broker takes by default, so that the plan with its parameters is stored as one value.
_MAX_STORED_BYTES = 500_000


@dataclass(frozen=True, slots=True)
class BackfillRequest:
    """What somebody asked for.

    Attributes:
        start, end: dates or moments; without an offset they are read on each schedule's clock.
        schedules: names; none is all of the deployment's.
        name: None for one derived from the wish, so that the same wish is the same backfill.
    """

    deployment: str
    start: str
    end: str
    max_parallel: int = 1
    schedules: tuple[str, ...] = ()
    reprocess: Reprocess = "none"
    newest_first: bool = False
    queue: str | None = None
    parameters: JsonObject | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """A backfill that may be asked for, and every slot that was looked at."""

    backfill: Backfill
    slots: tuple[BackfillSlot, ...]
    zones: dict[str, str]

    def to_json(self) -> JsonObject:
        """Return what is shown before anything is started."""
        slots: list[JsonObject] = [
            {
                "schedule": one.schedule, "slot": format_time(one.slot),
                "local": one.slot.astimezone(ZoneInfo(self.zones[one.schedule])).isoformat(),
                "run_id": one.run_id, "was": one.was, "left_out": one.left_out,
            }
            for one in self.slots
        ]  # fmt: skip
        return {
            "name": self.backfill.name, "deployment": self.backfill.deployment, "start": self.backfill.start,
            "end": self.backfill.end, "max_parallel": self.backfill.max_parallel, "slots": [*slots],
            "to_run": len(self.backfill.slots), "left_out": len(self.slots) - len(self.backfill.slots),
        }  # fmt: skip


async def make_plan(bus: Bus, control: Control, asked: BackfillRequest, *, now: datetime) -> BackfillPlan:
    """Return the plan of a backfill; nothing is started or stored.

    Raises:
        UnknownName: no such deployment, or no such schedule of it.
        DefinitionError: the stretch cannot be meant, the deployment has no schedule, a parameter is not taken.
        LimitError: more than can be held as one backfill.
    """
    deployment = await control.deployment(asked.deployment)
    chosen = await _schedules(bus, asked)
    slots: list[BackfillSlot] = []
    for stored in chosen:
        zone = stored.schedule.timezone
        start, end = moment_in(asked.start, zone), moment_in(asked.end, zone)
        slots += plan_backfill(stored, start, end, now=now, limit=MAX_SLOTS)
        if len(slots) > MAX_SLOTS:
            raise DefinitionError(
                f"there are more than {MAX_SLOTS} slots of {asked.deployment} from {asked.start} to {asked.end}",
                hint="take a shorter stretch, or name one schedule",
            )
    slots.sort(key=lambda one: (one.slot, one.schedule), reverse=asked.newest_first)
    names = tuple(sorted(stored.name for stored in chosen))
    wish: list[JsonValue] = [
        asked.start, asked.end, [*names], asked.reprocess, asked.newest_first, asked.queue, asked.parameters or {},
    ]  # fmt: skip
    name = asked.name or backfill_name(asked.deployment, wish)
    known = await last_words(bus, [one.run_id for one in slots])
    looked_at = choose(slots, known, name=name, deployment=asked.deployment, reprocess=asked.reprocess)
    wanted = [one for one in looked_at if not one.left_out]
    try:
        backfill = Backfill(
            name=name, deployment=asked.deployment, schedules=names, start=asked.start, end=asked.end,
            reprocess=asked.reprocess, newest_first=asked.newest_first, max_parallel=asked.max_parallel,
            queue=asked.queue, parameters=asked.parameters or {},
            laid={s.name: s.schedule.parameters for s in chosen if s.schedule.parameters},
            slots=tuple((one.schedule, one.slot) for one in wanted),
            again=frozenset(i for i, one in enumerate(wanted) if one.was is not None), asked_at=now,
        )  # fmt: skip
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DefinitionError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from exc
    if len(backfill.model_dump_json()) > _MAX_STORED_BYTES:
        raise LimitError("this backfill is too large", hint="take a shorter stretch, or shorter parameters")
    if backfill.slots:
        schedule, slot = backfill.slots[0]
        stored = next(s for s in chosen if s.name == schedule)
        parameters = parameters_of(backfill, 0, next_fire(stored.schedule, slot))
        check_parameters(deployment, {**deployment.parameters, **parameters})
    return BackfillPlan(backfill, looked_at, {s.name: s.schedule.timezone for s in chosen})


async def _schedules(bus: Bus, asked: BackfillRequest) -> Sequence[StoredSchedule]:
    entries = await bus.bucket("schedules").entries(f"{asked.deployment}/")
    found = {s.name: s for s in (StoredSchedule.model_validate_json(e.value) for e in entries)}
    if not found:
        raise DefinitionError(
            f"the deployment {asked.deployment!r} has no schedule, so there are no slots to fill",
            hint="give it a schedule (`paused: true` if it shall not fire), or run it with `hark deployments run`",
        )
    for name in asked.schedules:
        if name not in found:
            raise UnknownName("schedule", name, known=sorted(found))
    return [found[name] for name in (asked.schedules or sorted(found))]


class ControlBackfillStarter:
    """The engine behind the backfiller's ``BackfillStarter``."""

    def __init__(self, control: Control, clock: Clock = SYSTEM_CLOCK) -> None:
        self._control, self._clock = control, clock

    async def start(
        self,
        deployment: str,
        *,
        run_id: FlowRunId,
        slot: datetime,
        parameters: JsonObject,
        queue: str | None,
        backfill: str,
    ) -> str:
        """See ``BackfillStarter.start``."""
        run = await self._control.run_deployment(
            deployment, parameters=parameters, tags=("backfill",), queue=queue, scheduled_at=slot,
            cause=Cause(kind="backfill", name=backfill), run_id=run_id,
        )  # fmt: skip
        return event_word(run.state_type, run.state_name)

    async def cancel(self, run_id: FlowRunId, *, reason: str) -> None:
        """See ``BackfillStarter.cancel``."""
        await self._control.cancel(run_id, reason=reason, cause=Cause(kind="backfill"))
