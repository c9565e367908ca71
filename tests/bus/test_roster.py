"""Rosters: definitions in a bucket, each served by a task of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import orjson
from hark.bus import Bus
from hark.bus.roster import Roster, Standing
from hark.errors import BusUnavailable


@dataclass(frozen=True)
class Thing:
    name: str
    paused: bool = False
    number: int = 0


class Stage:
    """Serves things, and notes what it is told."""

    def __init__(self) -> None:
        self.serving: dict[str, int] = {}
        self.changes: list[tuple[str, int | None, int | None]] = []
        self.fails = 0
        self.moved = anyio.Event()

    def note(self) -> None:
        self.moved.set()
        self.moved = anyio.Event()

    async def serve(self, thing: Thing, standing: Standing, ready: Callable[[], None]) -> None:
        if self.fails:
            self.fails -= 1
            raise BusUnavailable("not yet")
        self.serving[thing.name] = thing.number
        ready()
        self.note()
        try:
            await anyio.sleep_forever()
        finally:
            del self.serving[thing.name]

    async def changed(self, name: str, before: Thing | None, now: Thing | None) -> None:
        self.changes.append((name, before.number if before else None, now.number if now else None))
        self.note()

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(60):
            while not holds():
                await self.moved.wait()


def load(value: bytes) -> Thing:
    return Thing(**orjson.loads(value))


@asynccontextmanager
async def serving(bus: Bus, stage: Stage) -> AsyncGenerator[Roster[Thing, Standing]]:
    async with Roster(
        bus.bucket("sinks"), kind="thing", at_work="serving", load=load, standing=Standing,
        serve=stage.serve, changed=stage.changed, again_s=(0.0,),
    ) as roster:  # fmt: skip
        yield roster


async def define(bus: Bus, thing: Thing) -> None:
    await bus.bucket("sinks").put(thing.name, orjson.dumps(thing))


async def test_what_is_defined_is_served_when_it_is_entered(bus: Bus) -> None:
    """All that was there before is at work, paused ones and broken ones are listed, and leaving stops everything."""
    stage = Stage()
    await define(bus, Thing("a"))
    await define(bus, Thing("b", paused=True))
    await bus.bucket("sinks").put("c", b"{")
    async with serving(bus, stage) as roster:
        assert stage.serving == {"a": 0}
        assert {name: s.state for name, s in roster.standings.items()} == {
            "a": "serving",
            "b": "paused",
            "c": "broken",
        }
        assert roster.standings["c"].error
        assert roster.definitions == {"a": Thing("a"), "b": Thing("b", paused=True)}
    assert not stage.serving


async def test_changes_are_in_force_and_told_in_order(bus: Bus) -> None:
    """The old one is over before the new one begins; what is written again unchanged goes on."""
    stage = Stage()
    async with serving(bus, stage) as roster:
        await define(bus, Thing("a", number=1))
        await stage.until(lambda: stage.serving == {"a": 1})
        await define(bus, Thing("a", number=1))
        await define(bus, Thing("a", number=2))
        await stage.until(lambda: stage.serving == {"a": 2})
        await bus.bucket("sinks").delete("a")
        await bus.bucket("sinks").delete("never")
        await stage.until(lambda: ("a", 2, None) in stage.changes)
        assert not stage.serving
        assert "a" not in roster.standings
    assert stage.changes[:3] == [("a", None, 1), ("a", 1, 2), ("a", 2, None)]


async def test_one_that_cannot_be_served_yet_holds_up_no_other(bus: Bus) -> None:
    """Its error is shown, and it is tried again until it works."""
    stage = Stage()
    stage.fails = 3
    await define(bus, Thing("a"))
    await define(bus, Thing("b"))
    async with serving(bus, stage) as roster:
        await stage.until(lambda: stage.serving == {"a": 0, "b": 0})
        assert {s.state for s in roster.standings.values()} == {"serving"}
        assert not any(s.error for s in roster.standings.values())
