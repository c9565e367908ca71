"""Telling people while the broker goes away: who has been told is not told again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hark.bus import Bucket
from hark.config import BusConfig
from hark.errors import BusUnavailable
from hark.notifications import Message, Notifier

HELLO = Message("Flow etl failed")


@dataclass
class Freezing:
    """An HTTP receiver that stops the broker before it answers its first request."""

    freeze: Callable[[], AbstractContextManager[None]]
    ice: ExitStack
    port: int = 0
    taken: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length")
        )
        self.taken.append(await reader.readexactly(length))
        if len(self.taken) == 1:
            self.ice.enter_context(self.freeze())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()


@pytest.fixture
def bus_config() -> BusConfig:
    return BusConfig(request_timeout_s=1.5)


@pytest.fixture
async def freezing(frozen: Callable[[], AbstractContextManager[None]]) -> AsyncIterator[Freezing]:
    with ExitStack() as ice:
        made = Freezing(frozen, ice)
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        made.port = server.sockets[0].getsockname()[1]
        yield made
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("patient", [True, False], ids=["waits", "gives-up"])
async def test_who_was_told_right_before_the_broker_went_away_is_not_told_again(
    notifier: Notifier,
    freezing: Freezing,
    hears: Callable[[str, str], asyncio.Event],
    events_of: Callable[..., Any],
    patient: bool,
) -> None:
    """Whether the caller waits for the broker or calls again with the same key: one message, one event."""
    url = f"json://127.0.0.1:{freezing.port}/x"
    waits = hears("hark.notifications.notifier", "notification.waits_to_note")

    async def tell() -> None:
        try:
            await notifier.send(url, HELLO, key="k")
        except BusUnavailable:
            waits.set()  # nobody insisted

    async with anyio.create_task_group() as tg:
        tg.start_soon(tell)
        await waits.wait()
        if not patient:
            tg.cancel_scope.cancel()
        else:
            freezing.ice.close()
    freezing.ice.close()
    again = await notifier.send(url, HELLO, key="k")
    assert [d.outcome for d in again] == ["already-sent" if patient else "sent"]
    assert len(freezing.taken) == 1
    assert [e.type for e in await events_of()] == ["notification.sent"]
    assert [d.outcome for d in await notifier.send(url, HELLO, key="k")] == ["already-sent"]
    assert notifier._unnoted == {}


async def test_a_broker_that_is_away_before_anything_is_sent_is_no_failure_of_the_message(
    notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked can tell it from a channel that failed: it costs an action none of its tries."""

    async def away(self: Bucket, key: str) -> None:
        raise BusUnavailable("nobody answers")

    monkeypatch.setattr(Bucket, "get", away)
    with pytest.raises(BusUnavailable, match="nobody answers"):
        await notifier.send("json://127.0.0.1:9/x", HELLO, key="k")
