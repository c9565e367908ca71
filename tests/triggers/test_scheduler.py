"""The scheduler against a real broker: every slot one run, whatever dies and restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.bus.event import Event
from hark.clock import ManualClock
from hark.config import TriggersConfig
from hark.errors import BusUnavailable, UnknownName
from hark.triggers import scheduler as scheduler_module
from hark.triggers.due import plan_slots
from hark.triggers.schedule import Overlap, StoredSchedule, parse_schedule, slot_run_id
from hark.triggers.scheduler import NotStarted, Scheduler, Started
from hark.vocabulary import FlowRunId, JsonObject

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def leads_when_all_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes on a busy machine: in service a leader is ready after two seconds in any case."""
    monkeypatch.setattr(scheduler_module, "_READY_AFTER_S", 60.0)


@dataclass
class Starter:
    """Remembers what was asked for; answers what it is told to."""

    asked: list[tuple[str, FlowRunId, datetime]] = field(default_factory=list)
    parameters: list[JsonObject] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    runs: set[FlowRunId] = field(default_factory=set)
    failures: list[Exception] = field(default_factory=list)
    refusal: str | None = None
    count: int = 0
    hold: anyio.Event | None = None
    reached: anyio.Event = field(default_factory=anyio.Event)
    changed: anyio.Event = field(default_factory=anyio.Event)

    async def start(
        self,
        deployment: str,
        *,
        run_id: FlowRunId,
        scheduled_at: datetime,
        parameters: JsonObject,
        cause_name: str,
        overlap: Overlap,
        trigger_event: Event,
    ) -> Started | NotStarted:
        self.reached.set()
        self.count += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.asked.append((cause_name, run_id, scheduled_at))
        self.parameters.append(parameters)
        self.events.append(trigger_event)
        if self.refusal is None:
            self.runs.add(run_id)
        self.changed.set()
        self.changed = anyio.Event()
        return Started(run_id) if self.refusal is None else NotStarted(self.refusal)

    async def until_asked(self, count: int) -> None:
        with anyio.fail_after(60):
            while len(self.asked) < count:
                await self.changed.wait()

    @property
    def hours(self) -> list[int]:
        return [slot.hour for _, _, slot in self.asked]


async def store(bus: Bus, key: str, value: dict[str, Any], **kwargs: Any) -> StoredSchedule:
    deployment, _, name = key.partition("/")
    stored = StoredSchedule(deployment=deployment, name=name, schedule=parse_schedule(value), **kwargs)
    await bus.bucket("schedules").put(stored.key, stored.model_dump_json().encode())
    return stored


@asynccontextmanager
async def leading(bus: Bus, starter: Starter, clock: ManualClock, **kwargs: Any) -> AsyncIterator[Scheduler]:
    async with Scheduler(bus, starter, clock=clock, look_up_s=1e9, **kwargs) as scheduler:
        with anyio.fail_after(60):
            await scheduler.wait_leading()
        yield scheduler


async def settled(scheduler: Scheduler, key: str) -> datetime:
    """Wait until the scheduler waits for a slot of ``key``; return when."""
    with anyio.fail_after(60):
        while True:
            found = dict(scheduler.upcoming()).get(key)
            if found is not None:
                return found
            await anyio.sleep(0.001)


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something seen from outside has come about."""
    with anyio.fail_after(60):
        while True:
            seen = holds()
            if seen if isinstance(seen, bool) else await seen:
                return
            await anyio.sleep(0.001)


async def told(bus: Bus, type_: str = ">") -> list[Event]:
    async with bus.log.read([f"hark.ev.schedule.{type_}"]) as batches:
        return [record.event async for batch in batches for record in batch.records]


async def told_of(bus: Bus, skipped: int) -> bool:
    return len(await told(bus, "skipped")) == skipped


async def pause_is_written(bus: Bus) -> bool:
    return b'"paused":true' in (await bus.bucket("checkpoints").entries("schedule/"))[0].value


async def is_forgotten(bus: Bus, key: str) -> bool:
    return await bus.bucket("checkpoints").get(f"schedule/{key}") is None


def data(event: Event) -> dict[str, Any]:
    assert isinstance(event.data, dict)
    return event.data


async def test_a_slot_that_came_before_a_change_is_not_lost_to_it(bus: Bus) -> None:
    """Paused, given other times, or deleted a moment after the slot, which the scheduler has not heard of by then."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    for key in ("a/x", "b/x", "c/x"):
        await store(bus, key, {"cron": "0 * * * *"})
    async with leading(bus, starter, clock) as scheduler:
        for key in ("a/x", "b/x", "c/x"):
            await settled(scheduler, key)
        clock._elapsed_s = 3600.5  # nobody is woken
        await store(bus, "a/x", {"cron": "0 * * * *", "paused": True})
        async with anyio.create_task_group() as tg:
            for cron in (
                "15 * * * *",
                "30 * * * *",
            ):  # heard of together: the slot was none of the first of them
                tg.start_soon(store, bus, "b/x", {"cron": cron})
        await bus.bucket("schedules").delete("c/x")
        await starter.until_asked(3)
        assert {(name, slot.hour) for name, _, slot in starter.asked} == {("a/x", 1), ("b/x", 1), ("c/x", 1)}
        # The slots may have been decided before any of the changes is heard of.
        await until(
            lambda: dict(scheduler.upcoming()).get("b/x") == NEW_YEAR + timedelta(hours=1, minutes=30)
        )
        await until(lambda: is_forgotten(bus, "c/x"))
        await clock.advance(3600)
        await starter.until_asked(4)
    assert [name for name, _, _ in starter.asked[3:]] == ["b/x"]
    assert len(await told(bus, "fired")) == 4


async def test_many_slots_of_one_moment_leave_others_their_turn(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start and when they come: a few are looked at, then the loop goes round, in which leases are kept."""
    monkeypatch.setattr(scheduler_module, "_A_TURN", 2)
    looked, most, seen, plan = 0, list[int](), set[str](), plan_slots

    def over() -> None:
        nonlocal looked
        most.append(looked)
        looked = 0

    def planned(*args: Any, **kwargs: Any) -> Any:
        nonlocal looked
        looked += kwargs["key"] not in seen  # what follows for each is parted by its writes
        seen.add(kwargs["key"])
        if looked == 1:
            asyncio.get_running_loop().call_soon(over)  # in the next round of the loop
        return plan(*args, **kwargs)

    monkeypatch.setattr(scheduler_module, "plan_slots", planned)
    clock, starter = ManualClock(NEW_YEAR), Starter()
    for n in range(20):
        await store(bus, f"d{n}/0", {"cron": "0 * * * *"})
    async with leading(bus, starter, clock):
        pass  # they have a place in time now; the writes it took are answered as the broker likes, many at once
    most.clear()
    seen.clear()
    async with leading(bus, starter, clock) as scheduler:
        await until(lambda: len(scheduler.upcoming()) == 20)
        assert 0 < max(most) <= 4
        most.clear()
        seen.clear()
        await clock.advance(3600)
        await starter.until_asked(20)
        assert 0 < max(most) <= 4


async def test_each_slot_gets_its_event_and_its_run(bus: Bus) -> None:
    """Hour after hour: `schedule.fired`, then a run with the id that belongs to the slot."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    await store(bus, "etl/nightly", {"cron": "0 * * * *", "parameters": {"full": True}})
    async with leading(bus, starter, clock) as scheduler:
        for n in (1, 2, 3):
            assert await settled(scheduler, "etl/nightly") == NEW_YEAR + timedelta(hours=n)
            await clock.advance(3600)
            await starter.until_asked(n)
        await settled(scheduler, "etl/nightly")
    assert starter.hours == [1, 2, 3]
    assert starter.parameters[0] == {"full": True}
    assert starter.asked[0][1] == slot_run_id("etl", "nightly", NEW_YEAR + timedelta(hours=1))
    events = await told(bus)
    assert [e.type for e in events] == ["schedule.fired"] * 3
    assert [e.id for e in events] == [e.id for e in starter.events]
    assert events[0].subject == "schedule/etl/nightly"
    assert data(events[0])["slot"] == "2026-01-01T01:00:00.000000Z"
    assert data(events[0])["run"] == {"id": starter.asked[0][1]}


async def test_a_new_schedule_is_heard_of_at_once_and_a_deleted_one_is_silent(bus: Bus) -> None:
    """Definitions are taken up as they are stored: without a restart, and while the scheduler's clock stands still."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    async with leading(bus, starter, clock) as scheduler:
        await store(bus, "a/0", {"interval": "1h"})
        assert await settled(scheduler, "a/0") == NEW_YEAR + timedelta(hours=1)
        await store(bus, "a/0", {"interval": "2h"})
        await until(lambda: dict(scheduler.upcoming()).get("a/0") == NEW_YEAR + timedelta(hours=2))
        await store(bus, "b/0", {"interval": "3h"})
        await settled(scheduler, "b/0")
        await bus.bucket("schedules").delete("a/0")
        await until(lambda: "a/0" not in dict(scheduler.upcoming()))
        await clock.advance(3 * 3600)
        await starter.until_asked(1)
        await settled(scheduler, "b/0")
    assert [name for name, _, _ in starter.asked] == ["b/0"]


async def test_an_absence_is_made_up_for_by_policy_and_said(bus: Bus) -> None:
    """Down for five hours: `latest` runs one and tells of four, `all` runs each, `none` tells of five."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    for policy in ("latest", "all", "none"):
        await store(bus, f"{policy}/0", {"cron": "0 * * * *", "catch_up": policy})
    async with leading(bus, starter, clock):
        pass
    await clock.advance(5 * 3600 + 1800)
    async with leading(bus, starter, clock) as scheduler:
        assert {due.hour for _, due in scheduler.upcoming()} == {6}
    by_name = {name: [s.hour for n, _, s in starter.asked if n == name] for name, _, _ in starter.asked}
    assert by_name == {"latest/0": [5], "all/0": [1, 2, 3, 4, 5]}
    skipped = {data(e)["deployment"]["name"]: data(e)["count"] for e in await told(bus, "skipped")}
    assert skipped == {"latest": 4, "none": 5}
    assert all(data(e)["catch_up"] for e in await told(bus, "fired"))


async def test_a_kill_between_deciding_and_starting_leaves_one_run(bus: Bus) -> None:
    """The event is appended, the starter never answered; whoever leads next starts the run, once."""
    clock, starter = ManualClock(NEW_YEAR), Starter(hold=anyio.Event())
    await store(bus, "etl/0", {"cron": "0 * * * *"})
    async with leading(bus, starter, clock) as scheduler:
        await settled(scheduler, "etl/0")
        await clock.advance(3600)
        with anyio.fail_after(60):
            await starter.reached.wait()
    assert starter.runs == set()
    assert len(await told(bus)) == 1
    starter.hold = None
    async with leading(bus, starter, clock) as scheduler:
        await settled(scheduler, "etl/0")
    async with leading(bus, starter, clock) as scheduler:
        await settled(scheduler, "etl/0")
    assert starter.hours == [1]
    assert [e.type for e in await told(bus)] == ["schedule.fired"]


async def test_a_repeated_decision_is_told_once_beyond_the_broker_s_memory_of_ids(home: Any) -> None:
    """The broker forgets ids after its window; the claim says where to look in the log instead."""
    from hark.config import BusConfig

    config = BusConfig(dedup_window_s=0.2)
    async with EmbeddedBroker(home, config) as broker, Bus(broker.address, config) as bus:
        clock, starter = ManualClock(NEW_YEAR), Starter(hold=anyio.Event())
        await store(bus, "etl/0", {"cron": "0 * * * *", "catch_up": "latest"})
        async with leading(bus, starter, clock):
            pass
        await clock.advance(5 * 3600 + 1800)
        async with Scheduler(bus, starter, clock=clock):
            with anyio.fail_after(60):
                await starter.reached.wait()
        await anyio.sleep(0.5)  # real time: the broker's own window must pass
        starter.hold = None
        async with leading(bus, starter, clock):
            pass
        assert starter.hours == [5]
        assert sorted(e.type for e in await told(bus)) == ["schedule.fired", "schedule.skipped"]


async def test_a_process_killed_while_starting_leaves_one_run(broker: EmbeddedBroker, bus: Bus) -> None:
    """kill -9 in the middle of starting: another process finishes the slot; one event, one run."""
    await store(bus, "etl/0", {"at": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()})
    program = textwrap.dedent("""
        import asyncio, os, sys
        from hark.bus import Bus, BrokerAddress
        from hark.config import BusConfig
        from hark.triggers.scheduler import Scheduler

        class Hangs:
            async def start(self, *args, **kwargs):
                print("starting", flush=True)
                await asyncio.sleep(60)

        async def main():
            address = BrokerAddress(urls=(sys.argv[1],), token=sys.argv[2] or None, user=sys.argv[3] or None, password=sys.argv[4] or None)
            async with Bus(address, BusConfig()) as bus, Scheduler(bus, Hangs()):
                await asyncio.sleep(60)

        asyncio.run(main())
    """)
    address = broker.address
    arguments = [address.urls[0], address.token or "", address.user or "", address.password or ""]
    child = subprocess.Popen(  # noqa: ASYNC220 - it is killed, and only its first line is read
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert (await anyio.to_thread.run_sync(child.stdout.readline)).strip() == "starting"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    starter = Starter()
    async with Scheduler(bus, starter) as scheduler:
        with anyio.fail_after(60):
            await scheduler.wait_leading()
    assert len(starter.runs) == 1
    assert [e.type for e in await told(bus)] == ["schedule.fired"]


async def test_two_schedulers_run_each_slot_once(bus: Bus, broker: EmbeddedBroker) -> None:
    """One leads, one stands by and takes over; each slot gets one event and one run."""
    clock, ann, bob = ManualClock(NEW_YEAR), Starter(), Starter()
    await store(bus, "etl/0", {"cron": "0 * * * *"})
    async with (
        Bus(broker.address, bus.config) as other,
        Scheduler(other, bob, clock=clock, look_up_s=1e9) as standby,
    ):
        with anyio.fail_after(60):
            await standby.wait_leading()
        async with Scheduler(bus, ann, clock=clock, look_up_s=1e9) as first:
            assert not first.is_leading
            await settled(standby, "etl/0")
            await clock.advance(3600)
            await bob.until_asked(1)
            await settled(standby, "etl/0")
            assert ann.asked == []
    async with leading(bus, ann, clock) as scheduler:
        await settled(scheduler, "etl/0")
        await clock.advance(3600)
        await ann.until_asked(1)
    assert (bob.hours, ann.hours) == ([1], [2])
    assert len(await told(bus)) == 2


async def test_a_slot_without_a_run_is_told_with_its_reason(bus: Bus) -> None:
    """Refused by the overlap policy, and a deployment that is not there: `schedule.skipped` says so, once."""
    clock, starter = ManualClock(NEW_YEAR), Starter(refusal="run 42 is still active; overlap is skip")
    await store(bus, "etl/0", {"cron": "0 * * * *", "overlap": "skip"})
    async with leading(bus, starter, clock) as scheduler:
        await settled(scheduler, "etl/0")
        await clock.advance(3600)
        await starter.until_asked(1)
        await settled(scheduler, "etl/0")
        starter.failures.append(UnknownName("deployment", "etl"))
        await clock.advance(3600)
        await until(lambda: told_of(bus, 2))
    first, second = await told(bus, "skipped")
    assert (data(first)["why"], data(first)["reason"]) == (
        "refused",
        "run 42 is still active; overlap is skip",
    )
    assert data(second)["why"] == "failed"
    assert "no deployment named 'etl'" in data(second)["reason"]
    fired = await told(bus, "fired")
    assert [e.causationid for e in (first, second)] == [e.id for e in fired]


async def test_what_cannot_be_reached_is_asked_again(bus: Bus) -> None:
    """An engine that is away for a moment delays the slot and loses nothing; a bug skips the slot and no other."""
    clock = ManualClock(NEW_YEAR)
    starter = Starter(failures=[BusUnavailable("away"), BusUnavailable("away")])
    await store(bus, "etl/0", {"cron": "0 * * * *"})
    async with leading(bus, starter, clock) as scheduler:
        await settled(scheduler, "etl/0")
        await clock.advance(3600)
        await starter.until_asked(1)
        await settled(scheduler, "etl/0")
        starter.failures.append(ZeroDivisionError("a bug"))
        await clock.advance(3600)
        await until(lambda: told_of(bus, 1))
        await settled(scheduler, "etl/0")
        await clock.advance(3600)
        await starter.until_asked(2)
    assert starter.hours == [1, 3]


async def test_slots_of_a_pause_are_not_made_up_for(bus: Bus) -> None:
    """Paused for three hours, also across a restart: the next run is the next slot."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    value = {"cron": "0 * * * *", "catch_up": "all"}
    await store(bus, "etl/0", value)
    async with leading(bus, starter, clock) as scheduler:
        await settled(scheduler, "etl/0")
        await clock.advance(3600)
        await starter.until_asked(1)
        await settled(scheduler, "etl/0")
        await store(bus, "etl/0", value, paused=True)
        await until(lambda: pause_is_written(bus))
        await clock.advance(2 * 3600)
    await clock.advance(3600)
    async with leading(bus, starter, clock) as scheduler:
        await store(bus, "etl/0", value, since=clock.now())
        assert await settled(scheduler, "etl/0") == NEW_YEAR + timedelta(hours=5)
        await clock.advance(3600)
        await starter.until_asked(2)
    assert starter.hours == [1, 5]
    assert await told(bus, "skipped") == []


async def test_new_times_are_not_counted_from_old_progress(bus: Bus) -> None:
    """A yearly schedule made hourly does not run the hours of the year gone by."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    await store(bus, "etl/0", {"cron": "0 1 1 1 *", "catch_up": "all"})
    async with leading(bus, starter, clock) as scheduler:
        await settled(scheduler, "etl/0")
        await clock.advance(3600)
        await starter.until_asked(1)
        await settled(scheduler, "etl/0")
        await clock.advance(100 * 86_400)
        await store(bus, "etl/0", {"cron": "0 * * * *", "catch_up": "all"})
        want = clock.now() + timedelta(hours=1)
        await until(lambda: dict(scheduler.upcoming()).get("etl/0") == want)
    assert len(starter.asked) == 1


async def test_a_clock_that_jumps_is_noticed(bus: Bus) -> None:
    """Wall time steps on while the sleeper sleeps (a suspend, a corrected clock): the slot runs at the next look."""

    class Jumping(ManualClock):
        leap = timedelta(0)

        def now(self) -> datetime:
            return super().now() + self.leap

    clock, starter = Jumping(NEW_YEAR), Starter()
    await store(bus, "etl/0", {"cron": "0 * * * *", "catch_up": "latest"})
    async with Scheduler(bus, starter, clock=clock, look_up_s=30) as scheduler:
        with anyio.fail_after(60):
            await scheduler.wait_leading()
        await settled(scheduler, "etl/0")
        clock.leap = timedelta(hours=7)
        await clock.advance(31)
        await starter.until_asked(1)
        assert await settled(scheduler, "etl/0") == NEW_YEAR + timedelta(hours=8)
        clock.leap = timedelta(0)  # back again: what was decided stays decided
        await clock.advance(61)
        await anyio.wait_all_tasks_blocked()
    assert starter.hours == [7]


async def test_a_broken_definition_harms_no_other_and_is_listed(bus: Bus) -> None:
    """What does not load is named with its error; put right, it fires."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    await bus.bucket("schedules").put(
        "bad/0", b'{"deployment": "bad", "name": "0", "schedule": {"cron": "* *"}}'
    )
    await bus.bucket("schedules").put("worse/0", b"\xff not json")
    await store(bus, "good/0", {"cron": "0 * * * *"})
    async with leading(bus, starter, clock) as scheduler:
        assert set(scheduler.broken) == {"bad/0", "worse/0"}
        assert "2 fields" in scheduler.broken["bad/0"]
        await store(bus, "bad/0", {"cron": "0 * * * *"})
        await settled(scheduler, "bad/0")
        await clock.advance(3600)
        await starter.until_asked(2)
    assert {name for name, _, _ in starter.asked} == {"good/0", "bad/0"}


async def test_progress_of_a_schedule_that_is_gone_is_forgotten(bus: Bus) -> None:
    """Deleted while nobody led: its checkpoint goes, and the same name later starts anew."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    await store(bus, "etl/0", {"cron": "0 * * * *"})
    async with leading(bus, starter, clock) as scheduler:
        await settled(scheduler, "etl/0")
        await clock.advance(3600)
        await starter.until_asked(1)
        await settled(scheduler, "etl/0")
    assert await bus.bucket("checkpoints").keys("schedule/") == ["schedule/etl/0"]
    await bus.bucket("schedules").delete("etl/0")
    async with leading(bus, starter, clock):
        assert await bus.bucket("checkpoints").keys("schedule/") == []


async def test_many_slots_at_once_are_all_run(bus: Bus) -> None:
    """Two hundred schedules of one slot: each gets its run."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    for n in range(200):
        await store(bus, f"d{n}/0", {"cron": "0 * * * *"})
    async with leading(bus, starter, clock, config=TriggersConfig()) as scheduler:
        assert len(scheduler.upcoming()) == 200
        await clock.advance(3600)
        await starter.until_asked(200)
    assert len(starter.runs) == 200


async def test_a_broker_that_is_away_delays_and_loses_nothing(broker: EmbeddedBroker, bus: Bus) -> None:
    """Killed while a slot falls due and started again: one event, one run."""
    clock, starter = ManualClock(NEW_YEAR), Starter()
    await store(bus, "etl/0", {"cron": "0 * * * *"})
    async with leading(bus, starter, clock, lease_ttl_s=30) as scheduler:
        await settled(scheduler, "etl/0")
        pid = broker.pid
        if pid is None:
            pytest.skip("the broker does not say its pid")
        os.kill(pid, signal.SIGKILL)
        await clock.advance(3600)
        with anyio.fail_after(60):
            await starter.until_asked(1)
    assert starter.hours == [1]
    assert [e.type for e in await told(bus)] == ["schedule.fired"]


async def test_a_start_that_waits_holds_up_nobody_else(bus: Bus) -> None:
    """`overlap: queue` may wait for hours in the starter; other schedules run, and leading is not put off."""
    clock, starter = ManualClock(NEW_YEAR), Starter(hold=anyio.Event())
    for n in range(250):
        await store(
            bus, f"slow{n}/0", {"at": (NEW_YEAR + timedelta(minutes=1)).isoformat(), "overlap": "queue"}
        )
    async with leading(bus, starter, clock) as scheduler:
        await clock.advance(60)
        await until(lambda: starter.count == 250)
        hold, starter.hold = starter.hold, None
        assert hold is not None
        await store(bus, "quick/0", {"cron": "0 * * * *"})
        await settled(scheduler, "quick/0")
        await clock.advance(3540)
        await starter.until_asked(1)
        assert starter.asked[0][0] == "quick/0"
    # What was waiting is still asked for, by whoever leads next.
    async with leading(bus, starter, clock):
        await until(lambda: len(starter.runs) == 251)
