"""Where results are kept, how they are written, who says so, and what happens when they are gone."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest
from hark import flow, task
from hark.bus import Bus
from hark.bus.session import use_session
from hark.config import load_settings
from hark.engine.blocks import Block
from hark.engine.cache_policies import INPUTS, CachePolicy
from hark.engine.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem
from hark.engine.persistence.shelf import path_of
from hark.engine.results import ResultStore
from hark.engine.serializers import CompressedSerializer, JSONSerializer, PickleSerializer, Serializer
from hark.engine.states import State
from hark.errors import DefinitionError, ResultMissing, ResultStorageFailed
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

needs_fsspec = pytest.mark.skipif(
    find_spec("fsspec") is None and "CI" not in os.environ, reason="fsspec is not installed"
)


@pytest.fixture(params=["alone", "tracked"])
async def anywhere(request: pytest.FixtureRequest, bus: Bus) -> AsyncIterator[str]:
    """Without a broker, and with one."""
    if request.param == "tracked":
        with use_session(bus):
            yield "tracked"
    else:
        yield "alone"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for results, with nothing else in it."""
    return tmp_path / "results"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Settings that a test may change, before it asks for them."""
    load_settings.cache_clear()
    yield monkeypatch
    load_settings.cache_clear()


def kept_in(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Return what stands in each file of a folder: the line about it, and its bytes."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            line, _, data = path.read_bytes().partition(b"\n")
            found.append((orjson.loads(line), data))
    return found


# --- serializers --------------------------------------------------------------------------------------


class Point(BaseModel):
    x: int
    at: dt.datetime


@dataclasses.dataclass
class Pair:
    one: int
    other: str


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=9)
    | st.dates()
    | st.datetimes(timezones=st.just(dt.UTC))
    | st.uuids()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.builds(Point, x=st.integers(-(2**40), 2**40), at=st.datetimes(timezones=st.just(dt.UTC)))
    | st.builds(Pair, st.integers(), st.text())
    | st.sets(st.integers()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["", "compressed", "compressed:lzma"]))
def test_json_gives_back_objects(value: Any, compressed: str) -> None:
    """Dates, models, dataclasses, bytes and sets are of their own class again."""
    serializer: Serializer = JSONSerializer()
    if compressed:
        serializer = CompressedSerializer(
            serializer=serializer, compressionlib=compressed.partition(":")[2] or "zlib"
        )
    back = serializer.loads(serializer.dumps(value))
    assert back == value
    assert type(back) is type(value)


def test_json_of_what_it_has_no_form_for() -> None:
    """Exceptions come back; a class that is gone leaves the mapping; a lock is refused."""
    serializer = JSONSerializer()
    back = serializer.loads(serializer.dumps({"e": ValueError("no")}))
    assert repr(back["e"]) == "ValueError('no')"
    assert serializer.loads(b'{"__class__":"gone.Away","data":1}') == {"__class__": "gone.Away", "data": 1}
    assert serializer.loads(serializer.dumps([Decimal("1.5"), uuid.UUID(int=5)])) == [
        Decimal("1.5"), uuid.UUID(int=5),
    ]  # fmt: skip
    with pytest.raises(TypeError):
        serializer.dumps(asyncio.Lock())
    with pytest.raises(ValueError, match="object_encoder"):
        JSONSerializer(dumps_kwargs={"default": str})
    with pytest.raises(ValueError, match="does not have a 'dumps' method"):
        PickleSerializer(picklelib="json.decoder")


# --- keys as paths ------------------------------------------------------------------------------------


@given(st.text(min_size=1))
def test_no_key_leaves_its_folder(key: str) -> None:
    """Whatever a key is, it is kept under a path inside, of a length that file systems take; different keys apart."""
    path = path_of(key)
    assert not path.startswith("/")
    assert all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in path.split("/"))
    assert path == key or path.startswith("key-")
    assert path_of(key + "x") != path


# --- storages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["pickle", "json", "compressed/json", None])
async def test_a_task_keeps_its_result_where_it_is_told_to(
    anywhere: str, place: Path, serializer: str | None
) -> None:
    """In a file that says what it is, and a second run with the same key takes it."""
    ran: list[int] = []

    @task(
        result_storage=place,
        result_serializer=serializer,
        result_storage_key="{flow_run.flow_name}/{parameters[n]}-{task_run.task_name}",
    )
    async def rows(n: int) -> dict[str, int]:
        ran.append(n)
        return {"rows": n}

    @flow
    async def load(n: int) -> Any:
        state = await rows(n, return_state=True)
        return state.name, await state.aresult()

    assert await load(1) == ("Completed", {"rows": 1})
    assert await load(1) == ("Cached", {"rows": 1})
    assert ran == [1]
    [(about, _)] = kept_in(place)
    assert (place / "load" / "1-rows").is_file()
    assert (about["key"], about["format"]) == ("load/1-rows", serializer or "json")


async def test_what_a_flow_says_holds_for_its_tasks_and_subflows(anywhere: str, place: Path) -> None:
    """Storage, serializer and persist_result are inherited; a task's own word comes first."""
    outer, inner = place / "outer", place / "inner"

    @task
    async def plain() -> str:
        return "plain"

    @task(persist_result=False)
    async def unkept() -> str:
        return "unkept"

    @task(result_storage=inner, result_serializer="pickle")
    async def own() -> str:
        return "own"

    @flow
    async def child() -> str:
        await plain()
        return "child"

    @flow(result_storage=outer, result_serializer="json")
    async def parent() -> str:
        await unkept()
        await own()
        await child()
        return "parent"

    state: State = await parent(return_state=True)
    assert await state.aresult() == "parent"
    outers = {data for about, data in kept_in(outer) if about["format"] == "json"}
    expected = {b'"plain"'} | ({b'"child"', b'"parent"'} if anywhere == "tracked" else set())
    assert outers == expected
    assert [about["format"] for about, _ in kept_in(inner)] == ["pickle"]


async def test_the_settings_say_what_nobody_else_does(
    bus: Bus, place: Path, settings: pytest.MonkeyPatch
) -> None:
    """HARK_ENGINE__PERSIST_RESULTS, RESULT_STORAGE and RESULT_SERIALIZER."""
    settings.setenv("HARK_ENGINE__PERSIST_RESULTS", "true")
    settings.setenv("HARK_ENGINE__RESULT_STORAGE", str(place))
    settings.setenv("HARK_ENGINE__RESULT_SERIALIZER", "compressed/json")

    @task
    async def one(n: int) -> int:
        return n

    @flow
    async def go() -> int:
        return await one(5)

    with use_session(bus):
        assert await go() == 5
    assert {about["format"] for about, _ in kept_in(place)} == {"compressed/json"}


@needs_fsspec
async def test_anything_that_fsspec_reaches(anywhere: str) -> None:
    """A URL is enough; what a store in this process keeps, ``memory://``, stands for all."""
    base = f"memory://results-{uuid.uuid4().hex}"

    @task(result_storage=base, cache_policy=INPUTS)
    async def double(n: int) -> int:
        return 2 * n

    @flow
    async def go() -> Any:
        state: State = await double(4, return_state=True)
        assert await state.aresult() == 8
        return state.name

    assert [await go(), await go()] == ["Completed", "Cached"]
    files = RemoteFileSystem(basepath=base)
    await files.write_path("a/b", b"x")
    assert await files.read_path("a/b") == await files.read_path(f"{base}/a/b") == b"x"
    for wrong in ("../a", "/a", "other://a"):
        with pytest.raises(ValueError, match="no path inside"):
            await files.read_path(wrong)


def test_a_scheme_that_nobody_knows_says_what_to_install(place: Path) -> None:
    """The task fails, with the reason; so does what is no storage at all, at once."""
    store = ResultStore("nosuchscheme://bucket")
    with pytest.raises(DefinitionError) as caught:
        store.read("k")
    assert "pip install" in caught.value.hint
    with pytest.raises(DefinitionError, match="result_storage cannot be"):
        task(lambda: 1, result_storage="results")
    with pytest.raises(ValueError, match="no serializer"):
        flow(lambda: 1, result_serializer="yaml")
    with pytest.raises(ValueError, match="no path inside"):
        LocalFileSystem(basepath=str(place)).read_path("../x")


class Shelved(WritableFileSystem):
    """A storage of one's own."""

    contents: dict[str, bytes] = Field(default_factory=dict)

    async def read_path(self, path: str) -> bytes:
        if path == "broken":
            raise RuntimeError("on fire")
        return self.contents[path]

    async def write_path(self, path: str, content: bytes) -> None:
        self.contents[path] = content


async def test_a_storage_of_ones_own(anywhere: str) -> None:
    """Sync or async, saved or not; what it raises is told with its name."""
    mine = Shelved()

    @task(result_storage=mine, cache_policy=INPUTS)
    def one(n: int) -> int:
        return n

    @flow
    def go() -> list[str]:
        return [one(7, return_state=True).name for _ in range(2)]

    assert await asyncio.to_thread(go) == ["Completed", "Cached"]
    assert len(mine.contents) == 1
    with pytest.raises(ResultStorageFailed, match="on fire"):
        await ResultStore(mine).aread("broken")


async def test_a_saved_block_is_named(bus: Bus, place: Path) -> None:
    """``"local-file-system/main"``, from any process that knows the broker."""
    with use_session(bus):
        name = await LocalFileSystem(basepath=str(place)).save("main")
        assert name == "local-file-system/main"
        assert await Block.load(name) == LocalFileSystem(basepath=str(place))

        @task(result_storage="local-file-system/main")
        def one() -> int:
            return 1

        @flow
        def go() -> int:
            return one()

        assert await asyncio.to_thread(go) == 1
    assert len(kept_in(place)) == 1


async def test_a_damaged_or_lost_file_is_found_out(place: Path) -> None:
    """The error names the key; a cached result that is damaged is made anew."""
    store = ResultStore(place)
    await store.awrite({"a": 1}, "k")
    path = place / "k"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ResultMissing, match=r"'k'.*SHA-256"):
        await store.aread("k")
    path.unlink()
    with pytest.raises(ResultMissing, match=r"'k'.*there is none"):
        await store.aread("k")
    soon = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    await store.awrite(1, "k", expiration=soon)
    assert not await store.aexists("k")


async def test_a_resumed_run_reads_its_results_from_their_storage(bus: Bus, place: Path) -> None:
    """A retry of the flow takes what the first try kept; what has gone is an error that names run and key."""
    ran: list[str] = []
    tries: list[int] = []

    @task(result_storage=place)
    async def step(name: str) -> str:
        ran.append(name)
        return name

    @flow(retries=1)
    async def go(loses: bool) -> str:
        value = await step("a")
        tries.append(1)
        if len(tries) == 1:
            if loses:
                for path in place.iterdir():
                    path.unlink()
            raise ValueError("again")
        return value

    with use_session(bus):
        assert await go(False) == "a"
        assert ran == ["a"]
        tries.clear()
        with pytest.raises(ResultMissing, match=r"of run .* under key 'step-0-"):
            await go(True)


async def test_a_key_storage_knows_what_there_is(place: Path) -> None:
    """``configure(key_storage=…)``: lines in one place, results in another."""
    policy: CachePolicy = INPUTS.configure(key_storage=place / "keys")

    @task(cache_policy=policy, result_storage=place / "results")
    async def one(n: int) -> int:
        return n

    assert [(await one(3, return_state=True)).name for _ in range(2)] == ["Completed", "Cached"]
    [(line, nothing)] = kept_in(place / "keys")
    [(again, data)] = kept_in(place / "results")
    assert (line, nothing, data) == (again, b"", b"3")
