"""Telling people: channels, messages, delivery. The only room that imports apprise, and only when it is needed."""

from __future__ import annotations

from .channel import Channel
from .message import Delivery, Message, Severity
from .notifier import Notifier

__all__ = ["Channel", "Delivery", "Message", "Notifier", "Severity"]
