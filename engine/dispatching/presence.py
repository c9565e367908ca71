"""Workers saying that they are there, and what they can hold: a key with a short life, renewed while they live."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

import orjson

from ...bus.event import Event, parse_time
from ...errors import EventInvalid
from ...vocabulary import JsonObject
from ..code.lane import LOOP, PROCESS, Lane
from ..runs.run import SOURCE

if TYPE_CHECKING:
    from ...bus import Bus

__all__ = ["BEAT_S", "BUCKET", "PREFIX", "TTL_S", "WorkerInfo", "live_workers", "show"]

BUCKET = "leases"
PREFIX = "worker."
TTL_S = 15.0
"""A worker silent for this long is lost: nothing more is given to it. Its runs go on elsewhere after ``ack_wait_s``."""
BEAT_S = TTL_S / 3

_KINDS = {"str": str, "int": int, "bool": bool}


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself.

    Attributes:
        loop: async runs that go on in it at once. processes: sync ones.
        stopped: its last word, so that nobody takes its silence for a loss.
        waiting_loop: async runs that wait in its memory without one of these places. waiting_processes: sync ones.
        taken_loop: async runs that have one of them, when it last said so; more than there are where waits have ended together.
        taken_processes: sync ones.
        since: when it started, RFC 3339. version: of Hark. Both are empty of a worker that does not say so yet.
    """

    id: str
    name: str
    pool: str
    loop: int
    processes: int
    host: str
    pid: int
    stopped: bool = False
    waiting_loop: int = 0
    waiting_processes: int = 0
    taken_loop: int = 0
    taken_processes: int = 0
    since: str = ""
    version: str = ""

    @classmethod
    def here(cls, id: str, *, name: str, pool: str, loop: int, processes: int) -> Self:
        """Return the description of a worker in this process."""
        return cls(
            id, name, pool, loop, processes, socket.gethostname(), os.getpid(),
            since=datetime.now(UTC).isoformat(timespec="milliseconds"), version=version("hark"),
        )  # fmt: skip

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.id}"

    @property
    def capacity(self) -> dict[Lane, int]:
        """How many runs it may have in hand at once, those that wait without a place included."""
        return {LOOP: self.loop + self.waiting_loop, PROCESS: self.processes + self.waiting_processes}

    @property
    def started_at(self) -> datetime | None:
        """When it started; None where it does not say so."""
        try:
            return parse_time(self.since)
        except EventInvalid:
            return None

    def held_in(self, lane: Lane) -> tuple[int, int, int]:
        """Return its places of a lane, those of them that are taken, and the runs that wait without one."""
        if lane == LOOP:
            return self.loop, self.taken_loop, self.waiting_loop
        return self.processes, self.taken_processes, self.waiting_processes

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Self | None:
        """Return what a worker wrote; None for something else. What only later versions say is passed over."""
        try:
            said = orjson.loads(raw)
            given = {
                field.name: (said[field.name], field.type) for field in fields(cls) if field.name in said
            }
            if all(isinstance(value, _KINDS[str(kind)]) for value, kind in given.values()):
                return cls(**{name: value for name, (value, _) in given.items()})
        except (orjson.JSONDecodeError, TypeError):
            pass
        return None

    def event(self, word: str, *, id: str | None = None, **facts: Any) -> Event:
        """Return ``worker.started``, ``worker.stopped``, ``worker.held`` or ``worker.lost``. Without an ``id``, it says which it
        is, so that two who notice one loss report one."""
        data: JsonObject = {
            "worker": {
                "id": self.id, "name": self.name, "pool": self.pool, "host": self.host, "pid": self.pid,
                "concurrency": self.loop, "processes": self.processes,
            },
            **facts,
        }  # fmt: skip
        return Event(
            type=f"worker.{word}",
            source=SOURCE,
            id=id or f"{self.id}-{word}",
            subject=f"worker/{self.name}",
            data=data,
        )


async def show(bus: Bus, worker: WorkerInfo) -> None:
    """Say that a worker is there, for the next ``TTL_S``.

    Raises:
        BusUnavailable: the broker did not answer.
    """
    await bus.bucket(BUCKET).put(worker.key, worker.to_json(), ttl_s=TTL_S)


async def live_workers(bus: Bus) -> list[tuple[WorkerInfo, datetime]]:
    """Return the workers that are there, by pool and name, and when each said so last.

    Raises:
        BusUnavailable: the broker did not answer.
    """
    found = [
        (info, entry.created_at)
        for entry in await bus.bucket(BUCKET).entries(PREFIX)
        if (info := WorkerInfo.from_json(entry.value)) is not None and not info.stopped
    ]
    if not bus.info.message_ttl:
        # A broker that lets no keys expire keeps the last word of each that died.
        oldest = datetime.now(UTC) - timedelta(seconds=2 * TTL_S)
        found = [one for one in found if one[1] > oldest]
    return sorted(found, key=lambda one: (one[0].pool, one[0].name, one[0].id))
