"""What the HTTP routes work with: the parts of a running service, handed to them in one object."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import UnavailableError

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..automations.acting.approval import ApprovalLinks
    from ..automations.acting.dead_letter import DeadLetters
    from ..bus import Bus, EmbeddedBroker, SecretStore
    from ..clock import Clock
    from ..config import Settings
    from ..engine.dispatching.control import Control
    from ..notifications.ack import AckLinks
    from ..notifications.notifier import Notifier
    from ..storage import Queries
    from ..storage.apart import Projection
    from ..triggers.receiver import WebhookReceiver
    from .access import AccessKeys
    from .metrics import Metrics
    from .supervisor import Supervisor

__all__ = ["ServerContext", "context_of"]


# Of clients that come together so many are let in at a time: each asks the broker for its place and for a consumer, and
# hundreds of such questions at once kept the broker from answering those who renew their leases.
_OPENING_AT_ONCE = 8


@dataclass(slots=True)
class ServerContext:
    """Everything a route may need.

    Attributes:
        services: the running parts and how each of them is.
        closing: set when the server is about to stop; long answers (streams, waits) end then.
        broker: the embedded one, if it is this process's.
        opening_streams: held by clients of event streams while they are let in.
        is_public: the server listens on more than loopback.
    """

    settings: Settings
    bus: Bus
    clock: Clock
    keys: AccessKeys
    queries: Queries
    control: Control
    secrets: SecretStore
    services: Supervisor
    metrics: Metrics
    started_at: datetime
    links: AckLinks | None = None
    approval_links: ApprovalLinks | None = None
    broker: EmbeddedBroker | None = None
    url: str = ""
    is_public: bool = False
    streams: int = 0
    opening_streams: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(_OPENING_AT_ONCE)
    )
    closing: anyio.Event = field(default_factory=anyio.Event)

    async def until_readable(self, seq: int) -> None:
        """Wait some seconds until what was just stored at ``seq`` can be read. It has been done, however long that takes."""
        with suppress(UnavailableError):
            await self.projector.caught_up(seq)

    def _running(self, name: str) -> Any:
        part = self.services.running(name)
        if part is None:
            raise UnavailableError(
                f"the {name} is not running here now", hint="see /api/status; try again in a moment"
            )
        return part

    @property
    def projector(self) -> Projection:
        part: Projection = self._running("projector")
        return part

    @property
    def dead_letters(self) -> DeadLetters:
        """The door to actions that were given up."""
        from ..automations.acting.dead_letter import DeadLetters

        return DeadLetters(self.bus, self.clock)

    @property
    def receiver(self) -> WebhookReceiver:
        part: WebhookReceiver = self._running("webhooks")
        return part

    @property
    def notifier(self) -> Notifier:
        part: Notifier = self._running("notifier")
        return part


def context_of(request: Request) -> ServerContext:
    """Return the context of the application a request came to."""
    context: ServerContext = request.app.state.hark
    return context
