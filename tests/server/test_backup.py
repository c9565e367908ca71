"""A backup of a service under load, restored elsewhere: windows go on half-full, and nothing is done twice or lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import anyio
from hark.bus import Bus, Event
from hark.bus.archive import read_archive
from hark.bus.backup import take_backup
from hark.bus.restore import restore_home
from hark.config import BusConfig

from tests.server.conftest import Start

HOSTS = 5
CONFIG = """
deployments:
  etl: {flow: flows.py:etl}
automations:
  three:
    on: app.error
    for_each: data.host
    count: 3
    within: 1d
    budget: 10000/m
    do: [{emit: alarm.raised, data: {host: "{{ key }}"}}]
"""


def errors(round_: int) -> list[Event]:
    return [
        Event(type="app.error", source="/t", id=f"{round_}-{h}", data={"host": f"h{h}"}) for h in range(HOSTS)
    ]


async def hosts_of(bus: Bus, type_: str) -> Counter[str]:
    async with bus.log.read([f"hark.ev.{type_}"]) as batches:
        return Counter([str(r.event.data["host"]) async for b in batches for r in b.records])  # type: ignore[index,call-overload]


async def repeated(bus: Bus) -> list[str]:
    """What was decided, done or run more than once."""
    seen: Counter[str] = Counter()
    async with bus.log.read() as batches:
        async for batch in batches:
            for record in batch.records:
                event, data = record.event, record.event.data
                if event.type == "action.executed" and isinstance(data, dict):
                    seen[f"action {data['key']}"] += 1
                elif event.type in (
                    "automation.triggered",
                    "alarm.raised",
                    "flow-run.running",
                    "flow-run.completed",
                ):
                    seen[f"{event.type} {event.id}"] += 1
                    if event.type.startswith("flow-run."):
                        seen[f"{event.type} of {event.subject}"] += 1
    return [what for what, count in seen.items() if count > 1]


async def until_alarms(bus: Bus, wanted: int) -> None:
    """Wait until so many alarms are in the log."""
    with anyio.fail_after(120):
        async with bus.log.follow(["hark.ev.alarm.raised"], after=0) as batches:
            count = 0
            async for batch in batches:
                count += len(batch.records)
                if count >= wanted:
                    return


async def test_a_restored_service_fires_at_the_right_count_and_does_nothing_twice(
    start: Start, tmp_path: Path
) -> None:
    """Taken while events come in and actions go out; every window holds what the log says, no more and no less."""
    path = tmp_path / "b.hark"
    async with start(config=CONFIG) as (service, http):
        bus = service.bus
        await bus.log.append_many(errors(0))
        later = await http.post("/api/deployments/etl/run", json={"delay_s": 5})
        assert later.status_code in (200, 201, 202), later.text
        run_id = later.json()["id"]
        stop = anyio.Event()

        async def go_on() -> None:
            for round_ in range(1, 400):
                await bus.log.append_many(errors(round_))
                if stop.is_set():
                    break

        async with anyio.create_task_group() as tg:
            tg.start_soon(go_on)
            await until_alarms(bus, HOSTS)
            await take_backup(bus, path, key=None)
            stop.set()
    home = tmp_path / "elsewhere"
    await restore_home(read_archive(path), home, BusConfig())
    async with start(config=CONFIG, home=home) as (service, http):
        bus = service.bus
        have = await hosts_of(bus, "app.error")
        # Two windows of each host are filled to their end, whatever they hold now.
        missing = [
            Event(type="app.error", source="/t", id=f"more-{host}-{i}", data={"host": host})
            for host, count in have.items()
            for i in range(6 - count % 3)
        ]
        await bus.log.append_many(missing)
        total = await hosts_of(bus, "app.error")
        wanted = {host: count // 3 for host, count in total.items()}
        await until_alarms(bus, sum(wanted.values()))
        done = await http.get(f"/api/flow-runs/{run_id}/wait", params={"timeout_s": 60})
        assert done.json()["is_final"], done.text
        assert await hosts_of(bus, "alarm.raised") == wanted
        assert await repeated(bus) == []
        assert (await http.get("/api/status")).json()["ready"]
