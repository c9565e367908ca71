"""Named SQL: reads the ``.sql`` files of this room into statements one can ask for by name; and running several at once."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Concatenate, ParamSpec, TypeVar

import aiosqlite

__all__ = ["in_its_thread", "of_many", "schema", "statements"]

P = ParamSpec("P")
T = TypeVar("T")

_HEAD = re.compile(r"^-- name: (?P<name>[a-z][a-z0-9_.]*)\n-- for: (?P<use>.+)\n", re.MULTILINE)
_VALUES = re.compile(r"VALUES\s*(?P<row>\((?:\?,\s*)*\?\))")


@lru_cache(maxsize=8)
def statements(file: str) -> Mapping[str, str]:
    """Return name -> SQL of ``file``, such as ``write.sql``; fragments begin with AND or a comma, and end with ``;``.

    Each statement stands under two comment lines, ``-- name: …`` and ``-- for: …``.

    Raises:
        ValueError: a name stands there twice, or a statement does not end with a semicolon.
    """
    text = files(__package__).joinpath(file).read_text("utf-8")
    heads = list(_HEAD.finditer(text))
    found: dict[str, str] = {}
    for i, head in enumerate(heads):
        end = heads[i + 1].start() if i + 1 < len(heads) else len(text)
        body = "\n".join(
            line for line in text[head.end() : end].splitlines() if not line.lstrip().startswith("--")
        ).strip()
        if head["name"] in found:
            raise ValueError(f"{file} has two statements named {head['name']!r}")
        if not body.endswith(";"):
            raise ValueError(f"{file}: {head['name']!r} does not end with a semicolon")
        found[head["name"]] = body[:-1]
    return found


@lru_cache(maxsize=256)
def of_many(insert: str, rows: int) -> str:
    """Return an ``INSERT … VALUES (?, …) …`` that takes ``rows`` rows at once, their values one after the other.

    Of one statement per row, each step gives up Python's lock and has to win it back, against a loop that is busy
    reading the log; of one for many, there is one such step for all of them.
    """
    found = _VALUES.search(insert)
    if found is None:
        raise ValueError(f"no VALUES (?, …) in {insert!r}")
    return f"{insert[: found.start()]}VALUES {', '.join([found['row']] * rows)}{insert[found.end() :]}"


async def in_its_thread(
    db: aiosqlite.Connection,
    act: Callable[Concatenate[sqlite3.Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Call ``act`` with the bare connection, in the thread that ``db`` lives in, and return what it returns.

    What aiosqlite does with each of its own calls; it offers no public way to do the same with several statements.
    """
    done: T = await db._execute(act, db._conn, *args, **kwargs)  # type: ignore[no-untyped-call]
    return done


@lru_cache(maxsize=1)
def schema() -> tuple[str, ...]:
    """Return the statements that make an empty read model, in order."""
    text = files(__package__).joinpath("schema.sql").read_text("utf-8")
    bare = "\n".join(line.partition("--")[0] for line in text.splitlines())
    return tuple(part.strip() for part in bare.split(";") if part.strip())
