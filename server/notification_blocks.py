"""Blocks that tell people something from a flow: ``SlackWebhook.load("team").notify("done")``, under Prefect's names.

In new code, channels of ``hark.yaml`` do more: groups, silences, retries that survive the process. These send once, from here.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

from anyio import to_thread
from pydantic import Field, PrivateAttr, SecretStr

from ..bus.secret import Redactor
from ..engine.block_kinds import NotificationBlock, NotificationError
from ..engine.sync_async.either import is_async_here

__all__ = [
    "AppriseNotificationBlock", "DiscordWebhook", "MattermostWebhook", "MicrosoftTeamsWebhook", "NotificationError",
    "SlackWebhook",
]  # fmt: skip

log = logging.getLogger("hark.notifications")

TIMEOUT_S = 15.0


class AppriseNotificationBlock(NotificationBlock):
    """Any service that Apprise knows, by its address: ``AppriseNotificationBlock(url="ntfy://topic")``.

    What cannot be sent is logged; inside ``with block.raise_on_failure():`` it is raised.
    """

    _block_type_name: ClassVar[str | None] = "Apprise Notification"

    notify_type: Literal["info", "success", "warning", "failure"] = "info"
    url: SecretStr

    _raises: bool = PrivateAttr(default=False)

    def notify(self, body: str, subject: str | None = None) -> Any:
        """Send a message; awaited in async code.

        Raises:
            NotificationError: inside ``raise_on_failure()``: it was not sent.
        """
        return self.anotify(body, subject) if is_async_here() else self._send(body, subject)

    async def anotify(self, body: str, subject: str | None = None) -> None:
        """Do what ``notify`` does, in async code."""
        await to_thread.run_sync(self._send, body, subject)

    @contextmanager
    def raise_on_failure(self) -> Generator[Self]:
        """Raise ``NotificationError`` inside the block for what cannot be sent."""
        before, self._raises = self._raises, True
        try:
            yield self
        finally:
            self._raises = before

    def _address(self) -> str:
        return self.url.get_secret_value()

    def _send(self, body: str, subject: str | None) -> None:
        from ..notifications.apprise_port import send
        from ..notifications.message import Message, Severity

        message = Message(subject or "", body, severity=Severity(self.notify_type))
        address = self._address()
        tried = send(address, message, timeout_s=TIMEOUT_S, redactor=Redactor([address]), delivered=set())
        if tried.ok:
            return
        if self._raises:
            raise NotificationError(tried.reason)
        log.warning("notification.failed", extra={"block": type(self).__name__, "reason": tried.reason})


class SlackWebhook(AppriseNotificationBlock):
    """An incoming webhook of Slack: ``SlackWebhook(url="https://hooks.slack.com/services/…")``."""

    _block_type_name: ClassVar[str | None] = "Slack Webhook"

    def _address(self) -> str:
        url = super()._address()
        is_slacks = url.startswith(("https://hooks.slack.com/", "https://hooks.slack-gov.com/"))
        # Others speak Slack's words at addresses of their own.
        return url if is_slacks or not url.startswith(("http://", "https://")) else f"slack+{url}"


class MattermostWebhook(SlackWebhook):
    """An incoming webhook of Mattermost.

    Args:
        url: default: made of the others. hostname, token, port, path, secure: as Mattermost shows them.
    """

    _block_type_name: ClassVar[str | None] = "Mattermost Webhook"

    url: SecretStr = SecretStr("")
    hostname: str = ""
    token: SecretStr = SecretStr("")
    port: int = 8065
    path: str | None = None
    secure: bool = True

    def _address(self) -> str:
        if self.url.get_secret_value():
            return super()._address()
        folder = f"/{self.path.strip('/')}" if self.path else ""
        scheme = "https" if self.secure else "http"
        return f"slack+{scheme}://{self.hostname}:{self.port}{folder}/hooks/{self.token.get_secret_value()}"


class MicrosoftTeamsWebhook(AppriseNotificationBlock):
    """A workflow of Teams, by the address that Teams shows."""

    _block_type_name: ClassVar[str | None] = "Microsoft Teams Webhook"
    _block_type_slug: ClassVar[str | None] = "ms-teams-webhook"


class DiscordWebhook(AppriseNotificationBlock):
    """A webhook of Discord, by its id and its token."""

    _block_type_name: ClassVar[str | None] = "Discord Webhook"

    url: SecretStr = SecretStr("")
    webhook_id: SecretStr
    webhook_token: SecretStr
    botname: str | None = None
    tts: bool = False
    avatar_url: str | bool | None = Field(None, description="of who the message is shown to be from")

    def _address(self) -> str:
        name = f"{self.botname}@" if self.botname else ""
        words = f"?tts={'yes' if self.tts else 'no'}"
        words += f"&avatar_url={self.avatar_url}" if isinstance(self.avatar_url, str) else ""
        return f"discord://{name}{self.webhook_id.get_secret_value()}/{self.webhook_token.get_secret_value()}{words}"
