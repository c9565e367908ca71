"""Tasks that make assets say so in the log."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from typing import Any

import pytest
from anyio import to_thread
from hark import flow, task
from hark.bus import Bus
from hark.bus.session import Session, use_session
from hark.engine.assets import Asset, AssetProperties, MaterializingTask, add_asset_metadata, materialize
from hark.engine.cache_policies import INPUTS
from hark.errors import MissingContextError

ORDERS = "s3://lake/orders.parquet"


@pytest.fixture
async def session(bus: Bus) -> AsyncIterator[Session]:
    """The test's own loop as the session of this process."""
    with use_session(bus) as found:
        yield found


async def told(bus: Bus) -> list[tuple[str, str | None, Any]]:
    await bus.publisher.barrier()
    found = []
    async with bus.log.read(["hark.ev.asset.>"]) as batches:
        async for batch in batches:
            found += [(one.event.type, one.event.subject, one.event.data) for one in batch.records]
    return found


@materialize(
    Asset(key=ORDERS, properties=AssetProperties(name="Orders", owners=["ann"])), by="dbt", asset_deps=["db://shop/orders"]
)  # fmt: skip
def load(fail: bool = False) -> int:
    add_asset_metadata(ORDERS, {"rows": 1})
    Asset(key=ORDERS).add_metadata({"day": "monday", "rows": 2})
    if fail:
        raise ValueError("no")
    return 2


async def test_the_end_of_a_task_says_what_became_of_its_assets(bus: Bus, session: Session) -> None:
    """Which run, by what, out of which others, and what the code said of them."""

    @flow
    def loads() -> Any:
        return load.submit().result()

    assert await to_thread.run_sync(loads) == 2
    read, made = await told(bus)
    assert read[:2] == ("asset.referenced", "db://shop/orders")
    assert made[:2] == ("asset.materialization.succeeded", ORDERS)
    data = made[2]
    assert data.pop("task_run")["name"].startswith("load-")
    assert data == {
        "task": "load", "by": "dbt", "properties": {"name": "Orders", "owners": ["ann"]},
        "made_of": ["db://shop/orders"], "metadata": {"day": "monday", "rows": 2},
    }  # fmt: skip


async def test_what_failed_made_nothing_and_what_is_cached_says_nothing(bus: Bus, session: Session) -> None:
    """A failed task says that its assets were not made."""
    cached = load.with_options(cache_policy=INPUTS, assets=[ORDERS], name="cached")

    @flow
    def loads() -> Any:
        load.submit(fail=True).wait()
        cached.submit().result()
        return cached.submit().result()

    assert await to_thread.run_sync(loads) == 2
    words = [(type_.rpartition(".")[2], data["task"]) for type_, _, data in await told(bus)]
    assert words == [
        ("referenced", "load"),
        ("failed", "load"),
        ("referenced", "cached"),
        ("succeeded", "cached"),
    ]


def test_a_materializing_task_is_a_task() -> None:
    """Also where nothing is tracked; copies make what it makes, or what they are told to."""
    assert isinstance(load, MaterializingTask)
    assert load() == 2
    assert load.fn is not None
    other = load.with_options(assets=["file://a"], retries=2, on_completion=[])
    assert ([one.key for one in other.assets], other.materialized_by, other.retries) == (
        ["file://a"],
        "dbt",
        2,
    )
    assert isinstance(other, MaterializingTask)
    back = pickle.loads(pickle.dumps(load))
    assert [one.key for one in back.assets] == [ORDERS]


def test_what_makes_no_sense_is_refused() -> None:
    """An asset without an address, none at all, and metadata of something else."""
    with pytest.raises(TypeError, match="takes the assets"):
        materialize()
    with pytest.raises(ValueError, match="known by an address"):
        materialize("orders")
    with pytest.raises(RuntimeError, match="said by the task"):
        add_asset_metadata(ORDERS, {})

    @materialize(ORDERS)
    def makes() -> None:
        add_asset_metadata("s3://lake/others", {})

    with pytest.raises(ValueError, match="not 's3://lake/others'"):
        makes()

    @task
    def plain() -> None:
        add_asset_metadata(ORDERS, {})

    with pytest.raises(MissingContextError):
        plain()
