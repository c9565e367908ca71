"""Blocks that tell people something, against a real receiver."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from anyio import to_thread
from hark.engine.block_kinds import NotificationError
from hark.server.notification_blocks import (
    AppriseNotificationBlock,
    DiscordWebhook,
    MattermostWebhook,
    MicrosoftTeamsWebhook,
    SlackWebhook,
)
from pydantic import SecretStr


class Receiver:
    """Takes requests; ``answer`` is the status it gives."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.answer = "200 OK"
        self.port = 0

    async def take(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            raw = b""
            while b"\r\n\r\n" not in raw or not raw.endswith(b"}"):
                raw += await stream.receive()
            self.heard.append(raw.decode())
            await stream.send(
                f"HTTP/1.1 {self.answer}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok".encode()
            )


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """One on a port of its own."""
    found = Receiver()
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        found.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        group.start_soon(listener.serve, found.take)
        yield found
        group.cancel_scope.cancel()


async def test_a_message_is_sent_from_async_and_sync_code(receiver: Receiver) -> None:
    """With its subject, to the address, which is a secret."""
    block = AppriseNotificationBlock(url=SecretStr(f"json://127.0.0.1:{receiver.port}/tok"))
    assert "tok" not in repr(block)
    await block.notify("the body", subject="the subject")
    slack = SlackWebhook(url=SecretStr(f"http://127.0.0.1:{receiver.port}/hooks/x"))
    await to_thread.run_sync(slack.notify, "to slack")
    first, second = receiver.heard
    assert first.startswith("POST /tok")
    assert "the body" in first
    assert "the subject" in first
    assert second.startswith("POST /hooks/x")
    assert "to slack" in second


async def test_what_is_not_sent_is_logged_or_raised(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """As asked."""
    receiver.answer = "500 No"
    block = AppriseNotificationBlock(
        url=SecretStr(f"json://127.0.0.1:{receiver.port}/"), notify_type="failure"
    )
    await block.notify("x")
    assert "notification.failed" in caplog.text
    with block.raise_on_failure(), pytest.raises(NotificationError, match="not sent"):
        await block.notify("x")
    caplog.clear()
    await AppriseNotificationBlock(url=SecretStr("no address")).notify("x")
    assert "notification.failed" in caplog.text


def test_services_are_addressed_as_they_show_their_webhooks() -> None:
    """By what their pages give: an address, or an id and a token."""
    slack = "https://hooks.slack.com/services/T/B/X"
    assert SlackWebhook(url=SecretStr(slack))._address() == slack
    teams = "https://prod.logic.azure.com/workflows/a"
    assert MicrosoftTeamsWebhook(url=SecretStr(teams))._address() == teams
    discord = DiscordWebhook(webhook_id=SecretStr("i"), webhook_token=SecretStr("t"), botname="b")
    assert discord._address() == "discord://b@i/t?tts=no"
    matter = MattermostWebhook(hostname="chat.example.org", token=SecretStr("t"), path="team")
    assert matter._address() == "slack+https://chat.example.org:8065/team/hooks/t"
