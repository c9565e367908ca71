"""Which events have been taken in, the last few thousand: kept in segments, so that a checkpoint writes only the newest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["Seen"]

_SEGMENT = 500


class Seen:
    """Ids in the order in which they came; past ``most`` the oldest leave, a segment at a time.

    Attributes:
        changed: numbers of the segments that changed since whoever keeps them emptied it.
    """

    def __init__(self, ids: Iterable[str] = (), *, most: int = 5000) -> None:
        self._most = most
        self._segments: dict[int, dict[str, None]] = {}
        self._last = 0
        self.changed: set[int] = set()
        for id_ in ids:
            self.add(id_)

    def add(self, id_: str) -> bool:
        """Take in an id; return whether it is new."""
        if any(id_ in segment for segment in self._segments.values()):
            return False
        if len(self._segments.get(self._last, ())) >= _SEGMENT:
            self._last += 1
        self._segments.setdefault(self._last, {})[id_] = None
        self.changed.add(self._last)
        while (len(self._segments) - 1) * _SEGMENT > self._most:
            oldest = next(iter(self._segments))
            del self._segments[oldest]
            self.changed.add(oldest)
        return True

    def __iter__(self) -> Iterator[str]:
        return (id_ for segment in self._segments.values() for id_ in segment)

    def segment(self, number: int) -> list[str]:
        """Return the ids of a segment; none if it has left."""
        return list(self._segments.get(number, ()))
