"""The dispatcher: hands runs to workers when they are due and there is a place for them.

One leads at a time, by a lease; the others stand by (``leader.py`` is what the one does). All it knows is folded from the
log and the buckets, so a successor knows the same.
"""

from __future__ import annotations

from collections.abc import Callable

from ...bus import Bus
from ...bus.candidate import Candidate
from ...bus.lease import Grant
from ...clock import SYSTEM_CLOCK, Clock
from ...config import EngineConfig
from .leader import Leader

__all__ = ["Dispatcher"]

LEASE = "dispatcher"


class Dispatcher(Candidate[Leader]):
    """The service. See ``Candidate``."""

    def __init__(
        self,
        bus: Bus,
        config: EngineConfig,
        clock: Clock = SYSTEM_CLOCK,
        *,
        name: str | None = None,
        lease_ttl_s: float = 5.0,
    ) -> None:
        super().__init__(bus, lease=LEASE, role="dispatcher", name=name, lease_ttl_s=lease_ttl_s)
        self._config, self._clock = config, clock

    @property
    def waiting(self) -> int:
        """How many due runs wait for a place, as far as this one knows; 0 on a standby."""
        return self._term.dispatch.waiting if self._term else 0

    @property
    def active(self) -> int:
        """How many runs hold a place; 0 on a standby."""
        return self._term.dispatch.active if self._term else 0

    async def _lead(self, grant: Grant, on_ready: Callable[[Leader], None]) -> None:
        await Leader(self._bus, self._config, self._clock).lead(on_ready)
