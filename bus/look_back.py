"""Looking back in the log for events that may have been stored; who looks at the same time shares one reading.

After an outage hundreds of actions ask at once whether their outcome is in the log. A reader for each would have the
broker send all outcomes hundreds of times, until it answers nobody any more: readers time out, begin anew, and what waits
for them stands still for minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

import anyio

from ..errors import BusUnavailable
from .event import Recorded
from .feed import Batch

__all__ = ["LookBack", "Mark", "message_id_of"]

Mark: TypeAlias = Callable[[Recorded], str | None]
"""Reads what a record is known by."""


def message_id_of(record: Recorded) -> str | None:
    """Return the id under which the broker stored a record."""
    return record.headers.get("Nats-Msg-Id")


_Place: TypeAlias = tuple[str, Mark, type]
"""Subject, mark, and whether it begins at a sequence or at a time: those go together."""


class _Read(Protocol):
    def __call__(
        self, filters: Sequence[str], *, after: int = 0, since: datetime | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]: ...


@dataclass(slots=True, eq=False)
class _Look:
    """Somebody looks for a mark. ``done``: the log was read for it; ``seq`` None then: it is not there."""

    wanted: str
    begin: int | datetime
    done: bool = False
    seq: int | None = None
    error: BusUnavailable | None = None


class LookBack:
    """Looks into one log. Needs no closing.

    Args:
        read: reads what is in the log at the call (``EventLog.read``).
    """

    def __init__(self, read: _Read) -> None:
        self._read = read
        self._waiting: defaultdict[_Place, list[_Look]] = defaultdict(list)
        self._locks: defaultdict[_Place, anyio.Lock] = defaultdict(anyio.Lock)

    async def find(
        self, subject: str, wanted: str, begin: int | datetime, *, mark: Mark = message_id_of
    ) -> int | None:
        """Return the sequence of the first event marked ``wanted``, None if there was none at the call.

        Args:
            begin: it would stand behind this sequence, or not before this (broker) time.
        Raises:
            BusUnavailable: the log cannot be read. LogRewound: it ends before ``begin``.
        """
        place = (subject, mark, type(begin))
        look = _Look(wanted, begin)
        waiting = self._waiting[place]
        waiting.append(look)
        try:
            async with self._locks[place]:
                if not look.done:
                    # All who came while another reading went on; who comes from here on may look for what is newer.
                    looks = [one for one in waiting if not one.done]
                    await self._look(subject, mark, looks)
        finally:
            waiting.remove(look)
            if not waiting:
                self._waiting.pop(place, None)
                self._locks.pop(place, None)
        if look.error is not None:
            raise BusUnavailable(str(look.error)) from look.error
        return look.seq

    async def _look(self, subject: str, mark: Mark, looks: list[_Look]) -> None:
        """Read once for all of them. Cancelled: nothing is known, and the next reads for itself and the others."""
        wanted: defaultdict[str, list[_Look]] = defaultdict(list)
        for look in looks:
            wanted[look.wanted].append(look)
        found: dict[str, int] = {}
        sequences = [look.begin for look in looks if isinstance(look.begin, int)]
        times = [look.begin for look in looks if isinstance(look.begin, datetime)]
        try:
            async with self._read(
                [subject], after=min(sequences, default=0), since=min(times, default=None)
            ) as batches:
                async for batch in batches:
                    for record in batch.records:
                        known_by = mark(record)
                        if known_by is not None and known_by in wanted:
                            found.setdefault(known_by, record.seq)
                    if len(found) == len(wanted):
                        break
        except BusUnavailable as exc:
            for look in looks:
                look.done, look.error = True, exc  # each would fail the same way, one after the other
            return
        for look in looks:
            look.done, look.seq = True, found.get(look.wanted)
