"""What the service writes to its log."""

from __future__ import annotations

import logging
import sys

from hark.bus.secret import Redactor
from hark.server.log_line import LineFormatter, hide_in_logs


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
