"""Tasks that stay for the next piece of work."""

from __future__ import annotations

import anyio
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from hark.automations.acting.hands import Hands


async def test_one_task_does_what_comes_one_after_the_other() -> None:
    """And others what comes meanwhile; of many that have nothing more to do some stay."""
    by: dict[int, int] = {}
    may_end = anyio.Event()

    async def do(work: int) -> None:
        by[work] = anyio.get_current_task().id
        if work >= 10:
            await may_end.wait()

    hands = Hands(do)
    async with anyio.create_task_group() as tg:
        for work in range(3):
            hands.begin(tg, work)
            await wait_all_tasks_blocked()
        for work in range(10, 30):
            hands.begin(tg, work)
        await wait_all_tasks_blocked()
        may_end.set()
        await wait_all_tasks_blocked()
        assert len(hands._idle) == 8
        tg.cancel_scope.cancel()
    assert len({by[n] for n in range(3)}) == 1
    assert len({by[n] for n in range(10, 30)}) == 20
    assert hands._idle == []


async def test_what_was_given_is_begun_also_when_all_is_cancelled() -> None:
    """It leaves behind what it has to: the one that is called and has not begun, and one that is given to nobody yet."""
    begun: list[int] = []
    left: list[int] = []

    async def do(work: int) -> None:
        begun.append(work)
        try:
            await checkpoint()
        finally:
            left.append(work)

    hands = Hands(do)
    async with anyio.create_task_group() as tg:
        hands.begin(tg, 0)
        await wait_all_tasks_blocked()
        hands.begin(tg, 1)
        tg.cancel_scope.cancel()
        hands.begin(tg, 2)
    assert sorted(begun) == sorted(left) == [0, 1, 2]
