"""Checkpoints on a real broker: what the live one names is never written over, and nothing is left lying about."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psutil
import pytest
from hark.automations.folding import checkpoint
from hark.automations.folding.catching_up import why_behind
from hark.automations.folding.checkpoint import Checkpoints
from hark.automations.folding.fold import Fold, FoldConfig
from hark.automations.model import parse_automation
from hark.bus import Bus
from hark.bus.candidate import Deposed

CONFIG = FoldConfig()


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_INLINE_BYTES", 10)


async def put_down(checkpoints: Checkpoints, *, seq: int) -> None:
    fold = Fold(CONFIG)
    fold.seq = seq
    definitions = fold.dump_definitions() if checkpoints.needs_definitions(fold.generation) else None
    await checkpoints.write(
        generation=fold.generation,
        definitions=definitions,
        state=in_parts(fold.dump_state()),
        incarnation="log",
    )


async def in_parts(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def found(bus: Bus) -> int:
    restored = await Checkpoints(bus, CONFIG).take_over()
    assert restored is not None
    return restored.fold.seq


@pytest.mark.parametrize("writes", [1, 2, 3])
async def test_a_deposed_leader_does_not_write_over_its_successors_objects(bus: Bus, writes: int) -> None:
    """Its own write is refused, and what the successor put down is what the next one reads."""
    old, new = Checkpoints(bus, CONFIG), Checkpoints(bus, CONFIG)
    await old.take_over()
    await put_down(old, seq=1)
    await new.take_over()
    for n in range(writes):
        await put_down(new, seq=10 + n)
    for _ in range(2):
        with pytest.raises(Deposed):
            await put_down(old, seq=666)
    assert await found(bus) == 9 + writes


async def test_objects_that_nothing_names_are_removed(bus: Bus) -> None:
    """The one before when the next is stored; what a crash has left when somebody takes over."""
    first = Checkpoints(bus, CONFIG)
    await first.take_over()
    for seq in (1, 2, 3):
        await put_down(first, seq=seq)
        assert len(first._large._known) == 2  # definitions and state
    left = await first._large.put(b"put, and then it died")
    second = Checkpoints(bus, CONFIG)
    restored = await second.take_over()
    assert restored is not None
    assert restored.fold.seq == 3
    assert not await bus.objects.exists(left)
    before = set(second._large._known)
    assert len(before) == 2
    await put_down(second, seq=4)
    assert [
        name for name in sorted(before | second._large._known) if await bus.objects.exists(name)
    ] == sorted(second._large._known)
    assert await found(bus) == 4
    assert len(await bus.bucket("checkpoints").keys("automations.state.objects.")) == 1


def test_keys_that_change_while_a_checkpoint_is_taken_cost_little_memory() -> None:
    """What is put aside of each is as large as it is: it stood in a piece of 4 KB, and the process was killed for it."""
    fold = Fold(CONFIG)
    counting = {"on": "a.b", "for_each": "data.k", "count": 3, "within": "1d"}
    fold.adopt(parse_automation(counting, name="r"))

    def see(keys: range, seq: int) -> None:
        for n in keys:
            row = {"type": "a.b", "id": f"e{seq}-{n}", "data": {"k": f"key-{n}"}}
            fold.step(row, seq=seq + n, recorded=1000.0)

    see(range(10_000), 1)
    snapshot = fold.snapshot()
    before = psutil.Process().memory_info().rss
    see(range(20_000), 100_000)  # ten thousand it knew, as many it did not
    assert psutil.Process().memory_info().rss - before < 25_000_000
    fold.end_snapshot(snapshot)


async def test_terms_that_end_before_they_have_caught_up_are_said(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """The fourth time in a row, with what to do; caught up once, they are forgotten."""
    for _ in range(3):
        await Checkpoints(bus, CONFIG).take_over()
    assert "does_not_catch_up" not in caplog.text
    assert await why_behind(bus) is None
    last = Checkpoints(bus, CONFIG)
    await last.take_over()
    assert "automations.does_not_catch_up" in caplog.text
    assert "has ended 3 times in a row" in str(await why_behind(bus))
    caplog.clear()
    await last.settled()
    assert await why_behind(bus) is None
    await Checkpoints(bus, CONFIG).take_over()
    assert "does_not_catch_up" not in caplog.text
