"""Telling people: channels, messages, delivery. The only room that imports apprise, and only when it is needed."""

from __future__ import annotations

from .ack import AckLinks
from .alert import Alert, raise_alert
from .channel import Channel
from .message import Delivery, Message, Severity
from .notifier import Notifier
from .router import Router
from .routing import Routing
from .silence import Silence

__all__ = [
    "AckLinks", "Alert", "Channel", "Delivery", "Message", "Notifier", "Router", "Routing", "Severity", "Silence",
    "raise_alert",
]  # fmt: skip
