"""Who gives events to the publisher, and is told at its own barrier which of them were refused."""

from __future__ import annotations

from ..errors import HarkError

__all__ = ["Owner"]


class Owner:
    """One who publishes: a run, a caller of ``emit``. Many share a publisher; a refusal is the matter of one of them.

    Kept with its owner and gone with it: the first error and how many there were, however many are refused.
    """

    __slots__ = ("_first", "_refused")

    def __init__(self) -> None:
        self._first: HarkError | None = None
        self._refused = 0

    def note(self, error: HarkError) -> None:
        """Note that the broker refused something of ours for good."""
        if self._first is None:
            self._first = error
        self._refused += 1

    @property
    def is_refused(self) -> bool:
        """Whether something was refused that has not been raised yet."""
        return self._first is not None

    def raise_refusals(self) -> None:
        """Raise the first error noted since the last call, with a note of how many more there are; once."""
        first, count = self._first, self._refused
        if first is None:
            return
        self._first, self._refused = None, 0
        if count > 1:
            first.add_note(f"and {count - 1} more events were refused; each is in the log of this process")
        raise first
