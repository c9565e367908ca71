"""Between wall clocks and real time: when does a reading of the clock on the wall happen?

Twice a year (in most zones) clocks are moved, so that some readings never come and others come twice. Two rules,
those of cron, say what a schedule makes of that; ``is_fixed`` of the pattern chooses:

- **Fixed times** ("at 02:30"): a reading that is skipped fires once, at the first instant after the gap, and
  several readings in the same gap fire there together, once. A reading that comes twice fires the first time.
- **Running times** ("every 15 minutes", "every hour"): fires at every real instant at which the clock shows a
  matching reading. Skipped readings do not happen, repeated ones happen twice, and the distance between two fires
  of "every 15 minutes" stays 15 minutes through both nights.

Source of the rule: cron(8) of Debian and cronie, "daylight saving time".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo, available_timezones

__all__ = ["Walls", "instants_after", "to_instant", "zone_named"]

_SECOND = timedelta(seconds=1)


class Walls(Protocol):
    """A pattern of readings of a wall clock."""

    @property
    def is_fixed(self) -> bool:
        """Whether the readings are single times of day (see the two rules above)."""
        ...

    def walls_after(self, after: datetime) -> Iterator[datetime]:
        """Give the readings later than ``after`` in order: naive, whole seconds, perhaps without end."""
        ...


@lru_cache(maxsize=1024)
def zone_named(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name such as ``Europe/Berlin``.

    Raises:
        ValueError: there is none; the message suggests near ones.
    """
    try:
        # A name with a path in it must not reach the file system.
        if name and name == name.strip() and not name.startswith((".", "/")) and name != "localtime":
            return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        pass
    known = available_timezones()
    wanted = name.strip().casefold().replace(" ", "_")
    same = [zone for zone in known if zone.casefold() == wanted]
    city = sorted(zone for zone in known if zone.casefold().rpartition("/")[2] == wanted)
    near = same or city or get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    tail = f"; did you mean {near[0]!r}?" if near else ", such as 'Europe/Berlin' or 'UTC'"
    raise ValueError(f"there is no time zone named {name!r}{tail}")


@dataclass(frozen=True, slots=True)
class _Edge:
    """An instant at which a zone's clocks are moved; ``after`` is the offset from UTC from then on."""

    at: datetime
    after: timedelta


def _offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta(0)


@lru_cache(maxsize=4096)
def _edges(zone: ZoneInfo, year: int) -> tuple[_Edge, ...]:
    """Return the edges of one UTC year, found by looking at each day and halving the days that differ."""
    found: list[_Edge] = []
    low = datetime(year, 1, 1, tzinfo=UTC)
    before = _offset(zone, low)
    for _ in range(366):
        if low.year > year or low > datetime.max.replace(tzinfo=UTC) - timedelta(days=2):
            break
        high = low + timedelta(days=1)
        after = _offset(zone, high)
        if after != before:
            left, right = low, high
            while right - left > _SECOND:
                middle = left + timedelta(seconds=(right - left) // _SECOND // 2)
                if _offset(zone, middle) == before:
                    left = middle
                else:
                    right = middle
            found.append(_Edge(right, after))
        low, before = high, after
    return tuple(found)


def _next_edge(zone: ZoneInfo, low: datetime, high: datetime) -> _Edge | None:
    """Return the first edge in (``low``, ``high``], both in UTC."""
    for year in range(low.year, high.year + 1):
        edges = _edges(zone, year)
        at = bisect_right(edges, low, key=lambda edge: edge.at)
        if at < len(edges) and edges[at].at <= high:
            return edges[at]
    return None


def to_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant (UTC) of a naive reading: the first if it comes twice, the end of the gap if it never does."""
    instant = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None, fold=0) == wall:
        return instant
    # In a gap the two folds are read with the offsets before and after it, so the gap's end lies between them.
    early = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    edge = _next_edge(zone, early, instant)
    return edge.at if edge is not None else instant


def instants_after(walls: Walls, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Give the instants (aware, UTC, strictly rising) after ``after`` at which a clock in ``zone`` shows ``walls``."""
    after = after.astimezone(UTC)
    return _fixed(walls, zone, after) if walls.is_fixed else _running(walls, zone, after)


def _fixed(walls: Walls, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    last = after
    # Readings up to the one at `after` cannot come later than it: both rules keep the order of readings.
    for wall in walls.walls_after(after.astimezone(zone).replace(tzinfo=None, fold=0)):
        instant = to_instant(wall, zone)
        if instant > last:
            last = instant
            yield instant


def _running(walls: Walls, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    at = after
    local = after.astimezone(zone)
    offset, wall = local.utcoffset() or timedelta(0), local.replace(tzinfo=None, fold=0)
    while True:
        edge: _Edge | None = None
        for reading in walls.walls_after(wall):
            instant = (reading - offset).replace(tzinfo=UTC)
            edge = _next_edge(zone, at, instant)
            if edge is not None:
                break
            at = instant
            yield instant
        if edge is None:
            return
        # The hands are moved before this reading comes: go on from what the clock shows then, that included.
        at, offset = edge.at, edge.after
        wall = (at + offset).replace(tzinfo=None) - _SECOND
