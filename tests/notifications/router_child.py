"""A router with its notifier in a process of its own, to be killed; see ``nursery.py``."""

from __future__ import annotations

from pathlib import Path

import anyio
from hark.automations.matching.language import WhereLanguage
from hark.bus import Bus, LateValues, SecretStore, locate_broker
from hark.config import BusConfig, NotificationsConfig, Settings
from hark.notifications import Notifier, Router

KEY = b"2S4oSZlDZ5mI2SP1zlmB2wYdVtUuNA6AJzBhpv5cU5E="


async def main(home: str) -> None:
    # Born while the broker is being started again: whoever looks after processes would start it once more.
    while (address := locate_broker(Settings(home=Path(home)))) is None:  # noqa: ASYNC110
        await anyio.sleep(0.05)
    config = NotificationsConfig(send_timeout_s=5.0, retries=2, backoff_s=0.02)
    # A busy machine starts brokers slowly; whoever looks after processes would start this one once more.
    async with Bus(address, BusConfig(connect_timeout_s=60)) as bus:
        late = LateValues(bus, SecretStore(bus, KEY), environ={})
        async with (
            Notifier(bus, late, config) as notifier,
            Router(bus, lambda: notifier, WhereLanguage(), vault=late, lease_ttl_s=1),
        ):
            await anyio.sleep_forever()


def run(part: str, home: str) -> None:
    del part  # there is one only
    anyio.run(main, home, backend_options={"use_uvloop": True})
