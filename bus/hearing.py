"""Hearing of single things in the log, any number at once: the end of this run, and of that one.

A few get a reader of their own, which the broker sends nothing but what they wait for. Each costs the broker a consumer,
of which it allows some hundreds; so all beyond those few share one reader of everything of the kind, and each is given
what is about its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from .event import Recorded
from .feed import Batch

__all__ = ["ALONE", "Hearing"]

ALONE = 8
"""So many of a kind have readers of their own."""

_Heard = asyncio.Queue["Recorded | BaseException"]


class Hearing:
    """Hands out records by the last word of their subjects. Needs no closing: its readers live while somebody listens.

    Args:
        follow: opens a reader of the log from now on.
    """

    def __init__(
        self, follow: Callable[[list[str]], AbstractAsyncContextManager[AsyncIterator[Batch]]]
    ) -> None:
        self._follow = follow
        self._alone: Counter[str] = Counter()
        self._shared: dict[str, _Shared] = {}

    @asynccontextmanager
    async def hear(self, filter: str, word: str) -> AsyncGenerator[AsyncIterator[Recorded]]:
        """Hear what is stored from now on, on a filter that ends in ``*``, with ``word`` in that place.

        Raises:
            BusUnavailable: on entering. LogRewound: while iterating, see ``EventLog.follow``.
        """
        if self._alone[filter] < ALONE:
            self._alone[filter] += 1
            try:
                async with self._follow([f"{filter.removesuffix('*')}{word}"]) as batches:
                    yield _Records(batches)
            finally:
                self._alone[filter] -= 1
            return
        shared = self._shared.get(filter)
        if shared is None or shared.is_over:
            shared = self._shared[filter] = _Shared(self._follow([filter]))
        heard: _Heard = asyncio.Queue()
        shared.add(word, heard)
        try:
            await shared.started()
            yield _Given(heard)
        finally:
            if shared.remove(word, heard):
                if self._shared.get(filter) is shared:
                    del self._shared[filter]
                await shared.stop()


class _Shared:
    """One reader for many."""

    def __init__(self, feed: AbstractAsyncContextManager[AsyncIterator[Batch]]) -> None:
        self._listeners: dict[str, set[_Heard]] = {}
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read(feed), name="hark-hearing")

    @property
    def is_over(self) -> bool:
        return self._task.done() or not self._listeners

    def add(self, word: str, heard: _Heard) -> None:
        self._listeners.setdefault(word, set()).add(heard)

    def remove(self, word: str, heard: _Heard) -> bool:
        """Forget a listener; return whether it was the last."""
        of_word = self._listeners[word]
        of_word.discard(heard)
        if not of_word:
            del self._listeners[word]
        return not self._listeners

    async def started(self) -> None:
        """Return once everything stored from now on will be heard."""
        # Shielded: one listener that gives up does not take the others' answer along.
        await asyncio.shield(self._started)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._started.done() and not self._started.cancelled():
            self._started.exception()  # whoever waited for it has been told, or has left

    async def _read(self, feed: AbstractAsyncContextManager[AsyncIterator[Batch]]) -> None:
        try:
            async with feed as batches:
                self._started.set_result(None)
                async for batch in batches:
                    for record in batch.records:
                        for heard in self._listeners.get(record.subject.rpartition(".")[2], ()):
                            heard.put_nowait(record)
        except Exception as exc:
            if not self._started.done():
                self._started.set_exception(exc)
            for of_word in self._listeners.values():
                for heard in of_word:
                    heard.put_nowait(exc)
        finally:
            if not self._started.done():
                self._started.cancel()


class _Records:
    """The records of a reader of one's own, one by one."""

    def __init__(self, batches: AsyncIterator[Batch]) -> None:
        self._batches = batches
        self._left: deque[Recorded] = deque()

    def __aiter__(self) -> AsyncIterator[Recorded]:
        return self

    async def __anext__(self) -> Recorded:
        while not self._left:
            self._left.extend((await anext(self._batches)).records)
        return self._left.popleft()


class _Given:
    """What the shared reader gave to one listener."""

    def __init__(self, heard: _Heard) -> None:
        self._heard = heard

    def __aiter__(self) -> AsyncIterator[Recorded]:
        return self

    async def __anext__(self) -> Recorded:
        item = await self._heard.get()
        if isinstance(item, BaseException):
            raise item
        return item
