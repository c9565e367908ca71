"""Follows the log and folds it into the read model, batch by batch, each in one transaction with its sequence."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
from anyio import AsyncContextManagerMixin, to_thread
from anyio.abc import TaskStatus

from ..bus.patience import Patience
from ..bus.subject import ALL_EVENTS
from ..clock import SYSTEM_CLOCK, Clock
from ..config import StorageConfig
from ..errors import BusUnavailable, GuardFailed, HarkError, LogRewound, ReadModelDamaged, UnavailableError
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
_GATHER_S = 0.05
"""Each transaction writes the ends of all indexes anew, and costs several times its rows when they are few."""
_DISK_S = 5.0
"""How long to wait for a disk that cannot be written before it is tried again, and between two files made anew."""
_FIRST_S = 1.0
"""For how long entering waits until a file that began anew is whole: with a short log nobody is ever refused."""
_LOOK_AGAIN_S = 5.0
"""How long a rebuild waits for the last event before it looks whether the log still has it."""
_EXAMINE_SHARE = 0.1
"""The part of the time that may go into reading the whole file, because somebody could not, and finding it well."""


class Projector(AsyncContextManagerMixin):
    """Keeps the read model at ``path`` up with the log. Enter it to start; entered, the file is there to be read.

    It begins where the file stops. A file that was folded from another log (the stream was made anew, or has lost
    its tail), by another schema version, or that is damaged, is dropped and folded from the beginning; so is one that is
    deleted, cut or overwritten meanwhile.

    Args:
        progress: to be moved on; by default one of its own.
        gather_s: let so many seconds of events come together for one transaction, unless somebody waits for them. Not while
            it catches up.
    Raises:
        BusUnavailable: on entering, when the broker does not answer. Later outages are waited out.
        UnavailableError: on entering, when the file cannot be written. Later on that is waited out, too.
    """

    def __init__(
        self,
        bus: Bus,
        path: Path,
        config: StorageConfig,
        clock: Clock = SYSTEM_CLOCK,
        *,
        progress: Progress | None = None,
        gather_s: float = _GATHER_S,
    ) -> None:
        self._bus, self._path, self._config, self._clock = bus, path, config, clock
        self._progress, self._gather_s = progress or Progress(), gather_s
        self._again: anyio.CancelScope | None = None
        self._examine_from_s = -math.inf
        self._remove_from_s = -math.inf
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

        Readers that watch the progress are refused from when the old rows are dropped until the new ones are whole.
        """
        last_seq = await _last_event(self._bus)
        self._asked_to_rebuild = True
        self._progress.go_back(0)
        if self._again is not None:
            self._again.cancel("rebuild")
        while True:
            try:
                return await self.caught_up(last_seq, timeout_s=_LOOK_AGAIN_S)
            except UnavailableError:
                # What was last may have left the log meanwhile, purged or too old, and never comes.
                with suppress(BusUnavailable):
                    last_seq = min(last_seq, await _last_event(self._bus))

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            await tg.start(self._run)
            with suppress(UnavailableError):  # who asks is told how far it is
                await self._progress.caught_up(self._progress.whole_from, timeout_s=_FIRST_S)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel("projector closing")

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        started: Callable[[], None] | None = task_status.started
        is_damaged = False
        while True:
            try:
                if is_damaged:
                    await self._remove()
                    is_damaged = False
                state = await self._bus.log.state()
                last_seq = await _last_event(self._bus)
                async with Store(self._path, stream=state.copy) as store:
                    if self._asked_to_rebuild or await self._is_of_another_log(store, state.last_seq):
                        await store.reset()
                        self._asked_to_rebuild = False
                    await store.prune(state.first_seq)
                    self._progress.open_at(store.reached.seq, last_seq=last_seq, far=self._config.batch)
                    self._advance(store.reached.seq, self._progress.behind)
                    if started is not None:
                        started()
                        started = None
                    await self._keep_up(store)
                    self._progress.go_back(0 if self._asked_to_rebuild else store.reached.seq)
            except ReadModelDamaged as exc:
                log.warning("storage.made_anew", extra={"path": exc.path, "why": exc.why})
                self._progress.begin(max(self._progress.seq, self._progress.whole_from, 1))
                self._progress.go_back(0)
                is_damaged = True
            except UnavailableError as exc:
                if started is not None:
                    raise
                is_bus = isinstance(exc, BusUnavailable)
                log.warning(
                    "storage.bus_unavailable" if is_bus else "storage.disk_unavailable",
                    extra={"error": str(exc)},
                )
                await self._clock.sleep(1 if is_bus else _DISK_S)

    async def _remove(self) -> None:
        """Delete the files, to be made anew. Not again and again at once, should the new ones be damaged, too.

        Raises:
            UnavailableError: they cannot be deleted now.
        """
        await self._clock.sleep(self._remove_from_s - self._clock.monotonic())
        remove_files(self._path)
        self._remove_from_s = self._clock.monotonic() + _DISK_S

    async def _is_of_another_log(self, store: Store, head: int) -> bool:
        """Return whether the log has lost events that are in the file: an older copy of the broker's files was put back, or a
        power cut took the log's tail. It may have grown again since, with others."""
        seq = store.reached.seq
        if seq <= head:
            ours, there = await store.last_body(), await self._bus.log.get(seq)
            if ours is None or there is None or ours == there.raw:
                return False
        log.warning("storage.log_rewound", extra={"seq": seq, "head": head})
        return True

    async def _keep_up(self, store: Store) -> None:
        """Follow the log until something has to be done about the file or the connection.

        Raises:
            ReadModelDamaged, UnavailableError: as ``Store``.
        """
        try:
            with anyio.CancelScope() as self._again:
                await self._follow(store)
        except LogRewound as exc:
            log.warning("storage.log_rewound", extra={"error": str(exc)})
            await store.reset()
        except GuardFailed:
            log.warning("storage.second_writer", extra={"path": str(self._path)})
            await self._clock.sleep(1)
        finally:
            self._again = None

    async def _follow(self, store: Store) -> None:
        """Fold and commit until cancelled. Cancelled halfway through a batch, nothing of it is written.

        One batch is folded while the one before is committed: SQLite writes without Python's lock.
        """
        folded, to_commit = anyio.create_memory_object_stream[tuple[Changes, int]](1)
        failures: list[HarkError] = []

        async def beside(work: Callable[[], Awaitable[None]]) -> None:
            try:
                await work()
            except HarkError as exc:
                failures.append(exc)
                tg.cancel_scope.cancel("failed beside")

        async with folded, to_commit, anyio.create_task_group() as tg:
            tg.start_soon(beside, partial(self._commit, store, to_commit))
            tg.start_soon(beside, partial(self._examine, store))
            progress = self._progress
            patience = Patience(self._gather_s, unless=lambda _: progress.is_awaited)
            progress.on_awaited = patience.hurry
            try:
                async with self._bus.log.follow(
                    (ALL_EVENTS,), after=store.reached.seq, batch=self._config.batch, patience=patience
                ) as batches:
                    async for batch in batches:
                        await folded.send((await self._fold(batch), batch.pending))
            except HarkError as exc:
                failures.append(exc)
                tg.cancel_scope.cancel("following failed")
            finally:
                progress.on_awaited = None
        if failures:
            raise failures[0]

    async def _examine(self, store: Store) -> None:
        """Look at the files when somebody could not read them, not too often.

        Raises:
            ReadModelDamaged: they are gone, or not what was written.
        """
        while True:
            await self._progress.doubted()
            store.check()
            began_s = self._clock.monotonic()
            if began_s >= self._examine_from_s:
                await store.examine()
                now_s = self._clock.monotonic()
                self._examine_from_s = now_s + (now_s - began_s) / _EXAMINE_SHARE

    async def _commit(self, store: Store, changes: AsyncIterable[tuple[Changes, int]]) -> None:
        prune_at = self._clock.monotonic() + self._config.prune_every_s
        async for change, pending in changes:
            await store.commit(change)
            if not pending and not self._asked_to_rebuild:
                self._progress.end(store.reached.seq)
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


async def _last_event(bus: Bus) -> int:
    """Return how far the log can be folded now. It may end later: in timers, or in what is gone from it."""
    last = await bus.log.last(ALL_EVENTS)
    return last.seq if last is not None else 0


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
