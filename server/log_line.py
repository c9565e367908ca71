"""Logs of the service: one line per outcome, to stderr; text on a terminal, JSON where told to."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["LineFormatter", "hide_in_logs", "setup_logging"]

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


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
    handler = logging.StreamHandler(sys.stderr)
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
