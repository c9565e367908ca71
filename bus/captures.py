"""Requests that came in from outside, as they came: the newest few of each kind, for a while, in a stream of their own.

They are there to be looked at and sent again, and are worth less than what they led to: keeping one never makes its
sender wait, and one that cannot be kept is dropped.
"""

from __future__ import annotations

import base64
import logging
from datetime import datetime

from ..config import BusConfig
from ..errors import BufferFull
from ..vocabulary import new_id
from .bucket import check_key
from .connection import ApiError, Connection
from .event import Recorded, parse_time
from .feed import Feed
from .publisher import Publisher
from .subject import REQUESTS_STREAM

__all__ = ["Captures"]

log = logging.getLogger(__name__)

PREFIX = "hark.req."
_NO_MESSAGE = 10037


class Captures:
    """The stream ``HARK_REQUESTS``: of each kind the newest ``requests_kept``, none older than ``requests_max_age_s``."""

    def __init__(self, connection: Connection, publisher: Publisher, config: BusConfig) -> None:
        self._connection, self._publisher, self._config = connection, publisher, config

    def keep_nowait(self, kind: str, value: bytes) -> bool:
        """Keep a value under a kind (dotted words); return False if it was dropped. Never waits."""
        if len(value) > self._connection.max_payload - 1024:
            return False
        try:
            self._publisher.publish_raw_nowait(f"{PREFIX}{check_key(kind)}", value, new_id())
        except BufferFull:
            log.warning("capture.dropped", extra={"kind": kind})
            return False
        return True

    async def list(self, kind: str) -> list[Recorded]:
        """Return what is kept of kinds that fit (``*`` is one word), oldest first; ``seq`` names each.

        Raises:
            BusUnavailable: the broker cannot be reached.
        """
        feed = Feed(
            self._connection, self._config, stream=REQUESTS_STREAM, filters=[f"{PREFIX}{kind}"], after=0, since=None,
            batch=100, live=False,
        )  # fmt: skip
        found: list[Recorded] = []
        try:
            await feed.start()
            async for batch in feed:
                found += batch.records
        finally:
            await feed.close()
        return found

    async def get(self, seq: int) -> tuple[bytes, datetime] | None:
        """Return one that is kept and when it was stored; None when it is not there (any more).

        Raises:
            BusUnavailable: the broker cannot be reached.
        """
        if seq < 1:
            return None
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.{REQUESTS_STREAM}", {"seq": seq})
        except ApiError as exc:
            if exc.err_code == _NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        assert isinstance(message, dict)
        return base64.b64decode(str(message.get("data", ""))), parse_time(str(message["time"]))
