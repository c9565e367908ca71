"""A schedule has one run for each slot, whenever `hark up` is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
from hark.bus import Event

from tests.acceptance.conftest import Start, at, watching

FLOW = """
    from hark import flow

    @flow
    async def tick() -> None: ...
    """
CONFIG = """
    deployments:
      tick: {flow: "flows.py:tick", schedules: [{interval: 2s, catch_up: all}]}
    """


async def test_each_slot_has_one_run_when_hark_up_is_killed_around_it(
    write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """kill -9 the moment a slot is told, just before one, and at one: no slot is missed, none runs twice."""
    write(flows__py=FLOW, hark__yaml=CONFIG)
    home = tmp_path / "home"
    service = start()
    async with watching(home) as watch:
        await watch.until(lambda: len(watch.events("schedule.fired")) >= 1)
        service.kill()  # told, and perhaps nothing asked for
    for before_s in (0.01, 0.0):
        service = start()
        async with watching(home) as watch:
            count = len(watch.events("flow-run.completed"))
            await watch.until(lambda c=count: len(watch.events("flow-run.completed")) > c)  # type: ignore[misc]
            now = datetime.now(UTC)
            slot = datetime.fromtimestamp((now.timestamp() // 2 + 1) * 2, UTC)
            await anyio.sleep((slot - now).total_seconds() - before_s)
            service.kill()
    start()
    async with watching(home) as watch:
        fired = len(watch.events("schedule.fired"))
        await watch.until(lambda: len(watch.events("schedule.fired")) >= fired + 3)
        last = max(str(at(e, "slot")) for e in watch.events("schedule.fired"))
        await watch.until(
            lambda: last in {str(at(e, "run__scheduled_at")) for e in watch.events("flow-run.completed")}
        )
        await watch.until(
            lambda: not _open(watch.events("schedule.fired"), watch.events("flow-run.completed"), last)
        )
        slots = Counter(str(at(e, "slot")) for e in watch.events("schedule.fired"))
        runs = Counter(str(at(e, "run__scheduled_at")) for e in watch.events("flow-run.scheduled"))
        ends = Counter(str(e.subject) for e in watch.events("flow-run.completed"))
    wanted = {slot for slot in slots if slot <= last}
    first = datetime.fromisoformat(min(wanted))
    every = int((datetime.fromisoformat(last) - first) / timedelta(seconds=2)) + 1
    assert len(wanted) == every, "a slot was left out"
    assert {slots[slot] for slot in wanted} == {1}
    assert {runs[slot] for slot in wanted} == {1}
    assert set(ends.values()) == {1}


def _open(fired: list[Event], done: list[Event], last: str) -> set[str]:
    """Return the slots up to the last whose runs are not over."""
    over = {str(at(e, "run__scheduled_at")) for e in done}
    return {str(at(e, "slot")) for e in fired if str(at(e, "slot")) <= last} - over
