"""When the host of this machine did not let it run: for latencies, of which a shared host makes the p99.

A witness per processor, of the highest priority, is to be woken every 2 ms. When it is late, nobody in this machine kept it
from running, but the host. What a program does shows in samples that begin while the host keeps its hands off. Whether it
does is looked at for a time of fixed length from a little before each sample, however long the sample took, so that slow
samples are not left out more often than quick ones; what the host does after that time counts against us.

Needs the right to real-time priority (root, or ``CAP_SYS_NICE``); without it nothing is known, and nothing left out.

To keep the processors awake as well, by a process on each that does nothing but make way, was tried: it makes the host wake
an idle machine sooner, and a busy one waits longer, since what the host grants it has been used up.

Run by ``watching`` as ``python -m benchmarks.witness CPU``, until it is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["ENOUGH", "Witnesses", "watching"]

ENOUGH = 300
"""Samples that the host left alone: of fewer there is no p99."""
_EACH_S = 0.002
_LATE_S = 0.001
_BEFORE_S, _AFTER_S = 0.005, 0.045
"""A sample that takes longer than this from its begin is slow whatever the host did then."""


def watch() -> None:
    """Write a line (begin and end, in seconds since 1970) for each time this processor did not run us when it should."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    print("watching", flush=True)
    due = time.time()
    while True:
        due += _EACH_S
        if (left := due - time.time()) > 0:
            time.sleep(left)
        if (now := time.time()) - due > _LATE_S:
            sys.stderr.write(f"{due} {now}\n")
            sys.stderr.flush()
            due = now


class Witnesses:
    """What the witnesses saw until now."""

    def __init__(self, notes: Sequence[Path]) -> None:
        self._notes = notes

    def has_enough(self, begins: Sequence[float]) -> bool:
        """Return whether more samples would tell nothing more: enough were left alone, or nobody knows which."""
        return not self._notes or sum(self.undisturbed(begins)) >= ENOUGH

    def alone(self, begins: Sequence[float], values: Sequence[float]) -> list[float] | None:
        """Return the samples that the host left alone; None if too few are known to be."""
        if not self._notes:
            return None
        left = [v for v, is_alone in zip(values, self.undisturbed(begins), strict=True) if is_alone]
        return left if len(left) >= ENOUGH else None

    def undisturbed(self, begins: Sequence[float]) -> list[bool]:
        """Return of each sample, by when it began (seconds since 1970), whether the host let all processors run then."""
        seen = [
            line.split()
            for path in self._notes
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        spans = sorted((float(begin), float(end)) for begin, end in seen)
        ends, latest = [], 0.0
        for _, end in spans:
            latest = max(latest, end)
            ends.append(latest)
        out = []
        for began in begins:
            # The first that ended after the sample's time began; spans are in the order of their begins.
            at = bisect_left(ends, began - _BEFORE_S)
            out.append(at == len(spans) or spans[at][0] > began + _AFTER_S)
        return out


@contextmanager
def watching() -> Iterator[Witnesses]:
    """Have every processor watched while the block lasts."""
    with TemporaryDirectory(prefix="hark-bench-") as room, ExitStack() as stack:
        cpus, notes = sorted(os.sched_getaffinity(0)), []
        for cpu in cpus:
            note = Path(room) / str(cpu)
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.witness", str(cpu)],
                stdout=subprocess.PIPE, stderr=stack.enter_context(note.open("w")), text=True,
            )  # fmt: skip
            stack.callback(_end, child)
            assert child.stdout is not None
            if child.stdout.readline():
                notes.append(note)
        yield Witnesses(notes if len(notes) == len(cpus) else [])


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    watch()
