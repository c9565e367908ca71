"""Who goes first where there are fewer processors than work: the process that keeps up the read model is asked to wait.

``nice`` alone does not make it wait: a scheduler that hands out slices of some milliseconds lets it finish its own before a
process that has just got something to do, and event -> action is several such moments. Linux has a class of processes
that give way at once (``SCHED_IDLE``, sched(7)). Behind others that never rest they hardly run at all, so it is left when
that is seen; a process cannot leave it by itself without privileges.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Processor", "give_way", "is_starving"]

_NICE = 10


def give_way(*, at_once: bool) -> None:
    """Let others go first, from here on: this thread, and those it starts. ``at_once``: even in the middle of a slice."""
    with suppress(OSError):
        if sys.platform == "linux" and at_once:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.nice(_NICE)


@dataclass(frozen=True, slots=True)
class Processor:
    """What a process has had of the processors so far, in seconds, over its threads: ran, and was kept waiting for one."""

    ran_s: float = 0.0
    waited_s: float = 0.0

    @classmethod
    def of(cls, pid: int) -> Processor | None:
        """Return the values of this moment; None where the system does not tell, or the process is gone."""
        ran = waited = 0
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(FileNotFoundError):  # a thread that has just ended
                    words = (task / "schedstat").read_text().split()
                    ran, waited = ran + int(words[0]), waited + int(words[1])
        except (OSError, ValueError, IndexError):
            return None
        return cls(ran / 1e9, waited / 1e9)


def is_starving(before: Processor, now: Processor, *, took_s: float) -> bool:
    """Return whether it waited for most of a stretch of ``took_s``, and hardly ran."""
    ran_s, waited_s = now.ran_s - before.ran_s, now.waited_s - before.waited_s
    return waited_s > took_s / 2 and ran_s * 4 < waited_s
