"""Logs of the service: one line per outcome, to stderr; text on a terminal, JSON where told to."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import TextIO

__all__ = ["BehindHandler", "LineFormatter", "hide_in_logs", "setup_logging"]

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {
    "message", "asctime", "taskName", "color_message", "hark_session",
}  # fmt: skip


_ODD = re.compile(r'[\s"]')
"""What a value is put in quotes for."""

_hide: list[Callable[[str], str]] = []
"""What takes secrets out of a line. A traceback of somebody else's library shows whatever its arguments were."""


def hide_in_logs(redact: Callable[[str], str]) -> Callable[[], None]:
    """Pass every line of this process through ``redact`` before it is written; the answer takes that back."""
    _hide.append(redact)
    return lambda: _hide.remove(redact)


class LineFormatter(logging.Formatter):
    """``2026-01-01T00:00:00.000Z INFO  bus  broker.started url=nats://… port=4222``, facts as fields at the end."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:23] + "Z"
        facts = " ".join(
            [
                f"{key}={_shown(value)}"
                for key, value in record.__dict__.items()
                if key not in _PLAIN and value is not None
            ]
        )
        text = f"{at} {record.levelname:<7} {record.name.removeprefix('hark.')}  {record.getMessage()} {facts}".rstrip()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        for redact in _hide:
            text = redact(text)
        return text


_MOST_WAITING = 20_000
"""Lines in memory while nobody takes them."""
_FLUSH_S = 2.0
_GATHER_S = 0.02
"""For how long lines come together: woken for each of them, the writer takes Python's lock from who logs, in the middle of
what is to be done at once."""


class BehindHandler(logging.Handler):
    """Writes lines from a thread of its own, as many at once as there are.

    A disk that syncs, a pipe whose reader is slow, a terminal that was stopped with Ctrl-S: none of them holds up who
    logs. Beyond 20 000 waiting lines new ones are dropped, and their number is told once somebody reads again.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._dropped = stream, 0
        self._lines: SimpleQueue[str | threading.Event | None] = SimpleQueue()
        self._hurry = threading.Event()
        self._writer = threading.Thread(target=self._write, name="hark log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lines.qsize() >= _MOST_WAITING:
                self._dropped += 1
                return
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._lines.put(f"({dropped} lines of the log were dropped: nobody took them)\n")
            self._lines.put(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all there is has been written, but not for ever on a reader that does not read."""
        if self._writer.is_alive():
            written = threading.Event()
            self._lines.put(written)
            self._hurry.set()
            written.wait(_FLUSH_S)
            self._hurry.clear()

    def close(self) -> None:
        """Write what there is and end; lines that come later are nobody's."""
        self._lines.put(None)
        self._hurry.set()
        self._writer.join(_FLUSH_S)
        super().close()

    def _write(self) -> None:
        while True:
            items = [self._lines.get()]
            while not self._lines.empty():
                items.append(self._lines.get())
            lines = [item for item in items if isinstance(item, str)]
            try:
                self._stream.write("".join(lines))
                self._stream.flush()
            except (OSError, ValueError):
                # The reader has gone, or takes nothing just now: told with the next line that can be written.
                self._dropped += len(lines)
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()
            if None in items:
                return
            self._hurry.wait(_GATHER_S)


def _shown(value: object) -> str:
    text = str(value)
    if not text or _ODD.search(text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return text


def setup_logging(*, verbose: bool = False) -> None:
    """Send the logs of this process to stderr."""
    # A line costs half as much without what no line shows: `logging` itself names these switches.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = BehindHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("hark").setLevel(logging.DEBUG if verbose else logging.INFO)
    # Every request in the log would drown the outcomes; /metrics counts them.
    logging.getLogger("uvicorn.access").disabled = True
    for name in ("httpx", "httpcore"):
        # Also where somebody lowers the root: at INFO they tell whole addresses, which may hold tokens.
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # errors are logged by our own handler
