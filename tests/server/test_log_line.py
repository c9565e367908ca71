"""What the service writes to its log."""

from __future__ import annotations

import io
import logging
import sys
import threading

from hark.bus.secret import Redactor
from hark.server.log_line import BehindHandler, LineFormatter, hide_in_logs


def _line(message: str, *, error: Exception | None = None, **facts: object) -> str:
    record = logging.LogRecord("hark.outbox", logging.ERROR, __file__, 1, message, None, None)
    vars(record).update(facts)
    if error is not None:
        try:
            raise error
        except Exception:
            record.exc_info = sys.exc_info()
    return LineFormatter().format(record)


def test_facts_stand_at_the_end_of_one_line() -> None:
    """A value with spaces or line ends is quoted, so that one outcome stays one line."""
    assert _line("action.failed", error_text="no\nroute", took_ms=3).endswith(
        'ERROR   outbox  action.failed error_text="no\\nroute" took_ms=3'
    )


def test_a_traceback_shows_no_secret() -> None:
    """Foreign libraries put what they were given into their errors; a value that was handed out is masked there too."""
    redactor = Redactor(["xoxb-1234567890"])
    take_back = hide_in_logs(redactor.redact)
    try:
        text = _line(
            "action_broke", error=RuntimeError("refused: token xoxb-1234567890"), token="xoxb-1234567890"
        )
    finally:
        take_back()
    assert "xoxb-1234567890" not in text
    assert text.count("***") == 2
    assert "xoxb" in _line("x", token="xoxb-1234567890")


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord("hark.x", logging.INFO, __file__, 1, message, None, None)


def test_lines_are_written_in_order_and_all_of_them() -> None:
    """Closed means written."""
    stream = io.StringIO()
    handler = BehindHandler(stream)
    for n in range(500):
        handler.emit(_record(f"line {n}"))
    handler.close()
    assert [line.rpartition("  ")[2].strip() for line in stream.getvalue().splitlines()] == [
        f"line {n}" for n in range(500)
    ]


class Stopped(io.StringIO):
    """A terminal somebody pressed Ctrl-S at, until ``go``."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.go.wait()
        return super().write(text)


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    """Lines wait in memory, up to a limit; what was dropped beyond it is told when somebody reads again."""
    stream = Stopped()
    handler = BehindHandler(stream)
    for n in range(25_000):
        handler.emit(_record(f"line {n}"))
    stream.go.set()
    handler.flush()
    handler.emit(_record("again"))
    handler.close()
    lines = stream.getvalue().splitlines()
    assert lines[-1].endswith("again")
    kept, told = lines[:-2], lines[-2]
    assert 20_000 <= len(kept) < 25_000
    assert told == f"({25_000 - len(kept)} lines of the log were dropped: nobody took them)"


def test_a_reader_that_has_gone_is_no_error() -> None:
    """There is nowhere to say so."""
    stream = io.StringIO()
    handler = BehindHandler(stream)
    stream.close()
    handler.emit(_record("x"))
    handler.flush()
    handler.close()


class Full(io.StringIO):
    """A pipe that does not block and is full, once."""

    refused = False

    def write(self, text: str) -> int:
        if not self.refused:
            self.refused = True
            raise BlockingIOError
        return super().write(text)


def test_lines_that_could_not_be_written_are_counted() -> None:
    """They are not lost in silence."""
    stream = Full()
    handler = BehindHandler(stream)
    handler.emit(_record("lost"))
    handler.flush()
    handler.emit(_record("kept"))
    handler.close()
    told, kept = stream.getvalue().splitlines()
    assert told == "(1 lines of the log were dropped: nobody took them)"
    assert kept.endswith("kept")
