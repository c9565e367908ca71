"""A cluster of three brokers, every stream in three copies: what one machine cannot show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from hark.bus import BrokerAddress, Bus, EmbeddedBroker, Event
from hark.bus.archive import Archive, read_archive
from hark.bus.backup import take_backup
from hark.bus.broker import find_program
from hark.bus.restore import restore_broker
from hark.config import BusConfig


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on; the servers of a cluster must know one another's beforehand.

    From below the range the system gives out by itself, so that nobody gets them by chance in the meantime.
    """
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return list(found)


@asynccontextmanager
async def member(
    folder: Path, name: str, port: int, cluster_port: int, routes: list[str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """One server of the cluster."""
    conf = {
        "server_name": name,
        "host": "127.0.0.1",
        "port": port,
        "log_file": str(folder / f"{name}.log"),
        "jetstream": {"store_dir": str(folder / name), "max_file_store": 64 << 30},
        "cluster": {"name": "hark", "host": "127.0.0.1", "port": cluster_port, "routes": routes},
    }
    path = folder / f"{name}.conf"
    path.write_text(json.dumps(conf))
    process = await asyncio.create_subprocess_exec(str(find_program()), "-c", str(path))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def a_backup(home: Path, path: Path) -> Archive:
    """What a Hark of one machine held: an event that a reader has had, one that it has not, a value, a large one."""
    async with EmbeddedBroker(home, BusConfig()) as broker, Bus(broker.address, BusConfig()) as bus:
        for number in range(2):
            await bus.log.append(Event(type="order.kept", source="/t", id=f"k{number}", data=number))
        async with bus.log.consume("readers", deliver_after=0, ack_wait_s=1) as consumer:
            for item in await consumer.fetch(1):
                await item.ack()
        await bus.bucket("variables").put("shop", b"hamburg")
        await bus.objects.put("large", b"r" * 400_000)
        await take_backup(bus, path, key=None)
    return read_archive(path)


async def test_a_cluster_takes_a_backup_up_loses_a_server_and_no_event(tmp_path: Path) -> None:
    """Streams, buckets and readers in three copies, also those of a backup of one machine; a server is killed under load,
    and work goes on with what was stored."""
    archive = await a_backup(tmp_path / "home", tmp_path / "b.hark")
    ports = free_ports(6)
    routes = [f"nats://127.0.0.1:{port}" for port in ports[3:]]
    config = BusConfig(replicas=3, connect_timeout_s=120, request_timeout_s=60, max_bytes=1 << 28)
    address = BrokerAddress(tuple(f"nats://127.0.0.1:{port}" for port in ports[:3]))
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(member(tmp_path, f"n{i}", ports[i], ports[3 + i], routes))
            for i in range(3)
        ]
        await restore_broker(archive, address, tmp_path / "home-2", config)
        async with Bus(address, config) as bus:
            streams: Any = (await bus.connection.api("STREAM.LIST"))["streams"]
            assert {
                s["config"]["name"]: s["config"]["num_replicas"]
                for s in streams
                if s["config"]["num_replicas"] != 3
            } == {}
            assert await bus.objects.get("large") == b"r" * 400_000
            seen: list[str] = []
            with anyio.fail_after(
                60
            ):  # what it had in hand comes when its ack wait is over, behind what is new
                async with bus.log.consume("readers", deliver_after=0, ack_wait_s=1) as consumer:
                    async for item in consumer:
                        seen.append(item.recorded.event.id)
                        if "k1" in seen:
                            break
            assert "k0" not in seen
            reader: Any = await bus.connection.api("CONSUMER.INFO.HARK.readers")
            assert reader["config"]["num_replicas"] == 3
            revision = await bus.bucket("variables").put("region", b"eu")
            events = [Event(type="order.paid", source="/t", data=number) for number in range(300)]
            for event in events[:150]:
                bus.publisher.publish_nowait(event)
            victim = ports.index(int(bus.connection.url.rsplit(":", 1)[1]))
            members[victim].send_signal(signal.SIGKILL)
            for event in events[150:]:
                bus.publisher.publish_nowait(event)
            with anyio.fail_after(120):
                await bus.publisher.barrier()
            kept = await bus.bucket("variables").get("shop")
            entry = await bus.bucket("variables").get("region")
            assert kept is not None
            assert entry is not None
            assert (kept.value, entry.value, entry.revision) == (b"hamburg", b"eu", revision)
            async with bus.log.read(["hark.ev.order.paid"]) as batches:
                stored = [record.event.data async for batch in batches for record in batch.records]
            assert sorted(map(str, stored)) == sorted(map(str, range(300)))
