"""Parts of Hark in processes of their own, to be killed: born within milliseconds, each as often as wanted.

Run as ``nursery.py PROGRAM HOME`` it has loaded everything and forks a child for every line it reads, the name of a part;
the child calls ``run(part, home)`` of the program. A second for each to be born would leave a thousand kills no time.
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

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

    @contextmanager
    def frozen(self, part: str) -> Iterator[None]:
        """Stop a process where it is while inside; then it goes on as if nothing had been."""
        pid = self._running[part]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

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
def nursery(home: Path, program: str) -> Iterator[Children]:
    """Give what starts children of a program (its file) on the broker of ``home``; none outlives it."""
    log = home / "children.log"
    with (
        log.open("a") as out,
        subprocess.Popen(
            [sys.executable, __file__, program, str(home)],
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


def raise_children(program: str, home: str) -> None:
    """Fork a child for every line, until there are no more lines. What ends is nobody's business here."""
    import uvloop

    spec = importlib.util.spec_from_file_location("program", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    uvloop.new_event_loop().close()  # what the first loop loads, all of them have
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            module.run(line.strip(), home)
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    raise_children(sys.argv[1], sys.argv[2])
