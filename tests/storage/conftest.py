"""Fixtures of this room: a made-up log, and a read model folded from one."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest
from hark.bus.event import Recorded
from hark.storage import Queries
from hark.storage.fold import fold
from hark.storage.store import Store

MakeHistory: TypeAlias = Callable[[int, int], list[Recorded]]
FoldInto: TypeAlias = "Callable[[Path, Sequence[Recorded], Sequence[int]], object]"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("storage_history", Path(__file__).with_name("history.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_HISTORY = _load()


@pytest.fixture(scope="session")
def make_history() -> MakeHistory:
    """``make_history(count, seed)``: messages as the log would hold them."""
    made: MakeHistory = _HISTORY.history
    return made


@pytest.fixture
async def model(tmp_path: Path, make_history: MakeHistory) -> AsyncIterator[Queries]:
    """Questions to a read model folded from 1 500 made-up events."""
    path = tmp_path / "hark.db"
    async with Store(path, stream="HARK@test") as store:
        await store.commit(fold(make_history(1500, 1)))
        async with Queries(path) as queries:
            yield queries
