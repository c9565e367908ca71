"""What the templates of an action may read: the event, the events, the key, the steps of a sequence, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import orjson

from ...bus import Bus
from ...vocabulary import JsonObject, JsonValue
from ..action import Action

if TYPE_CHECKING:
    from ...bus import Event, LateValues

__all__ = ["Told", "facts_of"]

MAX_EVENTS = 1000
MAX_BYTES = 32 << 20
"""Of all events of a firing together, as ``events``; the oldest beyond are left out."""


class Told(Protocol):
    """A firing, as far as templates speak of it."""

    @property
    def event(self) -> Event: ...
    @property
    def automation(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


async def facts_of(bus: Bus, late: LateValues, firing: Told, action: Action) -> dict[str, Any]:
    """Return what the templates of an action may read; what is in the log alone is fetched only if one reads it."""
    data = firing.data
    names = action.names
    event = data.get("event")
    refs = [r for r in data.get("events") or () if isinstance(r, dict)]
    if not isinstance(event, dict) and refs:
        event = await _event(bus, refs[-1])
    context: dict[str, Any] = {
        "event": event if isinstance(event, dict) else {},
        "events": [],
        "key": data.get("key", ""),
        "keys": data.get("keys", []),
        "count": data.get("count", 0),
        "suppressed": data.get("suppressed", 0),
        "automation": {"name": firing.automation, "version": data.get("version")},
        "firing": {"id": firing.event.id, "at": data.get("at"), "kind": data.get("kind")},
        "metric": data.get("metric") or {},
        "resolved": {k: data.get(k) for k in ("firing", "fired_at", "duration_s", "reason")}
        if "fired_at" in data
        else {},
        "approval": data.get("approval") or {},
        "run": {},
    }
    steps = data.get("steps")
    for alias, ref in steps.items() if isinstance(steps, dict) else ():
        if alias in names and isinstance(ref, dict):
            context[alias] = await _event(bus, ref) or {}
    about = context["event"].get("data")
    if isinstance(about, dict) and isinstance(about.get("run"), dict):
        context["run"] = about["run"]
    if "events" in names:
        context["events"] = await _events(bus, refs, event)
    context.update(await late.named(names))
    return context


async def _event(bus: Bus, ref: Mapping[str, Any]) -> JsonObject | None:
    seq = ref.get("seq")
    record = await bus.log.get(seq) if isinstance(seq, int) and seq > 0 else None
    return orjson.loads(record.raw) if record is not None else None


async def _events(bus: Bus, refs: Sequence[Mapping[str, Any]], last: JsonValue) -> list[JsonValue]:
    wanted = refs[-MAX_EVENTS:]
    found: list[JsonValue] = [None] * len(wanted)
    sizes = [0] * len(wanted)

    async def look(i: int) -> None:
        seq = wanted[i].get("seq")
        record = await bus.log.get(seq) if isinstance(seq, int) and seq > 0 else None
        if record is not None:
            found[i], sizes[i] = orjson.loads(record.raw), len(record.raw)

    # The latest first and in slices, so that no more than the bound (and a slice) is ever held.
    for end in range(len(wanted), 0, -50):
        async with anyio.create_task_group() as tg:
            for i in range(max(0, end - 50), end):
                if isinstance(last, dict) and wanted[i].get("id") == last.get("id"):
                    found[i] = last
                else:
                    tg.start_soon(look, i)
        if sum(sizes) > MAX_BYTES:
            break
    return [event for event in found if event is not None]
