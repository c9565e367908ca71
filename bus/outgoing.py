"""A message for the broker: what the engine makes of a transition, without loading what sends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .owner import Owner

__all__ = ["Outgoing"]


class Outgoing:
    """A message on its way. ``ordinal`` is its place among all that were given to the publisher.

    ``owner`` is told if it is refused; None: those who share the publisher.
    """

    __slots__ = ("lines", "msg_id", "ordinal", "owner", "payload", "size", "subject")

    def __init__(
        self, subject: str, lines: str, payload: bytes, msg_id: str, owner: Owner | None = None
    ) -> None:
        self.subject, self.lines, self.payload, self.msg_id = subject, lines, payload, msg_id
        self.owner = owner
        self.size = len(lines) + len(payload) + 12
        self.ordinal = 0
