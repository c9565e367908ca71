"""Outboxes that did the actions of this home before us, in processes that are dead: what they had claimed need not wait.

A claim whose owner does not answer holds for a while, since silence may also be that of one who lives and is cut off. Who holds
the lock of a home knows more: the process that held it before is gone, with all its threads, and so is the broker it had.
So the outboxes of each holder write their names into a file of the home, and the next holder reads them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from anyio import to_thread

__all__ = ["Forebears"]

log = logging.getLogger(__name__)

FILE = "outboxes.txt"
_MOST = 100
"""Names that are kept: a home whose service is killed again and again before it has done what the one before had begun."""


class Forebears:
    """The names of a home. Like a set of those that are dead; empty until we have said who we are.

    Args:
        home: whose lock this process holds for as long as any of its outboxes lives; None: it holds none, and nothing is known.
    """

    def __init__(self, home: Path | None = None) -> None:
        self._path = home / FILE if home is not None else None
        self._dead: dict[str, None] | None = None
        self._own: list[str] = []

    def __contains__(self, name: object) -> bool:
        return self._dead is not None and name in self._dead

    def __bool__(self) -> bool:
        return bool(self._dead)

    async def enter(self, name: str) -> None:
        """Note that an outbox of ours begins, before it claims anything; learn who is dead, the first time."""
        if self._path is None:
            return
        self._own.append(name)
        try:
            await to_thread.run_sync(self._note, self._path)
        except OSError as exc:
            # Whoever comes after us waits for our silence, then, as for that of anybody else.
            log.warning("outbox.not_noted", extra={"file": str(self._path), "error": str(exc)})

    def _note(self, path: Path) -> None:
        if self._dead is None:
            self._dead = dict.fromkeys(list(_names(path))[-_MOST:])
        # Whole or not at all: killed in the middle, nobody must take half a name for one.
        new = path.with_suffix(".new")
        new.write_text("".join(f"{name}\n" for name in (*self._dead, *self._own[-_MOST:])))
        os.replace(new, path)


def _names(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    yield from filter(None, text.splitlines())
