"""Named limits: so many at once (``slots``), or so many per time (``rate``). Kept in the bucket ``limits``. Pure.

Who holds slots follows from the order in which they were asked for: tickets stand in one total order (the revisions of
their keys), and the first ones that fit hold. Everybody who reads the tickets comes to the same answer, so nobody has to
hand slots out; and since a ticket never gets one before it later, what was granted stays granted.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...duration import Rate, RateSpec

__all__ = ["BUCKET", "TAG_PREFIX", "Limit", "Ticket", "Tickets", "holders", "key_of", "name_of", "reserve"]

BUCKET = "limits"
TAG_PREFIX = "tag:"
"""Begins the name of a limit for tasks that carry a tag."""
MAX_NAME_CHARS = 200
_PLAIN = re.compile(r"[A-Za-z0-9_-]")


class Limit(BaseModel):
    """A named limit. ``tag:<tag>`` limits the tasks that carry a tag.

    Attributes:
        slots: how many may be occupied at once; 0: none at all, until it is raised.
        rate: how many per time, such as ``100/m``; so many may come at once after a rest.
        slot_decay_per_second: with ``slots``: the rate at which slots become free by themselves (as in Prefect).
        active: False: as if it were not there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    slots: int | None = Field(None, ge=0)
    rate: RateSpec | None = None
    slot_decay_per_second: float = Field(0.0, ge=0)
    active: bool = True

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.slots is None) == (self.rate is None):
            raise ValueError("a limit has either `slots` or a `rate`")
        if self.slot_decay_per_second and not self.slots:
            raise ValueError("`slot_decay_per_second` needs `slots`")
        return self

    @property
    def pace(self) -> tuple[float, int] | None:
        """(seconds for each, how many at once after a rest) of a limit per time; None if it is one of slots."""
        if self.rate is not None:
            rate: Rate = self.rate
            return rate.per_s / rate.count, rate.count
        if self.slot_decay_per_second:
            return 1.0 / self.slot_decay_per_second, self.slots or 1
        return None


def key_of(name: str) -> str:
    """Return the bucket key of a limit's name: one word, whatever characters the name has."""
    if not name or len(name) > MAX_NAME_CHARS:
        raise ValueError(f"a limit's name has 1 to {MAX_NAME_CHARS} characters, got {name!r}")
    return "".join(c if _PLAIN.fullmatch(c) else "".join(f"={b:02X}" for b in c.encode()) for c in name)


def name_of(key: str) -> str:
    """Return the name a bucket key was made of by ``key_of``."""
    raw = re.sub(rb"=([0-9A-F]{2})", lambda found: bytes.fromhex(found[1].decode()), key.encode())
    return raw.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Ticket:
    """A wish for slots of one limit.

    Attributes:
        order: revision under which it was stored; earlier ones come first.
        process: the life of which keeps it: when that is gone, so is the ticket.
    """

    id: str
    order: int
    occupy: int
    process: str


def holders(tickets: Iterable[Ticket], slots: int) -> set[str]:
    """Return the ids of the tickets that hold their slots: the longest run from the first on that fits.

    Nobody overtakes, so who wants many slots is not starved by those who want few.
    """
    held: set[str] = set()
    taken = 0
    for ticket in sorted(tickets, key=lambda ticket: ticket.order):
        taken += ticket.occupy
        if taken > slots:
            break
        held.add(ticket.id)
    return held


class Tickets:
    """The tickets of one limit, and how many of the first of them hold their slots (see ``holders``).

    Kept step by step, so that a change costs the same however many wait behind it.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Ticket] = {}
        self._line: list[tuple[int, str]] = []  # by (order, id)
        self._holding = self._taken = 0

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._by_id.values())

    def add(self, ticket: Ticket) -> None:
        """Take a ticket in, or give it another place if it is in already."""
        known = self._by_id.get(ticket.id)
        if known == ticket:
            return
        if known is not None:
            self.remove(ticket.id)
        self._by_id[ticket.id] = ticket
        entry = (ticket.order, ticket.id)
        place = bisect_left(self._line, entry)
        self._line.insert(place, entry)
        while place < self._holding:  # told late of one that came before: those behind it are told once more
            self._holding -= 1
            self._taken -= self._by_id[self._line[self._holding + 1][1]].occupy

    def remove(self, id_: str) -> bool:
        """Take a ticket out; return whether it was in."""
        ticket = self._by_id.pop(id_, None)
        if ticket is None:
            return False
        place = bisect_left(self._line, (ticket.order, id_))
        del self._line[place]
        if place < self._holding:
            self._holding -= 1
            self._taken -= ticket.occupy
        return True

    def next_holders(self, slots: int) -> list[str]:
        """Return the ids of those that hold their slots now and did not when this was last asked, in order.

        Some are told again: those before which another took its place, and those whose slots were gone for a while.
        """
        while self._taken > slots and self._holding:
            self._holding -= 1
            self._taken -= self._by_id[self._line[self._holding][1]].occupy
        found: list[str] = []
        while self._holding < len(self._line):
            id_ = self._line[self._holding][1]
            occupy = self._by_id[id_].occupy
            if self._taken + occupy > slots:
                break
            self._holding += 1
            self._taken += occupy
            found.append(id_)
        return found


def reserve(free_at_s: float, now_s: float, *, occupy: int, each_s: float, burst: int) -> tuple[float, float]:
    """Return (the new ``free_at_s``, how long to wait) for ``occupy`` more under a limit per time.

    Args:
        free_at_s: when all that was reserved so far has passed, in seconds of the wall clock.
        each_s: seconds for each.
        burst: how many may come at once after a rest.
    Source: the generic cell rate algorithm, ITU-T I.371, as a virtual scheduler.
    """
    new = max(free_at_s, now_s) + occupy * each_s
    return new, max(0.0, new - burst * each_s - now_s)
