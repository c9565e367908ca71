"""Standing for election."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from hark.bus import Bus
from hark.bus.candidate import Candidate, Deposed
from hark.bus.lease import Grant
from hark.errors import BusUnavailable


class Unlucky(Candidate[int]):
    """Loses its first two terms before it has caught up."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus, lease="unlucky", role="unlucky", name=None)
        self.begin = anyio.Event()
        self.terms = 0

    async def _lead(self, grant: Grant, on_ready: Callable[[int], None]) -> None:
        await self.begin.wait()
        self.terms += 1
        if self.terms == 1:
            raise Deposed("before it was ready")
        if self.terms == 2:
            raise ExceptionGroup("of parts", [ExceptionGroup("of a part", [BusUnavailable("it is away")])])
        on_ready(self.terms)
        await anyio.sleep_forever()


async def test_who_waits_for_a_term_hears_of_the_next_when_the_first_is_lost(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """A lease may be lost before its holder has caught up; the wait goes on. What was wrong is said, however deep it came."""
    async with Unlucky(bus) as candidate, anyio.create_task_group() as group:
        group.start_soon(candidate.leading)
        await anyio.wait_all_tasks_blocked()
        candidate.begin.set()
        with anyio.fail_after(60):
            await candidate.leading()
    assert candidate.terms == 3
    (away,) = [r for r in caplog.records if r.message == "unlucky.waits_for_broker"]
    assert away.__dict__["error"] == "it is away"
