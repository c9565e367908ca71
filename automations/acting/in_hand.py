"""The decisions that an outbox has and has not settled: delivered by the broker, handed over before that, or both."""

from __future__ import annotations

import anyio

from ...bus.consumer import Item

__all__ = ["InHand"]

_MOST_REMEMBERED = 10_000
"""Decisions that were done before they were delivered. Another outbox may get them, and then nobody asks here again."""


class InHand:
    """By sequence in the log. What is delivered is kept alive at the broker for as long as it is here."""

    def __init__(self) -> None:
        self._items: dict[int, Item | None] = {}  # as last delivered; None: not yet
        self._handed: dict[int, str] = {}  # the ids of those that were handed over
        self._done: dict[int, str] = {}  # not delivered yet, with their ids
        self._emptied: anyio.Event | None = None  # if somebody waits for that

    def __len__(self) -> int:
        return len(self._items)

    async def deliver(self, item: Item) -> bool:
        """Note that a decision was delivered; return whether it is to be begun now."""
        seq = item.recorded.seq
        done = self._done.pop(seq, None)
        # A broker that has lost its latest events in a power cut gives their places to others.
        if done is not None and done.encode() in item.recorded.raw:
            await item.ack()
            return False
        # It was handed over, or we were too slow to say that we have it: to hand it back would only bring it again, and again.
        is_new = seq not in self._items
        self._items[seq] = item
        return is_new

    def hand_over(self, seq: int, decision: str) -> bool:
        """Note that a decision has come by another way; return whether it is to be begun now."""
        if seq in self._items:
            return False
        self._items[seq] = None
        self._handed[seq] = decision
        return True

    def has_come_again(self, seq: int) -> bool:
        """Return whether a decision was delivered before, to whomever."""
        item = self._items.get(seq)
        return item is not None and item.deliveries > 1

    async def settle(self, seq: int, again_s: float | None) -> None:
        """Tell the broker that a decision is over, or when (s) it is to come again."""
        item = self._items[seq]
        if item is not None:
            await (item.ack() if again_s is None else item.nak(again_s))
        elif again_s is None:
            self._done[seq] = self._handed[seq]
            if len(self._done) > _MOST_REMEMBERED:
                del self._done[next(iter(self._done))]
        # Else its delivery finds what has been noted, and comes again when that says.

    async def refuse(self, seq: int, why: str) -> None:
        """Tell the broker not to bring a decision again."""
        if (item := self._items[seq]) is not None:
            await item.term(why)

    def drop(self, seq: int) -> None:
        """Forget a decision, settled or not."""
        del self._items[seq]
        self._handed.pop(seq, None)
        if self._emptied is not None and not self._items:
            self._emptied.set()
            self._emptied = None

    async def keep_alive(self) -> None:
        """Tell the broker that all of them are being carried out."""
        for item in list(self._items.values()):
            if item is not None:
                await item.in_progress()

    async def empty(self) -> None:
        """Return when none is left."""
        while self._items:
            if self._emptied is None:
                self._emptied = anyio.Event()
            await self._emptied.wait()
