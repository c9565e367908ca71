"""Messages over a channel's rate: kept in the broker until their summary has gone out, so that a crash loses none.

In the bucket ``outbox``: ``held.<channel>.<id>`` is a message that waits, ``group.<channel>`` the summary that is being
sent; a dot in a channel's name is written ``=`` there. Both are encrypted as secrets are, since a template may have
written one into the text. The group is written before it is sent and removed after its messages, so whoever takes over sends the very
same summary under the same key, and addresses that have it do not get it again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from ..errors import SecretUnreadable
from ..vocabulary import derived_id
from .message import Message, Severity, summary

if TYPE_CHECKING:
    from ..bus import Bucket, Bus, Entry, LateValues

__all__ = ["Group", "HeldMessages"]

log = logging.getLogger(__name__)

_GROUP_MAX = 200


@dataclass(frozen=True, slots=True)
class Group:
    """A summary about to be sent, and the keys of the messages it stands for."""

    key: str
    members: tuple[str, ...]
    message: Message


class HeldMessages:
    """The messages of all channels that wait for their summary."""

    def __init__(self, bus: Bus, late: LateValues) -> None:
        self._bus, self._late = bus, late

    @property
    def _bucket(self) -> Bucket:
        return self._bus.bucket("outbox")

    async def add(self, channel: str, id_: str, message: Message) -> None:
        """Keep a message; adding it again changes nothing."""
        value = orjson.dumps(
            {"title": message.title, "body": message.body, "severity": message.severity.value}
        )
        key = f"{_held(channel)}{id_}"
        await self._bucket.put(key, self._late.seal(key, value))

    async def has(self, channel: str, id_: str) -> bool:
        """Return whether a message waits."""
        return await self._bucket.get(f"{_held(channel)}{id_}") is not None

    async def count(self, channel: str) -> int:
        """Return how many messages of a channel wait."""
        return len(await self._bucket.keys(_held(channel)))

    async def any(self, channel: str) -> bool:
        """Return whether anything waits for a channel, or its summary is half sent."""
        return await self._bucket.get(_group_key(channel)) is not None or await self.count(channel) > 0

    async def channels(self) -> list[str]:
        """Return the channels for which anything waits."""
        keys = [*await self._bucket.keys("held."), *await self._bucket.keys("group.")]
        return sorted({key.split(".")[1].replace("=", ".") for key in keys})

    async def next_group(self, channel: str) -> Group | None:
        """Return the summary to send next: the one begun earlier, or a new one of what waits, oldest first."""
        begun = await self._bucket.get(_group_key(channel))
        if begun is not None:
            try:
                return _group(self._opened(begun))
            except SecretUnreadable as exc:
                log.error("notifications.summary_unreadable", extra={"channel": channel, "error": str(exc)})
                await self._bucket.delete(begun.key)  # its messages are there yet, and make another
        waiting = sorted(await self._bucket.entries(_held(channel)), key=lambda e: e.revision)[:_GROUP_MAX]
        if not waiting:
            return None
        members = [entry.key for entry in waiting]
        message = summary([self._message(entry) for entry in waiting])
        group = Group(derived_id("notification-group", channel, *members), tuple(members), message)
        value = {
            "key": group.key, "members": members, "title": message.title, "body": message.body,
            "severity": message.severity.value,
        }  # fmt: skip
        await self._bucket.put(_group_key(channel), self._late.seal(_group_key(channel), orjson.dumps(value)))
        return group

    def _message(self, entry: Entry) -> Message:
        try:
            return _message(self._opened(entry))
        except SecretUnreadable as exc:
            # The key was changed meanwhile: that there was one is said all the same.
            log.error("notifications.held_unreadable", extra={"key": entry.key, "error": str(exc)})
            return Message("A message that cannot be read any more", str(exc), Severity.WARNING)

    def _opened(self, entry: Entry) -> bytes:
        if entry.value.startswith(b"{"):
            return entry.value  # from before they were encrypted
        return self._late.unseal(entry.key, entry.value)

    async def done(self, channel: str, group: Group) -> None:
        """Forget a summary that has been sent (or given up), and its messages."""
        for member in group.members:
            await self._bucket.delete(member)
        await self._bucket.delete(_group_key(channel))


def _held(channel: str) -> str:
    return f"held.{channel.replace('.', '=')}."


def _group_key(channel: str) -> str:
    return f"group.{channel.replace('.', '=')}"


def _message(raw: bytes) -> Message:
    found = orjson.loads(raw)
    return Message(found["title"], found["body"], Severity(found["severity"]))


def _group(raw: bytes) -> Group:
    found = orjson.loads(raw)
    return Group(found["key"], tuple(found["members"]), _message(raw))
