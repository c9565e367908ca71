"""Waiting for single things in the log, thousands at once."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from hark.bus import Bus, Event
from hark.bus.hearing import ALONE
from hark.bus.subject import flow_run_filter
from hark.errors import LogRewound


def ended(run_id: str) -> Event:
    return Event(type="flow-run.completed", source="/test", subject=f"flow-run/{run_id}", data={})


async def consumers(bus: Bus) -> int:
    return int(str((await bus.connection.api("CONSUMER.NAMES.HARK"))["total"]))


async def test_two_thousand_listeners_cost_the_broker_a_handful_of_consumers(bus: Bus) -> None:
    """Each hears of its own and of nothing else; afterwards nothing is left on the broker or in the process."""
    ready, most = asyncio.Event(), 2_000
    listening = 0

    async def one(word: str) -> str:
        nonlocal listening
        async with bus.log.hear(flow_run_filter("*"), word) as records:
            listening += 1
            if listening == most:
                ready.set()
            return (await anext(aiter(records))).subject.rpartition(".")[2]

    tasks = [asyncio.create_task(one(f"r{number}")) for number in range(most)]
    with anyio.fail_after(60):
        await ready.wait()
        assert await consumers(bus) <= ALONE + 1
        await bus.log.append_many([ended(f"r{number}") for number in reversed(range(most))])
        assert await asyncio.gather(*tasks) == [f"r{number}" for number in range(most)]
    assert await consumers(bus) == 0


async def test_listeners_that_come_and_go_do_not_disturb_each_other(bus: Bus) -> None:
    """One that is cancelled, also while it begins, leaves the others listening; those who come later listen too."""

    async def one(word: str) -> int:
        async with bus.log.hear(flow_run_filter("*"), word) as records:
            return (await anext(aiter(records))).seq

    with anyio.fail_after(30):
        for _ in range(3):
            many = [asyncio.create_task(one("same")) for _ in range(3 * ALONE)]
            await asyncio.sleep(0)
            for task in many[::2]:
                task.cancel()
            await asyncio.wait(many[::2])
            while not all(task.done() for task in many):
                # Again and again: who is not listening yet does not hear of what was before.
                last = (await bus.log.append(ended("same"))).seq
                await asyncio.sleep(0)
            assert {task.result() <= last for task in many[1::2]} == {True}
    assert await consumers(bus) == 0


async def test_what_ends_the_reader_is_told_to_everybody(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that was set back: each listener is told, and who listens afterwards has a reader that works."""
    from hark.bus import feed

    ready = asyncio.Event()
    listening = 0

    async def one() -> object:
        nonlocal listening
        async with bus.log.hear(flow_run_filter("*"), "r1") as records:
            listening += 1
            if listening == ALONE + 3:
                ready.set()
            return await anext(aiter(records))

    with anyio.fail_after(30):
        tasks = [asyncio.create_task(one()) for _ in range(ALONE + 3)]
        await ready.wait()
        with monkeypatch.context() as patch:

            async def rewound(self: object) -> None:
                raise LogRewound("HARK", after=9, head=1)

            patch.setattr(feed.Feed, "_open", rewound)
            for peer in [one for peers in bus.log._feeds.values() for one in peers]:
                peer._lost("test")
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {LogRewound}
        again = [asyncio.create_task(one()) for _ in range(ALONE + 3)]
        while not all(task.done() for task in again):
            await bus.log.append(ended("r1"))
            await asyncio.sleep(0)
        assert {type(task.result()).__name__ for task in again} == {"Recorded"}
