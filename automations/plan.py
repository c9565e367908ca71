"""Plans: for one concrete event type, a generated function that reads each path once and probes the tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from .index import Row, T, Table
from .path import MISSING, Path, step

__all__ = ["compile_plan"]


class _Names:
    """Gives generated code its variables."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"MISSING": MISSING, "step": step}
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
    for table in tables:
        for part in table.signature:
            for n in range(1, len(part.path) + 1):
                way = part.path[:n]
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
    probe = [
        "if c is not None:",
        " if c.__class__ is tuple: hits += c",
        " elif c.__class__ is list:",
        "  for check, handle in c:",
        "   if check(e): hits.append(handle)",
        " else: c.collect(e, hits)",
    ]
    for table in tables:
        if not table.signature:
            lines.append(f"  c = {names.bind(table.live)}.get(())")
            lines += ["  " + line for line in probe]
            continue
        reads = [variables[part.path] for part in table.signature]
        if len(reads) == 1 and table.signature[0].kind == "eq":
            thorough = f"{names.bind(table.collect_array)}({reads[0]}, e, hits)"
        else:
            thorough = f"{names.bind(table.collect)}(e, hits)"
        arrays = " or ".join(f"{v}.__class__ is list" for v in dict.fromkeys(reads))
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
        lines.append(f"  if {arrays}: {thorough}")
        lines.append("  else:")
        lines.append(f"   c = {names.bind(table.live)}.get({key})")
        lines += ["   " + line for line in probe]
    # An object where a text was looked for cannot be hashed: rare, so nothing is spent on it above.
    lines += [
        " except TypeError:",
        "  hits = []",
        "  for collect in thorough: collect(e, hits)",
        " return hits",
    ]
    names.values["thorough"] = tuple(table.collect for table in tables)
    scope = dict(names.values)
    exec(compile("\n".join(lines), "<matching plan>", "exec"), scope)  # noqa: S102  # see the docstring
    plan: Callable[[Row], list[T]] = scope["plan"]
    return plan
