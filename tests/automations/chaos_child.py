"""A rule engine, or an outbox, in a process of its own, to be killed; see ``nursery.py``.

Parts: ``engine``; ``outbox``; ``poisoned``, an outbox that is killed by every action whose address ends in ``/poison``;
``stillborn``, one that is killed when it has claimed an action and not begun it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import anyio
from cryptography.fernet import Fernet
from hark.automations.acting.claim import Claim, Claims
from hark.automations.acting.outbox import Outbox
from hark.automations.acting.perform import Firing, Performers
from hark.automations.action import Action
from hark.automations.folding.engine import RuleEngine
from hark.automations.folding.forebears import Forebears
from hark.automations.folding.handover import Handover
from hark.bus import Bus, LateValues, SecretStore, locate_broker
from hark.config import AutomationsConfig, BusConfig, Settings
from hark.engine.dispatching.control import Control
from hark.vocabulary import JsonObject

# Not one try more than the first: what is killed, and what the broker's absence interrupts, is none.
CONFIG = AutomationsConfig(
    action_retries=0,
    # Killed twice a second for minutes on end, an action may well be in the middle five times in a row.
    action_deaths=50,
    allow_private_addresses=True,
    checkpoint_s=0.1,
    checkpoint_events=10,
    budget_per_minute=10**9,
)


FRAIL = CONFIG.model_copy(update={"action_deaths": 3})
"""Of the poisoned: fewer deaths to wait for."""
ACK_WAIT_S = 0.5


class Poisoned(Performers):
    """Dies of one address."""

    async def perform(self, action: Action, firing: Firing, *, key: str) -> JsonObject:
        if str(getattr(action, "call", "")).endswith("/poison"):
            die()
        return await super().perform(action, firing, key=key)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _nobody() -> NoReturn:
    raise AssertionError("no rule of this history tells people")


async def main(part: str, home: str) -> None:
    # Born while the broker is being started again: whoever looks after processes would start it once more.
    while (address := locate_broker(Settings(home=Path(home)))) is None:  # noqa: ASYNC110
        await anyio.sleep(0.05)
    if part == "stillborn":

        async def begin(self: Claims, key: str, claim: Claim) -> Claim | None:
            die()

        Claims.begin = begin  # type: ignore[method-assign]
    # A busy machine starts brokers slowly; whoever looks after processes would start this one once more.
    async with Bus(address, BusConfig(connect_timeout_s=60)) as bus:
        # There is one at most, and the one before it was killed and waited for: as if it had held the home.
        handover = Handover(Forebears(Path(home) if part == "service" else None))
        if part == "engine":
            async with RuleEngine(bus, CONFIG, lease_ttl_s=1):
                await anyio.sleep_forever()
        late = LateValues(bus, SecretStore(bus, Fernet.generate_key()), environ={})
        config = FRAIL if part == "poisoned" else CONFIG
        made: dict[str, Any] = {"notifier": _nobody}
        async with (
            (Poisoned if part == "poisoned" else Performers)(
                bus, Control(bus), late, config, **made
            ) as performers,
            Outbox(bus, performers, config, ack_wait_s=ACK_WAIT_S, handover=handover),
        ):
            if part == "service":
                async with RuleEngine(bus, CONFIG, lease_ttl_s=1, handover=handover):
                    await anyio.sleep_forever()
            await anyio.sleep_forever()


def run(part: str, home: str) -> None:
    anyio.run(main, part, home, backend_options={"use_uvloop": True})
