"""From the rule engine to the outbox of the same process: a decision names the outbox that has it from the start.

Without it a decision goes to the broker, comes back to some outbox, and is claimed there, before anything is done about
it. An outbox that has room promises to carry it out instead; the decision is stored with its name (``claimed_by``), which
is the claim of all its actions, and is handed over as soon as the broker says that it has it. The decision is delivered
nevertheless, as any other: who gets it then asks the one it names.

A promise that is old when its turn comes is no claim any more: the process may have stood still, and others have taken over
what it had. Then the actions are claimed as if nothing had been promised.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from ...bus.event import Event
from .forebears import Forebears

__all__ = ["CLAIMED_BY", "Handover", "Promises", "Taker"]

CLAIMED_BY = "claimed_by"
_MOST_GONE = 100
"""Outboxes of one process that its supervisor has replaced, and some decision may still name."""


class Taker(Protocol):
    """An outbox, as the rule engine sees it."""

    def promise(self, decision: str) -> str | None:
        """Say whether a decision would be carried out at once, by whom, and hold a place for it; None: there is no room."""
        ...

    def take(self, decision: Event, seq: int) -> None:
        """Carry out a promised decision, which the log has now."""
        ...

    def release(self, decision: str) -> None:
        """Give up the promise of a decision that may not have been stored, or stood in the log already."""
        ...


class Handover:
    """Where the two of a process meet, whichever of them is there. The engine promises nothing to nobody without an outbox.

    Args:
        forebears: outboxes of the home that this process holds.
    """

    def __init__(self, forebears: Forebears | None = None) -> None:
        self.dead = forebears if forebears is not None else Forebears()
        """Names of outboxes of processes before this one, which died."""
        self._taker: Taker | None = None
        self._promised: dict[str, Taker] = {}
        self.gone: dict[str, None] = {}
        """Names of outboxes of this process that have ended. None of them does anything any more; nobody need ask."""

    @asynccontextmanager
    async def lasting(self, name: str) -> AsyncGenerator[None]:
        """Note that there is an outbox of this name, and at the end that it is no more."""
        await self.dead.enter(name)
        try:
            yield
        finally:
            self.gone[name] = None
            if len(self.gone) > _MOST_GONE:
                del self.gone[next(iter(self.gone))]

    def enter(self, taker: Taker) -> None:
        """Promises are made in the name of ``taker`` from now on."""
        self._taker = taker

    def leave(self, taker: Taker) -> None:
        """``taker`` promises nothing more; what it has promised is for the broker to deliver."""
        if self._taker is taker:
            self._taker = None
        for decision in [d for d, t in self._promised.items() if t is taker]:
            self.release(decision)

    def promise(self, decision: str) -> str | None:
        """Return who promises to carry out a decision that is about to be stored; None: whoever it is delivered to."""
        taker = self._taker
        name = taker.promise(decision) if taker is not None else None
        if taker is not None and name is not None:
            self._promised[decision] = taker
        return name

    def stored(self, decision: Event, seq: int) -> None:
        """Hand over a decision that the broker has just stored."""
        if (taker := self._promised.pop(decision.id, None)) is not None:
            taker.take(decision, seq)

    def release(self, decision: str) -> None:
        """Take back the promise of a decision, if there is one."""
        if (taker := self._promised.pop(decision, None)) is not None:
            taker.release(decision)


class Promises:
    """What an outbox has promised and not finished, by the id of the decision.

    Args:
        hold_s: for how long after it was given a promise is a claim; far shorter than a claim holds.
    """

    def __init__(self, *, hold_s: float) -> None:
        self._hold_s = hold_s
        self._promises: dict[str, float] = {}  # when each was given, in seconds of the loop
        self._open: set[str] = set()  # those of decisions we do not have yet

    @property
    def places(self) -> int:
        """How many places are held for decisions that are still to come."""
        return len(self._open)

    def __contains__(self, decision: str) -> bool:
        return decision in self._promises

    def give(self, decision: str) -> None:
        self._promises[decision] = anyio.current_time()
        self._open.add(decision)

    def keep(self, decision: str) -> bool:
        """Note that a decision has come, which takes its own place from now on; return whether it was promised and open."""
        is_open = decision in self._open
        self._open.discard(decision)
        return is_open

    def is_claim(self, decision: str) -> bool:
        """Whether the actions of a decision are claimed by our promise, which must be young."""
        given = self._promises.get(decision)
        return given is not None and anyio.current_time() - given < self._hold_s

    def end(self, decision: str) -> None:
        self._promises.pop(decision, None)
        self._open.discard(decision)

    def release(self, decision: str) -> None:
        """Forget a promise, unless its decision has come: it was delivered before we knew that it is stored."""
        if decision in self._open:
            self.end(decision)
