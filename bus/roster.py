"""A roster: definitions in a bucket, each served by a task of its own for as long as it stands there unchanged.

What a definition's task runs into is tried again with growing pauses; one that cannot be read is listed as broken and
harms no other. Any number of processes may serve the same bucket: who gets what, the broker's consumers decide.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Protocol, Self, TypeVar

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus

from ..errors import HarkError
from .bucket import Bucket, Entry

__all__ = ["Definition", "Roster", "Standing"]

log = logging.getLogger(__name__)


class Definition(Protocol):
    """What a roster serves: anything with a name that may be paused, and is equal to itself read again."""

    @property
    def name(self) -> str: ...

    @property
    def paused(self) -> bool: ...


@dataclass(slots=True)
class Standing:
    """How one definition is, as far as this process knows: ``starting``, at work, ``waiting``, ``paused`` or ``broken``.

    Attributes:
        since: when it was stored as it is, by the broker's clock.
    """

    state: str = "starting"
    error: str = ""
    since: datetime | None = None


D = TypeVar("D", bound=Definition)
S = TypeVar("S", bound=Standing)


@dataclass(slots=True)
class _Place(Generic[D, S]):
    definition: D
    standing: S
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    done: anyio.Event = field(default_factory=anyio.Event)


class Roster(AsyncContextManagerMixin, Generic[D, S]):
    """Serves the definitions of a bucket. Entered: each that can be served is; left: none is.

    Args:
        kind: what they are called in the log: ``sink``. at_work: the state of one that is served: ``serving``.
        load: reads one. Raises ``ValueError``: it cannot be read.
        standing: makes how a new one stands.
        serve: serves one until it is cancelled; calls its last argument whenever it has begun to. A ``HarkError`` is tried
            again.
        changed: told, once the old one is not served any more, of each change: name, before, now (None: not there).
        hold: does what has to be done of one that is paused, so that it may go on later. Tried again as ``serve`` is.
        again_s: the pauses before the next try, in seconds; the last one repeats.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        kind: str,
        at_work: str,
        load: Callable[[bytes], D],
        standing: Callable[[], S],
        serve: Callable[[D, S, Callable[[], None]], Awaitable[None]],
        changed: Callable[[str, D | None, D | None], Awaitable[None]],
        again_s: tuple[float, ...],
        hold: Callable[[D, S], Awaitable[None]] | None = None,
    ) -> None:
        self._bucket, self._kind, self._at_work = bucket, kind, at_work
        self._load, self._standing, self._serve, self._changed = load, standing, serve, changed
        self._again_s, self._hold = again_s, hold
        self._places: dict[str, _Place[D, S]] = {}
        self._broken: dict[str, S] = {}
        self._tg: TaskGroup | None = None

    @property
    def standings(self) -> dict[str, S]:
        """How each is, by name; of one that does not load, why."""
        return {name: place.standing for name, place in self._places.items()} | self._broken

    @property
    def definitions(self) -> dict[str, D]:
        """Those that can be read, by name."""
        return {name: place.definition for name, place in self._places.items()}

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            self._tg = tg
            await tg.start(self._watch)
            try:
                yield self
            finally:
                self._tg = None
                tg.cancel_scope.cancel()

    async def _watch(self, *, task_status: TaskStatus[None]) -> None:
        async with self._bucket.watch() as changes:
            async for entry in changes:
                if entry.key:
                    await self._take(entry)
                else:
                    task_status.started()

    async def _take(self, entry: Entry) -> None:
        self._broken.pop(entry.key, None)
        definition: D | None = None
        if not entry.deleted:
            try:
                definition = self._load(entry.value)
            except ValueError as exc:
                broken = self._broken[entry.key] = self._standing()
                broken.state, broken.error = "broken", str(exc)
                log.error(f"{self._kind}.broken", extra={self._kind: entry.key, "error": str(exc)})
        before = self._places.get(entry.key)
        if before is not None and definition == before.definition:
            return
        if before is not None:
            before.scope.cancel(f"the {self._kind} was changed")
            await before.done.wait()
            del self._places[entry.key]
        if (
            definition is not None or entry.deleted
        ):  # one that cannot be read may be mended, and goes on where it was
            await self._changed(entry.key, before.definition if before is not None else None, definition)
        if definition is not None and self._tg is not None:
            place = self._places[entry.key] = _Place(definition, self._standing())
            place.standing.since = entry.created_at
            await self._tg.start(self._keep_serving, place)

    async def _keep_serving(self, place: _Place[D, S], *, task_status: TaskStatus[None]) -> None:
        """Serve one until it is changed. It has started, too, when its first try has failed: it must hold up no other."""
        tries = 0
        is_started = False

        def begun() -> None:
            nonlocal is_started
            if not is_started:
                is_started = True
                task_status.started()

        def ready() -> None:
            nonlocal tries
            place.standing.state, place.standing.error, tries = self._at_work, "", 0
            begun()

        try:
            with place.scope:
                while True:
                    try:
                        if place.definition.paused:
                            if self._hold is not None:
                                await self._hold(place.definition, place.standing)
                            place.standing.state, place.standing.error = "paused", ""
                            begun()
                            return
                        await self._serve(place.definition, place.standing, ready)
                    except* HarkError as group:
                        first = group.exceptions[0]
                        place.standing.state, place.standing.error = "waiting", str(first)
                        log.warning(
                            f"{self._kind}.waiting",
                            extra={self._kind: place.definition.name, "error": str(first)},
                        )
                    begun()
                    await anyio.sleep(self._again_s[min(tries, len(self._again_s) - 1)])
                    tries += 1
        finally:
            place.done.set()
