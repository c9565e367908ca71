"""Runs that are due and wait for a place, in the order in which they would start. Pure; no limits in here.

Runs that differ in nothing a limit looks at form a *row* (same pool, queue, lane, deployment and key): if the first of
a row may not start, none of it may. Rows of one (pool, queue, lane) form a *line*. A row whose own limit is full is
*parked* under that limit and costs nothing until the limit frees a place. So choosing the next run costs
the logarithm of the number of rows, however many runs wait.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ...vocabulary import FlowRunId
from ..code.lane import Lane

__all__ = ["LineKey", "Place", "Row", "RowKey", "Waiting"]


class LineKey(NamedTuple):
    pool: str
    queue: str
    lane: Lane


class RowKey(NamedTuple):
    """What limits look at. ``code`` names what is executed, so that its lane can be learned."""

    pool: str
    queue: str
    deployment: str
    key: str
    code: str


class Place(NamedTuple):
    """A run's place in its row: by due time, then by age. ``since`` tells a stale place from a current one."""

    due_us: int
    born: int
    run_id: FlowRunId
    since: int


@dataclass(slots=True)
class Row:
    """Waiting runs that are alike. ``parked`` names the limit it waits for; ``untold`` those not yet told so."""

    key: RowKey
    line: LineKey
    places: list[Place] = field(default_factory=list)
    untold: list[Place] = field(default_factory=list)
    parked: tuple[str, ...] | None = None


class Waiting:
    """The rows and lines. Places are removed lazily: ``current`` says whether one still counts."""

    def __init__(self) -> None:
        self._rows: dict[RowKey, Row] = {}
        self._by_code: dict[str, set[RowKey]] = defaultdict(set)
        self._lines: dict[LineKey, list[tuple[Place, RowKey]]] = {}
        self._lines_of: dict[str, set[LineKey]] = defaultdict(set)
        self._untold: dict[LineKey, set[RowKey]] = defaultdict(set)
        self._parked: dict[tuple[str, ...], set[RowKey]] = defaultdict(set)
        self._where: dict[FlowRunId, tuple[Place, RowKey]] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, run_id: FlowRunId) -> bool:
        return run_id in self._where

    def add(self, place: Place, key: RowKey, lane: Lane, *, told: bool) -> None:
        """Put a due run in its row; ``told`` if its wait for a limit is in the log already."""
        self._where[place.run_id] = (place, key)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Row(key, LineKey(key.pool, key.queue, lane))
            self._by_code[key.code].add(key)
        heapq.heappush(row.places, place)
        if not told:
            row.untold.append(place)
            self._untold[row.line].add(key)
        if row.parked is None and row.places[0] is place:
            self._open(row)

    def remove(self, run_id: FlowRunId) -> None:
        """Take a run out, if it is in."""
        self._where.pop(run_id, None)

    def lines(self, pool: str) -> list[LineKey]:
        """Return the lines of a pool in which anything may wait."""
        return sorted(self._lines_of.get(pool, ()))

    def pools(self) -> list[str]:
        return list(self._lines_of)

    def head(self, line: LineKey) -> tuple[Place, Row] | None:
        """Return the first run of a line that is not parked, with its row; None when there is none."""
        heap = self._lines.get(line)
        while heap:
            place, key = heap[0]
            row = self._rows.get(key)
            if row is not None and row.line == line and row.parked is None:
                first = self._first(row)
                if first is place:
                    return place, row
                if first is None:
                    self._drop_row(row)
                elif not self.current(place):
                    heapq.heappop(heap)
                    self._open(row)  # its first run has left: the next one has no entry yet
                    continue
            # Stale: the row moved or was parked, or an earlier run came in (with an entry of its own).
            heapq.heappop(heap)
        if heap is not None and not self._untold.get(line):
            self._lines.pop(line, None)
            self._lines_of[line.pool].discard(line)
            if not self._lines_of[line.pool]:
                del self._lines_of[line.pool]
        return None

    def take(self, row: Row) -> Place:
        """Remove and return the first run of the row that ``head`` has just named."""
        place = heapq.heappop(row.places)
        heapq.heappop(
            self._lines[row.line]
        )  # its entry: left there, each one taken would leave one more to pass over
        self._where.pop(place.run_id, None)
        if self._first(row) is None:
            self._drop_row(row)
        else:
            self._open(row)
        return place

    def park(self, row: Row, limit: tuple[str, ...]) -> None:
        """Set a row aside until ``limit`` frees a place."""
        row.parked = limit
        self._parked[limit].add(row.key)

    def unpark(self, limit: tuple[str, ...]) -> None:
        """Let the rows that wait for ``limit`` try again."""
        for key in self._parked.pop(limit, ()):
            row = self._rows.get(key)
            if row is not None and row.parked == limit:
                row.parked = None
                if self._first(row) is None:
                    self._drop_row(row)
                else:
                    self._open(row)

    def unpark_deployment(self, name: str) -> None:
        """Let every row of a deployment try again: its definition has changed."""
        for limit, keys in list(self._parked.items()):
            if any(key.deployment == name for key in keys):
                self.unpark(limit)

    def codes(self, deployment: str) -> set[str]:
        """Return the codes of a deployment that have rows."""
        return {key.code for key in self._rows if key.deployment == deployment}

    def members(self, row: Row) -> list[Place]:
        """Return every run of a row, first to start first."""
        return sorted(place for place in row.places if self.current(place))

    def tell(self, row: Row) -> Iterator[Place]:
        """Yield the runs of a row that have not been told that they wait for a limit, each once."""
        untold, row.untold = row.untold, []
        self._untold[row.line].discard(row.key)
        yield from sorted(place for place in untold if self.current(place))

    def tell_line(self, line: LineKey) -> Iterator[Place]:
        """The same for every row of a line that is not parked for another reason."""
        for key in sorted(self._untold.get(line, ())):
            row = self._rows.get(key)
            if row is not None and row.parked is None:
                yield from self.tell(row)

    def learn(self, code: str, lane: Lane) -> None:
        """Move the rows that execute ``code`` to the line of ``lane``."""
        for key in list(self._by_code.get(code, ())):
            row = self._rows[key]
            line = LineKey(key.pool, key.queue, lane)
            if row.line == line:
                continue
            self._untold[row.line].discard(key)
            row.line = line
            if row.untold:
                self._untold[line].add(key)
            if row.parked is None and self._first(row) is not None:
                self._open(row)

    def current(self, place: Place) -> bool:
        """Whether a place is still the one its run has."""
        held = self._where.get(place.run_id)
        return held is not None and held[0] is place

    def _open(self, row: Row) -> None:
        heapq.heappush(self._lines.setdefault(row.line, []), (row.places[0], row.key))
        self._lines_of[row.line.pool].add(row.line)

    def _first(self, row: Row) -> Place | None:
        while row.places and not self.current(row.places[0]):
            heapq.heappop(row.places)
        return row.places[0] if row.places else None

    def _drop_row(self, row: Row) -> None:
        self._rows.pop(row.key, None)
        self._untold[row.line].discard(row.key)
        codes = self._by_code[row.key.code]
        codes.discard(row.key)
        if not codes:
            del self._by_code[row.key.code]
