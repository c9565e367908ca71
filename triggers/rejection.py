"""Telling what was not accepted: ``webhook.rejected``, of a flood a few per second with the number of the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ..bus import Bus
from ..bus.event import Event
from ..clock import SYSTEM_CLOCK, Clock
from ..duration import Rate
from ..errors import HarkError
from .body import media_type
from .rate import TokenBucket
from .verify import Request

__all__ = ["Rejections"]

log = logging.getLogger(__name__)

SOURCE = "/hark/webhooks"
# So many may be told in a row, before the rate holds them back: a person trying out sees each.
_TOLD_AT_ONCE = 5


@dataclass(slots=True)
class _Tally:
    """How many rejections of one webhook may be told, and how many were not."""

    bucket: TokenBucket
    suppressed: int = 0


class Rejections:
    """Tells rejections, so many per second and webhook."""

    def __init__(self, bus: Bus, *, per_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bus, self._clock = bus, clock
        self._allowed = Rate(_TOLD_AT_ONCE, _TOLD_AT_ONCE / per_s)
        self._tallies: dict[str, _Tally] = {}

    def forget(self, name: str) -> None:
        """Begin to count anew for a webhook that is gone."""
        self._tallies.pop(name, None)

    def tell(
        self,
        known: str,
        name: str,
        request: Request,
        *,
        status: int,
        reason: str,
        detail: str,
        remote: str | None,
    ) -> bool:
        """Publish ``webhook.rejected`` and return True, unless too many were just told.

        Args:
            known: whose allowance it takes: the webhook's name. Names that do not exist share one, the empty text: they
                are as many as an attacker likes.
        """
        now_s = self._clock.monotonic()
        tally = self._tallies.get(known)
        if tally is None:
            tally = self._tallies[known] = _Tally(TokenBucket.full(self._allowed, now_s=now_s))
        if tally.bucket.take(now_s) > 0:
            tally.suppressed += 1
            return False
        shown = name[:100].encode("ascii", "replace").decode()
        event = Event(
            type="webhook.rejected",
            source=SOURCE,
            subject=f"webhook/{shown}",
            time=self._clock.now(),
            data={
                "webhook": {"name": shown},
                "reason": reason,
                "status": status,
                "detail": detail[:500].encode("utf-8", "replace").decode(),
                "method": request.method[:20].encode("ascii", "replace").decode(),
                "remote": remote,
                "size": request.size,
                "content_type": media_type(request.headers).encode("ascii", "replace").decode() or None,
                "suppressed": tally.suppressed,
            },
        )
        try:
            self._bus.publisher.publish_nowait(event)
            tally.suppressed = 0
        except HarkError as exc:
            tally.suppressed += 1
            log.warning("webhook.rejection_untold", extra={"webhook": shown, "error": str(exc)})
            return False
        return True
