"""Variables, secrets, blocks and artifacts: kept, read, shown; from sync and async code."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hark import Block, Secret, Variable, flow, task
from hark.bus import Bus
from hark.bus.session import Session
from hark.config import load_settings
from hark.engine.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from hark.errors import DefinitionError, RefusedError, SecretUnreadable, UnknownName
from pydantic import BaseModel, Field, SecretStr

pytestmark = pytest.mark.usefixtures("keys_at_home")


class Login(BaseModel):
    user: str
    password: SecretStr


class Warehouse(Block):
    host: str
    port: int = 5432
    login: Login
    tags: list[str] = Field(default_factory=list)


async def test_variables_are_json_by_name(session: Session) -> None:
    """Set once, changed only when said so, read with a default, removed."""
    assert await Variable.get("region") is None
    assert await Variable.get("region", default="eu") == "eu"
    await Variable.set("region", {"name": "us", "zones": [1, 2]})
    assert await Variable.get("region") == {"name": "us", "zones": [1, 2]}
    with pytest.raises(RefusedError, match="exists"):
        await Variable.set("region", "x")
    await Variable.set("region", "x", overwrite=True)
    assert await Variable.aget("region") == "x"
    assert await Variable.unset("region")
    assert not await Variable.unset("region")
    with pytest.raises(DefinitionError):
        await Variable.set("a b", 1)
    with pytest.raises(DefinitionError, match="JSON"):
        await Variable.set("ok", object())  # type: ignore[arg-type]

    @flow
    def in_sync() -> object:
        Variable.set("sync", 1)
        return Variable.get("sync")

    assert await asyncio.to_thread(in_sync) == 1


async def test_secrets_are_encrypted_and_do_not_show(session: Session, bus: Bus) -> None:
    """Neither in the broker nor in a repr."""
    await Secret("tops3cret").save("api")
    loaded = await Secret.load("api")
    assert loaded.get() == "tops3cret"
    assert "tops3cret" not in f"{loaded} {loaded!r}"
    entry = await bus.bucket("secrets").get("api")
    assert entry is not None
    assert b"tops3cret" not in entry.value
    with pytest.raises(RefusedError):
        await Secret("y").save("api")
    await Secret("y").save("api", overwrite=True)
    with pytest.raises(UnknownName, match="did you mean 'api'"):
        await Secret.load("apy")


async def test_blocks_come_back_as_they_were(
    session: Session, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed, nested secrets included; by class or by kind; nothing of them readable in the broker."""
    block = Warehouse(host="db", login=Login(user="ann", password=SecretStr("hunter2")), tags=["a"])
    assert await block.save("main") == "warehouse/main"
    loaded = await Warehouse.load("main")
    assert loaded == block
    assert await Block.load("warehouse/main") == block
    assert await Warehouse.aload("warehouse/main") == block
    (entry,) = await bus.bucket("blocks").entries()
    assert b"hunter2" not in entry.value
    with pytest.raises(RefusedError, match="exists"):
        await block.save("main")
    await Warehouse(host="other", login=block.login).save("main", overwrite=True)
    assert (await Warehouse.load("main")).host == "other"
    with pytest.raises(UnknownName, match="did you mean 'warehouse/main'"):
        await Warehouse.load("mian")
    with pytest.raises(DefinitionError, match="kind"):
        await Block.load("main")
    with pytest.raises(DefinitionError, match="is no name"):
        await block.save("Main!")

    @flow
    def in_sync() -> object:
        return Warehouse.load("main").port

    assert await asyncio.to_thread(in_sync) == 5432
    from cryptography.fernet import Fernet

    monkeypatch.setenv("HARK_SECRET_KEY", Fernet.generate_key().decode())
    load_settings.cache_clear()
    with pytest.raises(SecretUnreadable):
        await Warehouse.load("main")
    await Warehouse.adelete("main")
    with pytest.raises(UnknownName):
        await Warehouse.delete("main")


async def artifacts(bus: Bus) -> list[Any]:
    found: list[Any] = []
    async with bus.log.read(["hark.ev.artifact.>"]) as batches:
        async for batch in batches:
            found += [recorded.event for recorded in batch.records]
    return found


async def test_artifacts_are_events_of_their_run(session: Session, bus: Bus) -> None:
    """Of every kind, from flows and tasks, with the run they belong to and its story."""

    @task
    async def inside() -> None:
        await create_table_artifact([{"a": 1}, {"a": 2}], key="table", description="numbers")

    @flow
    async def shows() -> str:
        from hark import runtime

        await create_markdown_artifact("# Hello", key="report")
        await inside()
        await create_link_artifact("https://example.org", link_text="there")
        progress = await create_progress_artifact(10, key="progress")
        await update_progress_artifact(progress, 50)
        await create_image_artifact(b"\x89PNG....")
        return str(runtime.flow_run.id)

    run_id = await shows()
    found = await artifacts(bus)
    kinds = [event.data["artifact"]["type"] for event in found]
    assert kinds == ["markdown", "table", "link", "progress", "progress", "image"]
    assert [event.type for event in found].count("artifact.updated") == 1
    assert {event.data["flow_run"]["id"] for event in found} == {run_id}
    assert {event.correlationid for event in found} == {run_id}
    assert found[1].data["task_run"]["name"].startswith("inside")
    assert found[0].data["task_run"] is None
    assert found[1].data["artifact"]["data"] == [{"a": 1}, {"a": 2}]
    assert found[3].data["artifact"]["id"] == found[4].data["artifact"]["id"]
    assert found[4].subject == "artifact/progress"
    with pytest.raises(DefinitionError, match="key"):
        await create_markdown_artifact("x", key="No Key")
    with pytest.raises(DefinitionError, match="percentage"):
        await create_progress_artifact(float("nan"))

    @flow
    def in_sync() -> None:
        create_markdown_artifact("from sync")

    await asyncio.to_thread(in_sync)
    assert (await artifacts(bus))[-1].data["artifact"]["data"] == "from sync"
