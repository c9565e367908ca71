"""A rule engine, or an outbox, in a process of its own, to be killed: ``chaos_child engine|outbox HOME``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import anyio
from cryptography.fernet import Fernet
from hark.automations.engine import RuleEngine
from hark.automations.outbox import Outbox
from hark.automations.perform import Performers
from hark.bus import Bus, LateValues, SecretStore, locate_broker
from hark.config import AutomationsConfig, BusConfig, Settings
from hark.engine.control import Control

# So many retries that no action is given up because every process that tried it was killed.
CONFIG = AutomationsConfig(
    action_retries=20,
    allow_private_addresses=True,
    checkpoint_s=0.1,
    checkpoint_events=10,
    budget_per_minute=10**9,
)


def _nobody() -> NoReturn:
    raise AssertionError("no rule of this history tells people")


async def main(part: str, home: str) -> None:
    address = locate_broker(Settings(home=Path(home)))
    assert address is not None
    async with Bus(address, BusConfig()) as bus:
        if part == "engine":
            async with RuleEngine(bus, CONFIG, lease_ttl_s=1):
                await anyio.sleep_forever()
        late = LateValues(bus, SecretStore(bus, Fernet.generate_key()), environ={})
        async with (
            Performers(bus, Control(bus), late, CONFIG, notifier=_nobody) as performers,
            Outbox(bus, performers, CONFIG, ack_wait_s=1),
        ):
            await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], backend_options={"use_uvloop": True})
