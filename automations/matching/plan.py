"""Plans: for one concrete event type, a generated function that reads each path once and probes the tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, cast

from .index import DIFFERS, Bucket, Limits, Many, Row, T, Table
from .path import MISSING, Path, step

__all__ = ["compile_plan"]


_SCOPE: dict[str, Any] = {
    "MISSING": MISSING, "step": step, "Limits": Limits, "Many": Many, "ODD": frozenset((list, Many, Bucket)),
    "dict": dict, "float": float, "int": int, "list": list, "str": str, "tuple": tuple, "TypeError": TypeError,
}  # fmt: skip
"""What all plans name alike. They share it, because the interpreter notes in the code where it found such a name last, and
plans share their code."""


class _Names:
    """Gives generated code its variables: parameters with a default, so that plans that look alike share their code.

    Plans of ten thousand rules do look alike, type by type, and what the processor has learnt of one serves the next.
    """

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._rare: list[Any] = []

    def bind(self, value: Any) -> str:
        """Return the name of a value."""
        self._values.append(value)
        return f"k{len(self._values) - 1}"

    def put_by(self, value: Any) -> str:
        """Return an expression for a value that few events need: every parameter costs each call."""
        self._rare.append(value)
        return f"rare[{len(self._rare) - 1}]"

    @property
    def parameters(self) -> str:
        return ", ".join([*(f"k{n}" for n in range(len(self._values))), "rare"])

    @property
    def defaults(self) -> tuple[Any, ...]:
        return (*self._values, tuple(self._rare))


class _Reads:
    """The paths a plan reads: each once, into a variable of its own, together with the ways that lead to it."""

    def __init__(self, names: _Names) -> None:
        self.variables: dict[Path, str] = {(): "e"}
        self._names = names
        self._inner: dict[Path, list[Path]] = {}

    def add(self, path: Path) -> None:
        for n in range(1, len(path) + 1):
            way = path[:n]
            if way not in self.variables:
                self.variables[way] = f"v{len(self.variables)}"
                self._inner.setdefault(way[:-1], []).append(way)

    def lines(self) -> list[str]:
        """Return the code: what lies in one object is read together."""
        lines: list[str] = []
        for outer, variable in self.variables.items():
            inner = [(self.variables[way], self._names.bind(way[-1])) for way in self._inner.get(outer, ())]
            if not outer:
                lines += [f"  {v} = {variable}.get({key}, MISSING)" for v, key in inner]
            elif inner:
                lines.append(f"  if {variable}.__class__ is dict:")
                lines += [f"   {v} = {variable}.get({key}, MISSING)" for v, key in inner]
                lines.append("  else:")
                lines += [f"   {v} = step({variable}, {key})" for v, key in inner]
        return lines


def compile_plan(tables: list[Table[T]]) -> Callable[[Row], list[T]]:
    """Return a function that reads every path of ``tables`` once and collects what they hold for an event.

    The code is generated, from names of our own making alone: paths and tables reach it as bound values. Which rule is
    hit is what the processor cannot foresee; so the way of a hit is short, and what can be asked before is asked before.
    """
    names = _Names()
    reads = _Reads(names)
    open_buckets = [table.buckets[()] for table in tables if not table.signature]
    for bucket in open_buckets:
        if bucket.dirty:
            bucket.settle()
    for table in tables:
        for part in table.signature:
            reads.add(part.path)
        if table.usual is not None:
            reads.add(table.usual[0])
    for bucket in open_buckets:
        for group in bucket.ranges:
            reads.add(group.path)
    variables = reads.variables
    lines = [" hits = []", " try:", *reads.lines()]
    for bucket in open_buckets:
        lines += _open_bucket(bucket, variables, names)
    for table in tables:
        if table.signature:
            lines += _look_up(table, variables, names)
    # An object where a text was looked for cannot be hashed: rare, so nothing is spent on it above.
    lines += [
        " except TypeError:",
        "  hits = []",
        f"  for collect in {names.put_by(tuple(table.collect for table in tables))}: collect(e, hits)",
        " return hits",
    ]
    code = _code_of("\n".join([f"def plan(e, {names.parameters}):", *lines]))
    return cast("Callable[[Row], list[T]]", FunctionType(code, _SCOPE, None, names.defaults))


@lru_cache(maxsize=256)
def _code_of(source: str) -> CodeType:
    """Return the code of a plan's function: types that are alike, and most changes of rules, have the same text."""
    code: CodeType = compile(source, "<matching plan>", "exec").co_consts[0]
    return code


def _look_up(table: Table[T], variables: dict[Path, str], names: _Names) -> list[str]:
    """Return the code that looks an event up in one table."""
    reads = [variables[part.path] for part in table.signature]
    get = names.bind(table.live.get)
    keys = []
    for part, v in zip(table.signature, reads, strict=True):
        if part.kind == "eq":
            keys.append(v)
        else:
            cut = {"fold": ".casefold()", "prefix": f"[:{part.size}]", "suffix": f"[-{part.size}:]"}[
                part.kind
            ]
            keys.append(f"({v}{cut} if {v}.__class__ is str else MISSING)")
    key = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
    if len(reads) == 1 and table.signature[0].kind == "eq":
        (v,) = reads
        # Most arrays hold nothing that anybody looks for: that is seen without leaving the plan.
        lines = [
            f"  if {v}.__class__ is list:",
            f"   for x in {v}:",
            f"    if x.__class__ is not str or {get}(x) is not None:",
            f"     {names.put_by(table.collect_array)}({v}, e, hits)",
            "     break",
        ]
    else:
        lines = _arrays(reads, get, names.put_by(table.collect))
    return [*lines, "  else:", *("   " + line for line in _probe(table, get, key, variables, names))]


def _arrays(reads: list[str], get: str, collect: str) -> list[str]:
    """Return the code for events with an array where something is looked up, up to its ``else``."""
    if len(reads) == 1:
        return [f"  if {reads[0]}.__class__ is list: {collect}(e, hits)"]
    lines: list[str] = []
    for v in reads:
        others = " or ".join(f"{other}.__class__ is list" for other in reads if other != v)
        key = ", ".join("x" if other == v else other for other in reads)
        # As above: of most arrays no element is looked for.
        lines += [
            f"  {'elif' if lines else 'if'} {v}.__class__ is list:",
            f"   if {others}: {collect}(e, hits)",
            "   else:",
            f"    for x in {v}:",
            f"     if x.__class__ is not str or {get}(({key})) is not None:",
            f"      {collect}(e, hits)",
            "      break",
        ]
    return lines


def _open_bucket(bucket: Bucket[T], variables: dict[Path, str], names: _Names) -> list[str]:
    """Return the code for patterns that nothing is looked up for: written out, since a change makes a new plan."""
    lines: list[str] = []
    if bucket.plain:
        lines.append(f"  hits += {names.bind(bucket.plain)}")
    if bucket.checked:
        lines += [
            f"  for check, handle in {names.bind(bucket.checked)}:",
            "   if check(e): hits.append(handle)",
        ]
    for group in bucket.ranges:
        v = variables[group.path]
        edge = names.bind(group.edge)
        # Whoever does not pass the easiest limit passes none.
        lines += [
            f"  if {v}.__class__ is float or {v}.__class__ is int:",
            f"   if {v} {_SIGNS[group.op]} {edge}: {names.put_by(group.collect)}({v}, e, hits)",
            f"  elif {v}.__class__ is list: {names.put_by(group.collect)}({v}, e, hits)",
        ]
    return lines


def _probe(table: Table[T], get: str, key: str, variables: dict[Path, str], names: _Names) -> list[str]:
    """Return the code that collects what is found under a key."""
    found = [f"c = {get}({key})", "if c is not None:"]
    others = [
        "if c.__class__ in ODD:",
        " if c.__class__ is Many: hits += c",
        " elif c.__class__ is list:",
        "  for check, handle in c:",
        "   if check(e): hits.append(handle)",
        " else: c.collect(e, hits)",
        "else: hits.append(c)",
    ]
    if table.usual is None:
        return [*found, *(" " + line for line in others)]
    path, op = table.usual
    v = variables[path]
    fits = f"{v}.__class__ is str" if op == DIFFERS else f"{v}.__class__ is float or {v}.__class__ is int"
    compared = [
        "if c.__class__ is tuple:",
        " limit, handle = c",
        f" if {v} {_SIGNS[op]} limit: hits.append(handle)",
        "elif c.__class__ is Limits:",
        " for limit, handle in c:",
        f"  if {v} {_SIGNS[op]} limit: hits.append(handle)",
        "el" + others[0],
        *others[1:],
    ]
    return [
        f"if {fits}:",
        *(" " + line for line in [*found, *(" " + line for line in compared)]),
        "else:",
        f" c = {get}({key})",
        f" if c is not None: {names.put_by(table.collect_unusual)}({key}, {v}, e, hits)",
    ]


_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", DIFFERS: "!="}
