"""The keys of a state, listed as they come."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["Roster"]

_SPARE = 1024


class Roster:
    """The keys of a dictionary, in a list that is there when a checkpoint begins: to list a million takes 20 ms.

    ``names`` only grows, and is replaced by another list rather than shortened: who reads it up to the length it had
    finds every key there was then. It also holds keys that have gone, about as many as there are, and some twice.
    """

    __slots__ = ("_full", "names")

    def __init__(self) -> None:
        self.names: list[str] = []
        self._full = _SPARE

    def add(self, key: str, present: Collection[str]) -> None:
        """List a key that is new; ``present``: all there are."""
        self.names.append(key)
        if len(self.names) >= self._full:
            self.tidy(present)

    def extend(self, keys: Iterable[str]) -> None:
        """List keys that are taken up."""
        self.names.extend(keys)

    def tidy(self, present: Collection[str]) -> None:
        """List anew if most have gone."""
        if len(self.names) >= 2 * len(present) + _SPARE:
            self.names = list(present)
        self._full = max(2 * len(present), len(self.names)) + _SPARE
