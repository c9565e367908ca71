"""Follows the log and folds it into the read model, batch by batch, each in one transaction with its sequence."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
from anyio import AsyncContextManagerMixin, to_thread
from anyio.abc import TaskStatus

from ..bus.subject import ALL_EVENTS
from ..clock import SYSTEM_CLOCK, Clock
from ..config import StorageConfig
from ..errors import BusUnavailable, GuardFailed, HarkError, LogRewound
from .fold import Changes, Folding, fold
from .progress import Progress
from .store import Store, remove_files

if TYPE_CHECKING:
    from ..bus import Bus
    from ..bus.feed import Batch

__all__ = ["Projector", "rebuild"]

log = logging.getLogger(__name__)

_BITE = 200
"""Events folded before others of the loop have a turn: a few milliseconds."""
_BURST, _BURST_S = 32, 0.05
"""So many events at once are no single fact somebody waits for: more will follow, and share their transaction with those
that come within so many seconds. Each transaction writes the ends of all indexes anew."""


class Projector(AsyncContextManagerMixin):
    """Keeps the read model at ``path`` up with the log. Enter it to start; entered, the file is there to be read.

    It begins where the file stops. A file that was folded from another log (the stream was made anew, or has lost
    its tail), by another schema version, or that is damaged, is dropped and folded from the beginning.

    Args:
        progress: to be moved on; by default one of its own.
        gather_s: let so many seconds of events come together for one transaction, also when they are few. Not while it
            catches up.
    Raises:
        BusUnavailable: on entering, when the broker does not answer. Later outages are waited out.
    """

    def __init__(
        self,
        bus: Bus,
        path: Path,
        config: StorageConfig,
        clock: Clock = SYSTEM_CLOCK,
        *,
        progress: Progress | None = None,
        gather_s: float = 0.0,
    ) -> None:
        self._bus, self._path, self._config, self._clock = bus, path, config, clock
        self._progress, self._gather_s = progress or Progress(), gather_s
        self._again: anyio.CancelScope | None = None
        self._asked_to_rebuild = False

    @property
    def seq(self) -> int:
        """The sequence of the last event in the read model."""
        return self._progress.seq

    @property
    def behind(self) -> int:
        """How many events the broker still had to hand over after the last batch."""
        return self._progress.behind

    async def caught_up(self, seq: int, *, timeout_s: float = 5.0) -> None:
        """Wait until the event at ``seq`` can be read.

        Raises:
            UnavailableError: it took longer than ``timeout_s``.
        """
        await self._progress.caught_up(seq, timeout_s=timeout_s)

    async def rebuild(self) -> None:
        """Drop every row and fold the log from its beginning, up to where it ends now.

        Readers see the old rows until they are dropped, and then the growing new ones.
        """
        head = await self._bus.log.head()
        self._asked_to_rebuild = True
        self._progress.go_back(0)
        if self._again is not None:
            self._again.cancel("rebuild")
        await self.caught_up(head, timeout_s=float("inf"))

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            await tg.start(self._run)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel("projector closing")

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        started: Callable[[], None] | None = task_status.started
        while True:
            try:
                state = await self._bus.log.state()
            except BusUnavailable as exc:
                if started is not None:
                    raise
                log.warning("storage.bus_unavailable", extra={"error": str(exc)})
                await self._clock.sleep(1)
                continue
            async with Store(self._path, stream=state.copy) as store:
                if self._asked_to_rebuild or store.reached.seq > state.last_seq:
                    await store.reset()
                    self._asked_to_rebuild = False
                await store.prune(state.first_seq)
                self._advance(store.reached.seq, self._progress.behind)
                if started is not None:
                    started()
                    started = None
                try:
                    with anyio.CancelScope() as self._again:
                        await self._follow(store)
                except LogRewound as exc:
                    log.warning("storage.log_rewound", extra={"error": str(exc)})
                    await store.reset()
                except GuardFailed:
                    log.warning("storage.second_writer", extra={"path": str(self._path)})
                    await self._clock.sleep(1)
                except BusUnavailable as exc:
                    log.warning("storage.bus_unavailable", extra={"error": str(exc)})
                    await self._clock.sleep(1)
                self._again = None
                self._progress.go_back(0 if self._asked_to_rebuild else store.reached.seq)

    async def _follow(self, store: Store) -> None:
        """Fold and commit until cancelled. Cancelled halfway through a batch, nothing of it is written.

        One batch is folded while the one before is committed: SQLite writes without Python's lock.
        """
        folded, to_commit = anyio.create_memory_object_stream[tuple[Changes, int]](1)
        failures: list[HarkError] = []

        async def commit_all() -> None:
            try:
                await self._commit(store, to_commit)
            except HarkError as exc:
                failures.append(exc)
                tg.cancel_scope.cancel("commit failed")

        async with folded, to_commit, anyio.create_task_group() as tg:
            tg.start_soon(commit_all)
            try:
                async with self._bus.log.follow(
                    (ALL_EVENTS,), after=store.reached.seq, batch=self._config.batch
                ) as batches:
                    async for batch in batches:
                        await folded.send((await self._fold(batch), batch.pending))
                        if (pause_s := self._pause_s(len(batch.records))) > 0:
                            await anyio.sleep(pause_s)
            except HarkError as exc:
                failures.append(exc)
                tg.cancel_scope.cancel("following failed")
        if failures:
            raise failures[0]

    def _pause_s(self, count: int) -> float:
        """Return for how long to let events come together after a batch of ``count``; while it catches up, not at all."""
        if count >= self._config.batch:
            return 0.0
        return max(self._gather_s, _BURST_S) if count >= _BURST else self._gather_s

    async def _commit(self, store: Store, changes: AsyncIterable[tuple[Changes, int]]) -> None:
        prune_at = self._clock.monotonic() + self._config.prune_every_s
        async for change, pending in changes:
            await store.commit(change)
            self._advance(store.reached.seq, pending)
            if self._clock.monotonic() >= prune_at:
                prune_at = self._clock.monotonic() + self._config.prune_every_s
                gone = await store.prune((await self._bus.log.state()).first_seq)
                log.debug("storage.pruned", extra={"rows": gone})

    async def _fold(self, batch: Batch) -> Changes:
        # On the loop, a bite at a time: in a thread, folding would fight for Python's lock with the loop that reads, and
        # each time the one or the other got it, the loser would wait for milliseconds.
        folding, records = Folding(), batch.records
        for at in range(0, len(records), _BITE):
            if at:
                await anyio.lowlevel.checkpoint()
            folding.add(records[at : at + _BITE])
        return folding.done()

    def _advance(self, seq: int, pending: int) -> None:
        if self._asked_to_rebuild:  # what has just been committed is about to be dropped
            return
        self._progress.reach(seq, pending)


async def rebuild(
    bus: Bus, path: Path, config: StorageConfig, *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Fold the whole log into a new file at ``path`` and return the sequence reached. No projector may be running.

    Args:
        progress: called after every batch with (events folded, events still waiting).
    """
    state = await bus.log.state()
    remove_files(path)
    async with Store(path, stream=state.copy) as store:
        await store.prune(state.first_seq)
        reading: AbstractAsyncContextManager[AsyncIterator[Batch]] = bus.log.read(
            (ALL_EVENTS,), after=0, batch=config.batch
        )
        folded = 0
        async with reading as batches:
            async for batch in batches:
                if batch.records:
                    await store.commit(await to_thread.run_sync(fold, batch.records))
                folded += len(batch.records)
                if progress is not None:
                    progress(folded, batch.pending)
        return store.reached.seq
