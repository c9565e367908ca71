"""Parts are started together, restarted when they crash, and stopped in order."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hark.bus import Bus
from hark.clock import ManualClock
from hark.config import StorageConfig
from hark.errors import BusUnavailable, StreamFull
from hark.server.supervisor import Part, Supervisor
from hark.storage import Projector


class Flaky:
    """A part that crashes when told to, and remembers its lives."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told
        self.crash = anyio.Event()
        self.started = anyio.Event()
        self.fail_at_start = False

    @asynccontextmanager
    async def life(self) -> AsyncGenerator[Flaky, None]:
        if self.fail_at_start:
            raise OSError("no room")
        self.told.append(f"{self.name} up")
        async with anyio.create_task_group() as tg:

            async def loop() -> None:
                await self.crash.wait()
                self.crash = anyio.Event()
                raise ValueError("boom")

            tg.start_soon(loop)
            self.started.set()
            try:
                yield self
            finally:
                self.told.append(f"{self.name} down")
                tg.cancel_scope.cancel()


def is_ready(supervisor: Supervisor) -> bool:
    return supervisor.is_ready


async def test_parts_stop_in_the_order_of_their_rank() -> None:
    """All are up when it is entered; doors close before what stands behind them."""
    told: list[str] = []
    parts = [
        Part(n, Flaky(n, told).life, stop_rank=r) for n, r in (("readers", 2), ("doors", 0), ("effects", 1))
    ]
    async with Supervisor(parts) as supervisor:
        assert supervisor.is_ready
        assert sorted(told) == ["doors up", "effects up", "readers up"]
        assert supervisor.running("doors").name == "doors"
    assert told[3:] == ["doors down", "effects down", "readers down"]


async def test_a_crashed_part_is_started_again() -> None:
    """While it is down the service is not ready and says which part it is and why."""
    told: list[str] = []
    flaky, steady = Flaky("flaky", told), Flaky("steady", told)
    async with Supervisor([Part("flaky", flaky.life), Part("steady", steady.life)]) as supervisor:
        flaky.started = anyio.Event()
        flaky.crash.set()
        while is_ready(supervisor):
            await supervisor.changed()
        assert supervisor.report()["flaky"] == {"state": "down", "restarts": 1, "error": "ValueError: boom"}
        assert supervisor.running("flaky") is None
        assert supervisor.running("steady") is not None
        with anyio.fail_after(60):
            await flaky.started.wait()
            while not is_ready(supervisor):
                await supervisor.changed()
        assert supervisor.report()["flaky"] == {"state": "running", "restarts": 1}
    assert told.count("flaky up") == 2


async def test_a_part_that_cannot_start_stops_all() -> None:
    """Starting is when a wrong setting shows: the error comes out, and nothing stays behind."""
    told: list[str] = []
    broken, steady = Flaky("broken", told), Flaky("steady", told)
    broken.fail_at_start = True
    with pytest.raises(BaseExceptionGroup) as caught:
        async with Supervisor([Part("steady", steady.life), Part("broken", broken.life)]):
            pytest.fail("it must not come up")
    assert caught.group_contains(OSError, match="no room")
    assert told in ([], ["steady up", "steady down"])


async def test_a_first_start_that_finds_something_unavailable_is_tried_again() -> None:
    """A broker that is slow to answer is no wrong setting, and no reason to give up."""
    tries = 0

    @asynccontextmanager
    async def slow() -> AsyncGenerator[None, None]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise BusUnavailable("the broker did not answer in 5 s")
        if tries == 2:
            raise ExceptionGroup("loops", [BusUnavailable("the broker did not answer in 5 s")])
        yield

    with anyio.fail_after(60):
        async with Supervisor([Part("slow", slow)]) as supervisor:
            assert supervisor.is_ready
    assert tries == 3


@pytest.mark.parametrize(
    "error",
    [
        ExceptionGroup("loops", [BusUnavailable("no answer"), ValueError("boom")]),
        StreamFull("hark.ev", why="maximum bytes exceeded"),
    ],
)
async def test_a_first_start_that_waiting_does_not_help_is_not_tried_again(error: Exception) -> None:
    """Something else went wrong as well, or what is full stays full."""
    tries = 0

    @asynccontextmanager
    async def broken() -> AsyncGenerator[None, None]:
        nonlocal tries
        tries += 1
        if tries:
            raise error
        yield

    with pytest.raises(BaseExceptionGroup):
        async with Supervisor([Part("broken", broken)]):
            pytest.fail("it must not come up")
    assert tries == 1


async def test_a_first_start_is_not_tried_again_for_ever() -> None:
    """After its time the error comes out, for whoever started the service to see."""

    errors = [BusUnavailable("no answer")]

    @asynccontextmanager
    async def gone() -> AsyncGenerator[None, None]:
        for error in errors:
            raise error
        yield

    with pytest.raises(BaseExceptionGroup) as caught:
        async with Supervisor([Part("gone", gone)], first_start_s=0.1):
            pytest.fail("it must not come up")
    assert caught.group_contains(BusUnavailable, match="no answer")


async def test_a_part_that_will_not_stop_is_cut_short() -> None:
    """After its time it is cancelled, and the others are stopped all the same."""

    @asynccontextmanager
    async def stubborn() -> AsyncGenerator[None, None]:
        yield
        await anyio.sleep_forever()

    told: list[str] = []
    with anyio.fail_after(60):
        async with Supervisor(
            [Part("stubborn", stubborn, stop_s=0.05), Part("other", Flaky("other", told).life, stop_rank=1)],
            clock=ManualClock(),
        ):
            pass
    assert told == ["other up", "other down"]


async def test_a_read_model_that_was_just_opening_leaves_no_thread(bus: Bus, home: Path) -> None:
    """Another part that cannot start takes everything down at any moment; the process could not end otherwise."""

    @asynccontextmanager
    async def broken(turns: int) -> AsyncGenerator[None, None]:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        if turns >= 0:
            raise OSError("no room")
        yield

    for turns in (0, 1, 2, 5, 10, 20, 40, 80):
        parts = [
            Part("projector", lambda: Projector(bus, home / "hark.sqlite", StorageConfig())),
            Part("broken", partial(broken, turns)),
        ]
        with pytest.raises(BaseExceptionGroup):
            async with Supervisor(parts):
                pass
