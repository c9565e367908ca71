"""Holding back while the broker is full: one looks, the others wait, and all go on at once."""

from __future__ import annotations

import logging

import anyio
import pytest
from hark.automations.acting import room as room_module
from hark.automations.acting.room import Room
from hark.errors import StreamFull

FULL = StreamFull("$KV.hark_outbox.x", why="maximum bytes exceeded")


async def test_while_there_is_no_room_one_at_a_time_looks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However many found out together, it is said once for each look; when one gets through, all do."""
    monkeypatch.setattr(room_module, "_PAUSES_S", (0.01,))
    caplog.set_level(logging.INFO)
    room, looked, through = Room(), 0, 0

    async def one() -> None:
        nonlocal looked, through
        while True:
            looks = await room.wait()
            looked += looks
            if looked < 3:
                room.close(FULL, looked=looks)
                continue
            room.open()
            through += 1
            return

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tg:
            for _ in range(50):
                tg.start_soon(one)
    assert (looked, through) == (3, 50)
    assert [r.message for r in caplog.records] == ["outbox.full"] * 3 + ["outbox.has_room"]
