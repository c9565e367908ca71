"""Somebody else on a broker: a bare NATS client, with nothing of Hark's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
from hark.bus.address import BrokerAddress
from nats.aio.client import Client


@asynccontextmanager
async def a_peer(address: BrokerAddress) -> AsyncIterator[Client]:
    """Connect to a broker as others do; a connection that is lost stays lost."""
    client = await nats.connect(
        address.urls[0],
        user=address.user,
        password=address.password,
        token=address.token,
        allow_reconnect=False,
    )
    try:
        yield client
    finally:
        await client.close()
