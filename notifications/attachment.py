"""What is sent along with a message, as files: the log of a run, something of the object store, a path, an address.

Files are made when the message is sent and are gone when it has been. What cannot be had is left out, and the log says so:
a message without its picture is better than none.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import to_thread

from ..bus.event import format_time
from ..bus.secret import Redactor
from ..errors import HarkError
from ..vocabulary import FlowRunId

if TYPE_CHECKING:
    from ..bus import Bus, LogLine

__all__ = ["Attachments", "log_text"]

log = logging.getLogger(__name__)

MAX_BYTES = 5 << 20
"""Of one attachment; of a longer log the end is sent, which tells why a run failed."""


def log_text(lines: Sequence[LogLine]) -> str:
    """Return the lines of a run's log as text, one each."""
    return "".join(
        f"{format_time(line.at)} {logging.getLevelName(line.level):8} {line.logger}: {line.message}\n"
        for line in lines
    )


class Attachments:
    """Makes files of what messages have attached."""

    def __init__(self, bus: Bus, redactor: Redactor) -> None:
        self._bus, self._redactor = bus, redactor

    @asynccontextmanager
    async def files(self, attach: Sequence[str]) -> AsyncGenerator[tuple[str, ...], None]:
        """Yield paths and addresses; the files among them that were made here exist while inside."""
        if not any(a.startswith(("log:", "object:")) for a in attach):
            yield tuple(attach)
            return
        with tempfile.TemporaryDirectory(prefix="hark-attach-") as folder:
            found: list[str] = []
            for i, one in enumerate(attach):
                kind, _, name = one.partition(":")
                if kind not in ("log", "object"):
                    found.append(one)
                    continue
                try:
                    data = await self._log(name) if kind == "log" else await self._bus.objects.get(name)
                except HarkError as exc:
                    log.warning("notification.without_attachment", extra={"attach": one, "error": str(exc)})
                    continue
                if not data or len(data) > MAX_BYTES:
                    log.warning("notification.without_attachment", extra={"attach": one, "bytes": len(data)})
                    continue
                # Not `.log`: nobody knows it for text, so it would go out as any bytes, which mail programs do not show.
                shown = f"run-{name[:36]}.txt" if kind == "log" else name.rpartition("/")[2]
                place = Path(folder) / str(i)
                place.mkdir()
                path = place / (shown if shown not in ("", ".", "..") else "attachment")
                await to_thread.run_sync(path.write_bytes, data)
                found.append(str(path))
            yield tuple(found)

    async def _log(self, flow_run_id: str) -> bytes:
        text = self._redactor.redact(log_text(await self._bus.run_logs.read(FlowRunId(flow_run_id))))
        return text.encode()[-MAX_BYTES:]
