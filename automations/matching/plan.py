"""Plans: for one concrete event type, a generated function that reads each path once and probes the tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any

from .index import DIFFERS, Bucket, Limits, Row, T, Table
from .path import MISSING, Path, step

__all__ = ["compile_plan"]


class _Names:
    """Gives generated code its variables."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"MISSING": MISSING, "step": step, "Limits": Limits}
        self._n = itertools.count()

    def bind(self, value: Any) -> str:
        name = f"k{next(self._n)}"
        self.values[name] = value
        return name


def compile_plan(tables: list[Table[T]]) -> Callable[[Row], list[T]]:
    """Return a function that reads every path of ``tables`` once and collects what they hold for an event.

    The code is generated, from names of our own making alone: paths and tables reach it as bound values.
    """
    names = _Names()
    lines = ["def plan(e):", " hits = []", " try:"]
    variables: dict[Path, str] = {(): "e"}
    open_buckets = [table.buckets[()] for table in tables if not table.signature]
    for bucket in open_buckets:
        if bucket.dirty:
            bucket.settle()
    for table in tables:
        for part in table.signature:
            _read(part.path, variables, names, lines)
        if table.usual is not None:
            _read(table.usual[0], variables, names, lines)
    for bucket in open_buckets:
        for group in bucket.ranges:
            _read(group.path, variables, names, lines)
    for bucket in open_buckets:
        lines += _open_bucket(bucket, variables, names)
    for table in tables:
        if not table.signature:
            continue
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
            lines += [
                f"  if {v}.__class__ is list:",
                f"   for x in {v}:",
                f"    if x.__class__ is not str or {get}(x) is not None:",
                f"     {names.bind(table.collect_array)}({v}, e, hits)",
                "     break",
            ]
        else:
            lines += _arrays(reads, get, names.bind(table.collect))
        lines.append("  else:")
        lines.append(f"   c = {get}({key})")
        lines += ["   " + line for line in _probe(table, key, variables, names)]
    # An object where a text was looked for cannot be hashed: rare, so nothing is spent on it above.
    lines += [
        " except TypeError:",
        "  hits = []",
        "  for collect in thorough: collect(e, hits)",
        " return hits",
    ]
    names.values["thorough"] = tuple(table.collect for table in tables)
    scope = dict(names.values)
    exec(_code_of("\n".join(lines)), scope)  # noqa: S102  # see the docstring
    plan: Callable[[Row], list[T]] = scope["plan"]
    return plan


@lru_cache(maxsize=256)
def _code_of(source: str) -> CodeType:
    """Return the code of a plan. Types that are alike share it, and most changes of rules change no plan's text."""
    return compile(source, "<matching plan>", "exec")


def _read(path: Path, variables: dict[Path, str], names: _Names, lines: list[str]) -> None:
    """Have a path read into a variable, once, together with the ways that lead to it."""
    for n in range(1, len(path) + 1):
        way = path[:n]
        if way in variables:
            continue
        parent = variables[way[:-1]]
        variables[way] = f"v{len(variables)}"
        key = names.bind(way[-1])
        if n == 1:
            lines.append(f"  {variables[way]} = e.get({key}, MISSING)")
        else:
            lines.append(
                f"  {variables[way]} = {parent}.get({key}, MISSING) if {parent}.__class__ is dict else step({parent}, {key})"
            )


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
            f"   if {v} {_SIGNS[group.op]} {edge}: {names.bind(group.collect)}({v}, e, hits)",
            f"  elif {v}.__class__ is list: {names.bind(group.collect)}({v}, e, hits)",
        ]
    return lines


def _probe(table: Table[T], key: str, variables: dict[Path, str], names: _Names) -> list[str]:
    """Return the code that collects what was found as ``c`` under a key."""
    lines = [
        "if c is not None:",
        " if c.__class__ is tuple: hits += c",
    ]
    if table.usual is not None:
        path, op = table.usual
        v = variables[path]
        kind = f"{v}.__class__ is str" if op == DIFFERS else f"{v}.__class__ is float or {v}.__class__ is int"
        others = f"{v} is not MISSING" if op == DIFFERS else f"{v}.__class__ is list"
        lines += [
            " elif c.__class__ is Limits:",
            f"  if {kind}:",
            "   for limit, handle in c:",
            f"    if {v} {_SIGNS[op]} limit: hits.append(handle)",
            f"  elif {others}: {names.bind(table.buckets)}[{key}].collect(e, hits)",
        ]
    return [
        *lines,
        " elif c.__class__ is list:",
        "  for check, handle in c:",
        "   if check(e): hits.append(handle)",
        " else: c.collect(e, hits)",
    ]


_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", DIFFERS: "!="}
