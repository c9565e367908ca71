"""The process that keeps up the read model while there is much to fold: ``python -m hark.storage.projector_child``.

Started by ``apart.py``, which writes a ``Charge`` to its input. It connects, says ``ready``, and folds once it is told
``go``; whatever it is told later means that somebody could not read. Until its input is closed it says how far it is and
what it has to log, a JSON object a line. It lives as long as the other end of its input, so a service killed with -9
leaves nobody folding.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import sys
from typing import Any

import anyio
import orjson

from ..bus import Bus
from .charge import GO, Charge
from .precedence import give_way
from .progress import Progress
from .projector import Projector

__all__ = ["main"]

_GATHER_S = 0.2
"""A transaction for each burst of events would cost more than its rows. What happens can be read so much later."""
_LULL_S = 0.05
_PLAIN = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime", "taskName"}


class _Told(logging.Handler):
    """Hands log records to the service, which has one form for all of them."""

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, Any] = {k: v for k, v in record.__dict__.items() if k not in _PLAIN}
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        _tell({"log": text, "logger": record.name, "level": record.levelno, "facts": facts})


def main() -> None:
    """Serve until the input ends."""
    # The service decides when this stops; a Ctrl-C at the terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    charge: Charge = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the process that started us
    logging.basicConfig(level=charge.level, handlers=[_Told()])
    try:
        import uvloop  # noqa: F401

        options: dict[str, Any] = {"use_uvloop": True}
    except ImportError:
        options = {}
    try:
        anyio.run(_serve, charge, backend_options=options)
    except* BrokenPipeError:  # nobody is there any more to tell
        pass


async def _serve(charge: Charge) -> None:
    bus = Bus(
        charge.address, charge.bus, name="hark projector", manage=False, reads_apart=True, lull_s=_LULL_S
    )  # fmt: skip
    async with bus:
        _tell({"ready": os.getpid()})
        word, _, whole_from = (
            (await _heard()).partition(b"\n")[0].partition(b" ")
        )  # LOOK may have come with it
        if word != GO:
            return
        gc.collect()
        gc.freeze()
        # Not before: somebody waits for us to be ready.
        give_way(at_once=charge.gives_way_at_once)
        progress = Progress()
        progress.begin(int(whole_from))  # what the service answered before, it goes on answering
        async with anyio.create_task_group() as tg:
            tg.start_soon(_report, progress)
            async with Projector(bus, charge.path, charge.storage, progress=progress, gather_s=_GATHER_S):
                while await _heard():
                    progress.doubt()
            tg.cancel_scope.cancel("told to stop")


async def _report(progress: Progress) -> None:
    while True:
        await progress.moved()
        _tell({"seq": progress.seq, "behind": progress.behind, "whole_from": progress.whole_from})


async def _heard() -> bytes:
    await anyio.wait_readable(sys.stdin.fileno())
    return os.read(sys.stdin.fileno(), 4096)


def _tell(what: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), orjson.dumps(what, default=str) + b"\n")


if __name__ == "__main__":
    main()
