"""Rule engines and outboxes in processes of their own, to be killed: born within milliseconds, each as often as wanted."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from . import chaos_child

__all__ = ["Children", "nursery"]


class Children:
    """Processes that are killed and begun again, one of each part."""

    def __init__(self, nursery: subprocess.Popen[str], log: Path) -> None:
        self._nursery, self._log = nursery, log
        self._running: dict[str, int] = {}

    def start(self, part: str) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(f"{part}\n")
        self._nursery.stdin.flush()
        self._running[part] = int(self._nursery.stdout.readline())

    def kill(self, part: str) -> None:
        """Kill a process and wait until it is gone."""
        pid = self._running.pop(part)
        try:
            gone = os.pidfd_open(pid)
        except ProcessLookupError:
            raise AssertionError(f"{part} ended before it was killed:\n{self.told}") from None
        try:
            os.kill(pid, signal.SIGKILL)
            select.select([gone], [], [])
        finally:
            os.close(gone)

    @property
    def told(self) -> str:
        """What they have last written."""
        return self._log.read_text()[-4000:]

    async def death(self, part: str) -> None:
        """Return once a process has ended by itself."""
        pid = self._running[part]
        try:
            gone = os.pidfd_open(pid)
        except ProcessLookupError:
            del self._running[part]
            return
        try:
            await anyio.wait_readable(gone)
        finally:
            os.close(gone)
        del self._running[part]

    def kill_all(self) -> None:
        for part in list(self._running):
            self.kill(part)


@contextmanager
def nursery(home: Path) -> Iterator[Children]:
    """Give what starts children on the broker of ``home``; none outlives it."""
    log = home / "children.log"
    with (
        log.open("a") as out,
        subprocess.Popen(
            [sys.executable, chaos_child.__file__, "nursery", str(home)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True, cwd=home,
        ) as parent,
    ):  # fmt: skip
        made = Children(parent, log)
        try:
            yield made
        finally:
            made.kill_all()
            assert parent.stdin is not None
            parent.stdin.close()
