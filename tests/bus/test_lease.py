"""Leases: one holder at a time, handed over at once when given back, and soon when the holder dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker, Grant, locate_broker
from hark.config import BusConfig, Settings

HOLDER = """
import asyncio, sys
from pathlib import Path
from hark.bus import Bus, locate_broker
from hark.config import BusConfig, Settings
async def main():
    address = locate_broker(Settings(home=Path(sys.argv[1])))
    async with Bus(address, BusConfig()) as bus:
        async with bus.lease("boss", holder="child", ttl_s=float(sys.argv[2])).held() as grant:
            print(grant.revision, flush=True)
            await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_one_holds_and_the_next_gets_it_when_it_is_given_back(bus: Bus) -> None:
    """No waiting for the TTL after a clean end; the fencing token grows."""
    first, second = bus.lease("boss", holder="a", ttl_s=300), bus.lease("boss", holder="b", ttl_s=300)
    taken = anyio.Event()
    revisions: list[int] = []

    async def stand_by() -> None:
        async with second.held() as grant:
            revisions.append(grant.revision)
            taken.set()

    async with anyio.create_task_group() as tg:
        async with first.held() as grant:
            revisions.append(grant.revision)
            assert await first.holder_now() == "a"
            tg.start_soon(stand_by)
            with anyio.move_on_after(0.2):
                await taken.wait()
            assert not taken.is_set()
            assert not grant.lost.is_set()
        with anyio.fail_after(60):
            await taken.wait()
    assert revisions[1] > revisions[0]
    assert await first.holder_now() is None


async def test_many_standbys_hold_one_after_the_other(bus: Bus) -> None:
    """Never two at once, and all get their turn."""
    inside = most = turns = 0

    async def work(name: str) -> None:
        nonlocal inside, most, turns
        async with bus.lease("boss", holder=name, ttl_s=20).held():
            inside += 1
            most = max(most, inside)
            turns += 1
            await anyio.sleep(0.01)
            inside -= 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tg:
            for number in range(6):
                tg.start_soon(work, f"h{number}")
    assert (most, turns) == (1, 6)


async def test_a_holder_renews_for_longer_than_its_ttl(bus: Bus) -> None:
    """Renewed every third of the TTL; a standby does not get it meanwhile."""
    ttl_s = 3
    async with anyio.create_task_group() as tg, bus.lease("boss", holder="a", ttl_s=ttl_s).held() as grant:
        taken = anyio.Event()

        async def stand_by() -> None:
            async with bus.lease("boss", holder="b", ttl_s=ttl_s).held():
                taken.set()

        tg.start_soon(stand_by)
        with anyio.move_on_after(1.3 * ttl_s):
            await taken.wait()
        assert not taken.is_set()
        assert not grant.lost.is_set()
        tg.cancel_scope.cancel()


async def test_a_lease_is_given_back_though_a_renewal_was_on_its_way(bus: Bus) -> None:
    """Who leaves at the moment of a beat knows the revision before it; the next holder need not wait for the TTL."""
    lease, others = bus.lease("boss", holder="a", ttl_s=300), bus.lease("boss", holder="b", ttl_s=300)
    leases = bus.bucket("leases")
    async with lease.held() as grant:
        held = await leases.get("boss")
        assert held is not None
        await leases.update("boss", held.value, revision=grant.revision)
    with anyio.fail_after(60):
        async with others.held():
            pass
    async with lease.held() as grant:
        await leases.update("boss", held.value.replace(b'"a"', b'"c"'), revision=grant.revision)
    assert await lease.holder_now() == "c", "what is another's stays"


async def test_who_lost_the_lease_is_cancelled(bus: Bus) -> None:
    """Somebody else's write ends it: the body is cancelled, and ``lost`` tells."""
    grant: Grant | None = None
    went_on = False
    with anyio.fail_after(60):
        async with bus.lease("boss", holder="a", ttl_s=4).held() as grant:
            await bus.bucket("leases").put("boss", b"{}")
            await anyio.sleep_forever()
            went_on = True
    assert grant is not None
    assert grant.lost.is_set()
    assert not went_on
    found = await bus.bucket("leases").get("boss")
    assert found is not None, "what is another's is not removed"


async def test_a_holder_without_a_broker_stops_before_its_ttl_is_over(home: Path) -> None:
    """It cannot know whether another has taken over, so it must stop."""
    config = BusConfig(request_timeout_s=1.5)
    async with EmbeddedBroker(home, config) as broker:
        bus = Bus(broker.address, config, drain_s=0.1)
        await bus.__aenter__()
        lease = bus.lease("boss", holder="a", ttl_s=1)
        with anyio.fail_after(60):
            async with lease.held() as grant:
                began = anyio.current_time()
                assert broker.pid is not None
                os.kill(broker.pid, signal.SIGSTOP)  # reachable, and silent
                try:
                    # The timers of one loop run in their order, however late they all are.
                    with anyio.CancelScope(deadline=began + 1.1, shield=True):
                        await grant.lost.wait()
                    with anyio.CancelScope(shield=True):
                        await anyio.wait_all_tasks_blocked()
                    assert grant.lost.is_set()
                finally:
                    os.kill(broker.pid, signal.SIGCONT)
        await bus.__aexit__(None, None, None)


async def test_a_short_outage_of_the_broker_is_survived(broker: EmbeddedBroker, bus: Bus) -> None:
    """A restart of the broker takes a fraction of the TTL; the holder stays."""
    async with bus.lease("boss", holder="a", ttl_s=6).held() as grant:
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        async with bus.bucket("leases").watch("boss") as changes:
            async for entry in changes:
                if entry.revision > grant.revision:
                    break  # written again by a broker that is back
        assert not grant.lost.is_set()


async def test_a_killed_holder_of_this_machine_is_replaced_at_once(
    broker: EmbeddedBroker, bus: Bus, home: Path
) -> None:
    """A restart after a crash need not wait for the TTL: the old process is seen to be gone."""
    child = start_holder(home, 600)
    assert child.stdout is not None
    first = int(child.stdout.readline())
    child.kill()
    child.wait()
    child.stdout.close()
    with anyio.fail_after(60):
        async with bus.lease("boss", holder="b", ttl_s=5).held() as grant:
            assert grant.revision > first


def start_holder(home: Path, ttl_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home), str(ttl_s)], stdout=subprocess.PIPE, text=True
    )


async def test_a_silent_holder_is_replaced_after_its_ttl(
    broker: EmbeddedBroker, bus: Bus, home: Path
) -> None:
    """A frozen process is replaced, and told so when it thaws: its writes no longer land."""
    child = start_holder(home, 1.0)
    assert child.stdout is not None
    first = int(child.stdout.readline())
    child.send_signal(signal.SIGSTOP)
    try:
        with anyio.fail_after(60):
            async with bus.lease("boss", holder="b", ttl_s=1).held() as grant:
                assert grant.revision > first
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


async def test_leases_work_without_the_brokers_help(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that cannot let keys expire: standbys count by themselves."""
    monkeypatch.setattr("hark.bus.lease._is_dead_neighbour", lambda value: False)
    async with EmbeddedBroker(home, BusConfig()) as broker, Bus(broker.address, BusConfig()) as bus:
        bus.bucket("leases")._message_ttl = False
        found = locate_broker(Settings(home=home))
        assert found is not None
        await bus.bucket("leases").put("boss", b'{"holder":"dead","pid":1,"machine":"elsewhere"}')
        began = anyio.current_time()
        with anyio.fail_after(60):
            async with bus.lease("boss", holder="b", ttl_s=1).held():
                assert anyio.current_time() - began > 0.9


def test_a_ttl_below_a_second_is_refused() -> None:
    """The broker counts in seconds."""
    from hark.bus.lease import Lease

    with pytest.raises(ValueError, match="at least 1"):
        Lease(None, "x", holder="a", ttl_s=0.5)  # type: ignore[arg-type]
