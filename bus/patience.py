"""How long a reader of the log lets records come together, so that it is not woken for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .event import Recorded

__all__ = ["Patience"]


class Patience:
    """What a reader says who is in no hurry. For one feed.

    What comes after a silence is handed out at once, and so is everything while more waits on the broker. What comes sooner
    than ``gather_s`` after the last batch waits until then; it is in order, and nothing is left out.

    Args:
        gather_s: seconds between two batches of few records.
        unless: whether a record is not to wait, and all before it neither. Asked at most once of each, in the order of the log.
    """

    def __init__(self, gather_s: float, *, unless: Callable[[Recorded], bool] | None = None) -> None:
        self.gather_s, self.unless = gather_s, unless
        self._hurry: Callable[[], None] | None = None

    def set_reader(self, hurry: Callable[[], None] | None) -> None:
        """Note who is to be told of a hurry: the feed."""
        self._hurry = hurry

    def hurry(self) -> None:
        """Have what waits handed out now: somebody wants to know."""
        if self._hurry is not None:
            self._hurry()
