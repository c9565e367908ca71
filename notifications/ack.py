"""Links to acknowledge with: a token signed with the key of the home, good for one incident and one acknowledgement.

The token names the incident and since when it was not acknowledged. Once it is, that moment is another one, and every
link sent before is used up; the fold ignores it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import orjson

from ..bus.event import Event
from ..errors import AccessDenied
from ..vocabulary import JsonObject, new_id
from .alert import ACKNOWLEDGED, SOURCE

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["AckLinks", "Ticket", "acknowledge"]

VALID_S = 7 * 86_400
_MAC_BYTES = 16


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a link stands for: the incident, the moment, and the channel the message went to."""

    incident: str
    stamp: float
    to: str


class AckLinks:
    """Makes tokens and reads them.

    ``key`` is secret bytes, from which the one used here is derived; of several, separated by commas, the first signs
    and all are good, as with the key of secrets.
    """

    def __init__(self, key: bytes, *, base_url: str = "") -> None:
        self._keys = [
            hmac.digest(one.strip(), b"hark acknowledge links", "sha256") for one in key.split(b",")
        ]
        self.base_url = base_url.rstrip("/")

    def __repr__(self) -> str:
        return "AckLinks()"

    def link(self, ticket: Ticket, at: float) -> str | None:
        """Return the address to open, valid for a week from ``at``; None while nobody knows what we are called."""
        return f"{self.base_url}/ack/{self.token(ticket, at)}" if self.base_url else None

    def token(self, ticket: Ticket, at: float) -> str:
        body = orjson.dumps([ticket.incident, ticket.stamp, ticket.to, int(at) + VALID_S])
        return f"{_text(body)}.{_text(_mac(self._keys[0], body))}"

    def read(self, token: str, now: datetime) -> Ticket:
        """Return what a token stands for.

        Raises:
            AccessDenied: it is not one of ours, or too old.
        """
        body_text, _, mac_text = token.partition(".")
        body, said = _bytes(body_text), mac_text.encode()
        # As text: two texts may be the same bytes, and a link has one form.
        if not any(hmac.compare_digest(_text(_mac(key, body)).encode(), said) for key in self._keys):
            raise AccessDenied("this link is not valid", hint="use the newest message, or `hark alerts ack`")
        incident, stamp, to, until = orjson.loads(body)
        if now.timestamp() > until:
            raise AccessDenied(
                "this link is more than a week old", hint="use the newest message, or `hark alerts ack`"
            )
        return Ticket(str(incident), float(stamp), str(to))


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()[:_MAC_BYTES]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


async def acknowledge(
    bus: Bus, incident: str, *, by: str, now: datetime, stamp: float | None = None, note: str = ""
) -> int:
    """Store that somebody takes on an incident; return the place in the log. What it changes, the router decides."""
    data: JsonObject = {"group": incident, "by": by, "stamp": stamp, "note": note[:1000]}
    event = Event(
        type=ACKNOWLEDGED, source=SOURCE, id=new_id(), subject=f"incident/{incident}", time=now, data=data
    )
    return (await bus.log.append(event)).seq
