"""The fold's state at one place of the log, taken bit by bit while the fold goes on.

A million keys take a third of a second to write down, for which no event may wait. So the state is taken in slices
of some milliseconds between batches of events, and still is that of one moment: a cell (of a rule, what it knows of one
key) that is about to change and has not been taken yet is taken first.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import orjson

from ...vocabulary import JsonValue
from ..forms.form import Kind
from ..forms.keyed import Keyed
from .in_force import InForce, compact

__all__ = ["STATE_VERSION", "Snapshot", "encode_part"]

STATE_VERSION = 1
_SMALL_CELLS = 64
"""Up to so many, a rule is taken in one go."""
_PART_BYTES = 2 << 20
_SLOW_S, _FAST_S = 0.002, 0.0005
_NOTHING = b"{}"


def encode_part(seq: int, moment: tuple[float, float], rules: JsonValue) -> bytes:
    """Return a part of the state, or the whole, with the place in the log it belongs to.

    Args:
        moment: the fold's own time, and how far it is ahead of the log's.
    """
    return orjson.dumps(
        {"v": STATE_VERSION, "seq": seq, "now": moment[0], "shift": moment[1], "rules": rules}
    )


class _Column:
    """One kind of state of a rule with many keys: its cells, part by part, and those that had to be taken before their turn."""

    __slots__ = ("_at", "_cells", "_dump", "_left", "_mask", "_parts", "_saved", "_word", "name")

    def __init__(self, name: str, word: str, kind: Kind) -> None:
        self.name, self._word = name, word
        self._cells, self._dump = kind
        self._parts = self._cells.parts.copy()
        self._mask, self._at = len(self._parts) - 1, 0
        self._left: list[Any] | None = None  # of the part whose turn it is, last first
        self._saved: dict[int, dict[Hashable, bytes]] = {}  # by part

    @property
    def is_done(self) -> bool:
        return self._at >= len(self._parts)

    def before(self, cell: Hashable) -> None:
        """Take a cell that is about to change; nothing happens the second time, or if its part has been taken."""
        i = hash(cell) & self._mask
        if i < self._at:
            return
        saved = self._saved.setdefault(i, {})
        if cell not in saved:
            # Of a key that is new there is nothing to take, and there may be many.
            saved[cell] = compact(orjson.dumps(self._dump((cell,)))) if cell in self._cells else _NOTHING

    def take(self, n: int) -> Iterator[bytes]:
        """Take the next ``n`` cells, or as many as are left of the part whose turn it is."""
        saved = self._saved.get(self._at, {})
        if self._left is None:
            # Whatever is not in the part any more was saved; whatever has come since, too, and there was none of it.
            yield from self._early(saved)
            for cell in saved:
                saved[cell] = _NOTHING  # written, as far as it goes
            self._left = list(self._parts[self._at])
        left = self._left
        cells = left[-n:]
        del left[-n:]
        early = {cell: saved[cell] for cell in cells if cell in saved} if saved else {}
        yield from self._early(early)
        yield self._written(orjson.dumps(self._dump([c for c in cells if c not in early])))
        if not left:
            self._saved.pop(self._at, None)
            self._left, self._at = None, self._at + 1

    def _early(self, saved: Mapping[Hashable, bytes]) -> Iterator[bytes]:
        return (self._written(raw) for raw in saved.values() if raw is not _NOTHING)

    def drop(self) -> None:
        """Keep nothing any more."""
        self._parts, self._saved, self._left, self._at = [], {}, None, self._mask + 1

    def _written(self, raw: bytes) -> bytes:
        return b'{"%s":%s}' % (self._word.encode(), raw)


class Snapshot:
    """What ``Fold.snapshot`` returns: call ``take`` until it says that it is done.

    Args:
        moment: as for ``encode_part``.
        rules: in force, by name. They change meanwhile; whoever changes one says so ``before``.
    """

    def __init__(self, seq: int, moment: tuple[float, float], rules: Mapping[str, InForce]) -> None:
        began = time.perf_counter()
        self.seq, self._moment = seq, moment
        self.is_done = self._is_dropped = False
        self.longest_s = 0.0
        self._small: dict[str, InForce] = {}
        self._columns: list[_Column] = []
        self._by_rule: dict[str, tuple[_Column, ...]] = {}
        self._fragments: list[tuple[str, orjson.Fragment]] = []
        self._bytes = 0
        self._chunk = 256
        for name, rule in rules.items():
            if rule.dumped is not None:
                self._add(name, rule.dumped)
            else:
                self._enlist(name, rule)
        self.took_s = self.longest_s = time.perf_counter() - began

    def _enlist(self, name: str, rule: InForce) -> None:
        form, resolving, cooling = rule.form, rule.resolving, rule.cooling
        kinds = form.kinds() if form is not None else ()
        n = sum(len(kind.cells) for kind in kinds)
        if form is None or n + len(cooling) + len(resolving or ()) <= _SMALL_CELLS:
            self._small[name] = rule
            return
        # Of none there is nothing to take, and every key that comes meanwhile would be noted.
        columns = [_Column(name, "cooling", Kind(cooling, partial(_of, cooling)))] if len(cooling) else []
        if resolving is not None:
            columns += [_Column(name, "open", kind) for kind in resolving.kinds()]
        own = [_Column(name, "form", kind) for kind in kinds]
        self._columns += [*columns, *own]
        if not form.watch(partial(_before, own)):
            columns += own  # its cells are the keys
        self._by_rule[name] = tuple(columns)
        if rule.fired or rule.held:
            self._add(name, orjson.dumps({"budget": [rule.budget_from, rule.fired, rule.held]}))

    def _add(self, name: str, raw: bytes) -> None:
        if raw != b"{}":
            self._fragments.append((name, orjson.Fragment(raw)))
            self._bytes += len(raw)

    def before(self, name: str, key: str) -> None:
        """Hear that what a rule knows of a key is about to change."""
        rule = self._small.pop(name, None)
        if rule is not None:
            self._add(name, rule.dump_raw())
            return
        for column in self._by_rule.get(name, ()):
            column.before(key)

    def take(self, slice_s: float) -> bytes | None:
        """Take for about ``slice_s`` seconds, or put together what has been taken: return the next part, or the last one.

        Raises:
            RuntimeError: it has been dropped, so it would not be whole.
        """
        if self._is_dropped:
            raise RuntimeError("the snapshot has been dropped")
        began = now = time.perf_counter()
        while now - began < slice_s and self._bytes < _PART_BYTES:
            if self._small:
                for name in list(self._small)[:16]:
                    self._add(name, self._small.pop(name).dump_raw())
            elif self._columns:
                column = self._columns[-1]
                for raw in column.take(self._chunk):
                    self._add(column.name, raw)
                if column.is_done:
                    self._columns.pop()
            else:
                break
            before, now = now, time.perf_counter()
            # Cells differ in size: of a metric each may hold a thousand samples.
            if now - before > _SLOW_S:
                self._chunk = max(1, self._chunk // 2)
            elif now - before < _FAST_S:
                self._chunk = min(4096, self._chunk * 2)
        part: bytes | None = None
        is_last = not self._small and not self._columns
        # To put a part together takes milliseconds, too: they are not added to a slice that was long already.
        if (is_last or self._bytes >= _PART_BYTES) and now - began <= slice_s / 2:
            fragments: Any = self._fragments
            part = encode_part(self.seq, self._moment, fragments)
            self._fragments, self._bytes, self.is_done = [], 0, is_last
        took = time.perf_counter() - began
        self.took_s += took
        self.longest_s = max(self.longest_s, took)
        return part

    def drop(self) -> None:
        """Give up: nothing is taken any more."""
        for column in self._columns:
            column.drop()
        self._small, self._columns, self._by_rule, self._fragments = {}, [], {}, []
        self._is_dropped = True


def _of(cells: Keyed[str, Any], keys: Iterable[str]) -> JsonValue:
    found: JsonValue = cells.of(keys)
    return found


def _before(columns: list[_Column], cell: Hashable) -> None:
    for column in columns:
        column.before(cell)
