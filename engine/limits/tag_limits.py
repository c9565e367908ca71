"""Limits by tag: a task run that carries a limited tag has a slot of it while it runs, and waits for one before.

Which tags are limited is watched once per process, from the first task with a tag on, so that a task with a tag nobody
limits costs a look into a mapping. A limit of tag ``db`` is the named limit ``tag:db``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ...errors import HarkError
from ...vocabulary import StateType
from ..context import in_no_run
from ..signals import Abort
from ..states import AwaitingConcurrencySlot
from ..sync_async.either import blocking_session

if TYPE_CHECKING:
    from ...bus import Bus
    from ...bus.session import Session
    from ..calls.task_call import TaskCall
    from .limit import Limit

__all__ = ["TagLimits", "give_back", "give_back_async", "tag_limits_of", "take", "take_async"]

log = logging.getLogger("hark.limits")


class TagLimits:
    """The limits of tags, as the bucket tells. On the loop of the bus; ``among`` from any thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._limits: dict[str, Limit] | None = None
        self._known: asyncio.Future[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    def among(self, tags: frozenset[str]) -> tuple[str, ...] | None:
        """Return which of these tags are limited, sorted; None if that is not known yet."""
        limits = self._limits
        if limits is None:
            return None
        return tuple(sorted(tags & limits.keys())) if limits else ()

    def limit(self, tag: str) -> Limit | None:
        return self._limits.get(tag) if self._limits is not None else None

    async def known(self) -> None:
        """Wait until the limits there are have been told.

        Raises:
            BusUnavailable: the broker does not answer.
        """
        if self._known is None:
            loop = asyncio.get_running_loop()
            self._known = loop.create_future()
            self._watching = loop.create_task(
                self._watch(self._known), name="hark limits of tags", context=in_no_run()
            )
            self._bus.on_close(self._close)
        await asyncio.shield(self._known)

    async def _close(self) -> None:
        watching, self._watching, self._known, self._limits = self._watching, None, None, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self, known: asyncio.Future[None]) -> None:
        from pydantic import ValidationError  # heavy, and most programs limit no tags

        from .limit import BUCKET, TAG_PREFIX, Limit, key_of, name_of

        limits: dict[str, Limit] = {}
        try:
            async with self._bus.bucket(BUCKET).watch(key_of(TAG_PREFIX)) as entries:
                async for entry in entries:
                    if entry.key == "":
                        self._limits = limits
                        if not known.done():
                            known.set_result(None)
                        continue
                    tag = name_of(entry.key).removeprefix(TAG_PREFIX)
                    limits.pop(tag, None)
                    try:
                        limit = None if entry.deleted else Limit.model_validate_json(entry.value)
                    except ValidationError as exc:
                        log.error("limits.unreadable", extra={"limit": f"tag:{tag}", "error": str(exc)})
                        continue
                    if limit is not None and limit.active:
                        limits[tag] = limit
        except HarkError as exc:
            # Whoever needs it next begins anew.
            self._limits = self._known = None
            if not known.done():
                known.set_exception(exc)
                known.exception()
            else:
                log.warning("limits.watch_ended", extra={"limit": "tag:*", "error": str(exc)})


_of_bus: WeakKeyDictionary[Bus, TagLimits] = WeakKeyDictionary()


def tag_limits_of(bus: Bus) -> TagLimits:
    """Return the limits of tags as seen over a bus; the same one each time."""
    found = _of_bus.get(bus)
    if found is None:
        found = _of_bus[bus] = TagLimits(bus)
    return found


def take(call: TaskCall) -> Abort | None:
    """Wait, in sync code, for slots of the tags of a call; return why it cannot have them. ``give_back`` ends it."""
    session = blocking_session("a limit of a tag")
    return session.call(_take, session, call)


async def take_async(call: TaskCall) -> Abort | None:
    """Do what ``take`` does, in async code."""
    assert call.events is not None
    session = call.events.session
    return await session.acall(_take, session, call)


def give_back(call: TaskCall) -> None:
    """Give the slots of a call back, in sync code. Harmless where it has none."""
    held, call.held = call.held, None
    if held is not None:
        session, slots = held
        session.call(_release, slots)


async def give_back_async(call: TaskCall) -> None:
    """Do what ``give_back`` does, in async code; also when cancelled."""
    held, call.held = call.held, None
    if held is not None:
        session, slots = held
        await asyncio.shield(session.acall(_release, slots))


async def _release(slots: list[Any]) -> None:
    for one in reversed(slots):
        await one.release()


async def _take(session: Session, call: TaskCall) -> Abort | None:
    slots: list[Any] = []
    try:
        limits = tag_limits_of(session.bus)
        await limits.known()
        for tag in limits.among(call.run.tags) or ():
            await _take_one(session, call, tag, limits.limit(tag), slots)
    except (Abort, HarkError) as exc:
        await _release(slots)
        call.announce()
        return (
            exc if isinstance(exc, Abort) else Abort(f"its tags are limited, and no slot could be had: {exc}")
        )
    except BaseException:
        await _release(slots)
        raise
    call.held = (session, slots) if slots else None
    return None


async def _take_one(
    session: Session, call: TaskCall, tag: str, limit: Limit | None, slots: list[Any]
) -> None:
    from .limit import TAG_PREFIX
    from .slots import slots_of

    if limit is None:
        return
    if limit.slots == 0:
        raise Abort(f"the limit of tag {tag!r} is 0, so no task with that tag may run")

    def waits() -> None:
        call.announce()
        message = f"the limit of tag {tag!r} is full"
        call.run.state = AwaitingConcurrencySlot(
            message=message, run_id=call.run.id, task_of=call.run.flow_run_id or ""
        )
        if call.events is not None:
            call.events.write(call.run, StateType.SCHEDULED, "AwaitingConcurrencySlot", message)

    name = TAG_PREFIX + tag
    if limit.pace is None:
        held = await slots_of(session).acquire(
            name, 1, timeout_s=None, on_wait=waits, holder=f"task-run/{call.run.id}"
        )
        if held is not None:
            slots.append(held)
        return
    wait_s = await slots_of(session).pace(name, 1, timeout_s=None)
    if wait_s:
        waits()
        await asyncio.sleep(wait_s)
