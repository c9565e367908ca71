"""State by key, in parts: nothing has to be done to all keys at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Keyed"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_WHOLE = 4096
"""Up to so many keys are in one part: of ten thousand rules most have few."""
_PARTS = 64
"""More are slower: keys that came together stand apart in memory."""
_LOOK_FROM, _LOOK_FROM_PART = 1024, 64


class Keyed(Generic[K, V]):
    """A dictionary in parts, by the hash of the key.

    To list a million keys, to look for those that are too old, or to make room for as many again takes 20 to 500 ms,
    in which the loop stands still. A part has a few thousand of them, and each comes to that at another time.

    ``parts``: their number is a power of two (of a few keys it is 1, else that which is asked for), and key k is in ``parts[hash(k) & (number - 1)]``. A part that another
    has taken the place of stays as it was: who keeps a copy of the list finds in it every key there was, but for those
    that were taken away one by one, and some that have come since.
    """

    __slots__ = ("_full", "_many", "_mask", "parts")

    def __init__(self, *, parts: int = _PARTS) -> None:
        self._many = parts
        self.parts: list[dict[K, V]] = [{}]
        self._full = [_LOOK_FROM]
        self._mask = 0

    def part(self, key: K) -> dict[K, V]:
        """Return the part a key belongs in, good until the next ``sweep``. Say ``is_full`` after adding to it."""
        return self.parts[hash(key) & self._mask]

    def get(self, key: K) -> V | None:
        return self.parts[hash(key) & self._mask].get(key)

    def __contains__(self, key: K) -> bool:
        return key in self.parts[hash(key) & self._mask]

    def __len__(self) -> int:
        return len(self.parts[0]) if not self._mask else sum(map(len, self.parts))

    def __iter__(self) -> Iterator[K]:
        for part in self.parts:
            yield from part

    def values(self) -> Iterator[V]:
        for part in self.parts:
            yield from part.values()

    def items(self) -> Iterator[tuple[K, V]]:
        for part in self.parts:
            yield from part.items()

    def whole(self) -> dict[K, V]:
        """Return all there is, to be read."""
        return self.parts[0] if not self._mask else dict(self.items())

    def of(self, keys: Iterable[K]) -> dict[K, V]:
        """Return what there is of some keys."""
        parts, mask = self.parts, self._mask
        return {k: v for k in keys if (v := parts[hash(k) & mask].get(k)) is not None}

    def is_full(self, key: K) -> bool:
        """Return whether the part of a key that was added has doubled since it was swept: then ``sweep`` it."""
        i = hash(key) & self._mask
        return len(self.parts[i]) >= self._full[i]

    def sweep(self, key: K, gone_of: Callable[[dict[K, V]], list[K]] | None = None) -> None:
        """Take away what is gone from the part of a key, and divide it if it is large for one."""
        i = hash(key) & self._mask
        part = self.parts[i]
        if gone_of is not None:
            gone = gone_of(part)
            for k in gone:
                del part[k]
            if len(gone) > len(part):
                # A dictionary keeps the room of what was taken away.
                part = self.parts[i] = dict(part)
        self._full[i] = max(_LOOK_FROM_PART if self._mask else _LOOK_FROM, 2 * len(part))
        if not self._mask and len(part) >= _WHOLE:
            self._divide()

    def _divide(self) -> None:
        mask, parts = self._many - 1, [dict[K, V]() for _ in range(self._many)]
        for k, v in self.parts[0].items():
            parts[hash(k) & mask][k] = v
        self.parts, self._mask = parts, mask
        self._full = [max(_LOOK_FROM_PART, 2 * len(part)) for part in parts]

    def update(self, items: Iterable[tuple[K, V]]) -> None:
        """Take up many."""
        if not self._mask:
            one = self.parts[0]
            one.update(items)
            if len(one) < _WHOLE:
                self._full[0] = max(_LOOK_FROM, 2 * len(one))
                return
            self._divide()
            return
        parts, mask = self.parts, self._mask
        for k, v in items:
            parts[hash(k) & mask][k] = v
        self._full = [max(_LOOK_FROM_PART, 2 * len(part)) for part in parts]
