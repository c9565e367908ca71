"""Blocks, secrets, variables, serializers and files, used as flows written for Prefect use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hark import Block, Secret, Variable
from hark.bus import Bus
from hark.bus.session import Session
from hark.engine.artifacts import Artifact
from hark.engine.block_kinds import SecretDict
from hark.engine.blocks import BlockNotSavedError, InvalidBlockRegistration, UnknownBlockType
from hark.engine.filesystems import LocalFileSystem, RemoteFileSystem, kept_files
from hark.engine.serializers import (
    CompressedJSONSerializer,
    CompressedPickleSerializer,
    CompressedSerializer,
    JSONSerializer,
    PickleSerializer,
    Serializer,
    serializer_named,
)
from pydantic import BaseModel, Field, SecretStr, ValidationError

pytestmark = pytest.mark.usefixtures("keys_at_home")


class Inner(Block):
    """Something inside.

    Example:
        Inner(size=1)
    """

    size: int
    password: SecretStr = SecretStr("hid")


class Wider(Inner):
    width: int = 2


class Outer(Block):
    inner: Inner
    others: list[Inner] = Field(default_factory=list)
    labels: SecretDict = Field(default_factory=dict)


# --- blocks ---------------------------------------------------------------------------------------------


async def test_a_saved_block_inside_another_is_kept_by_reference(session: Session) -> None:
    """Who loads the outer one gets what the inner one is by then; what was never saved is kept as it is."""
    inner = Inner(size=1)
    await inner.save("shared")
    await Outer(inner=inner, others=[Inner(size=5)]).save("a")
    await Inner(size=2).save("shared", overwrite=True)
    loaded = await Outer.load("a")
    assert (loaded.inner.size, loaded.others[0].size) == (2, 5)
    assert loaded.inner._block_document_name == "shared"
    await Outer(inner=Wider(size=3, width=7)).save("b")
    assert (await Outer.load("b")).inner == Wider(size=3, width=7)


async def test_a_loaded_block_knows_what_it_was_saved_as(session: Session) -> None:
    """So it is saved again without a name, referred to by its id, and stood for by a text."""
    with pytest.raises(BlockNotSavedError):
        Inner(size=1).get_block_placeholder()
    with pytest.raises(ValueError, match="none was given"):
        await Inner(size=1).save()
    await Inner(size=1).save("main")
    block = await Inner.load("main")
    block.size = 9
    await block.save(overwrite=True)
    assert (await Inner.load("main")).size == 9
    assert block.get_block_placeholder() == "prefect.blocks.inner.main"
    by_id: Any = {"$ref": {"block_document_id": block._block_document_id}}
    by_slug: Any = {"$ref": {"block_document_slug": "inner/main"}}

    def in_sync() -> list[int]:
        return [Outer(inner=ref).inner.size for ref in (by_id, by_slug)]

    import asyncio

    assert await asyncio.to_thread(in_sync) == [9, 9]
    assert (await Block.load_from_ref(block._block_document_id)).size == 9
    with pytest.raises(ValueError, match="is not the id of a block"):
        await Block.load_from_ref("nonsense")


async def test_a_block_whose_class_has_changed_is_said_to_be_unfit(session: Session) -> None:
    """As a RuntimeError; without validation what is missing is None."""

    class Changing(Block):
        old: int

    await Changing(old=1).save("c")

    class Changed(Block):
        _block_type_slug = "changing"

        old: int
        new: int

    with pytest.raises(RuntimeError, match="does not fit Changed"):
        await Changed.load("c")
    taken = await Changed.load("c", validate=False)
    assert (taken.old, taken.new) == (1, None)


def test_a_dump_says_of_which_kind_a_block_is() -> None:
    """And is read back as that kind, wherever one of its base is asked for; secrets show when they are asked for."""
    dumped = Wider(size=1, width=3).model_dump()
    assert dumped["block_type_slug"] == "wider"
    assert "block_type_slug" not in Wider(size=1).model_dump(exclude={"block_type_slug"})
    assert set(Wider(size=1).model_dump(include={"size"})) == {"size"}
    assert isinstance(Inner.model_validate(dumped), Wider)
    assert isinstance(Inner(**dumped), Wider)
    assert isinstance(Outer(inner=dumped).inner, Wider)

    class Plain(BaseModel):
        either: Outer | Inner

    assert isinstance(Plain(either=dumped).either, Wider)
    with pytest.raises(ValidationError, match="of kind 'outer'"):
        Inner.model_validate({"size": 1, "block_type_slug": "outer"})
    assert "hid" not in Inner(size=1).model_dump_json() + str(Inner(size=1))
    assert "hid" in Inner(size=1).model_dump_json(context={"include_secrets": True})
    shown = Outer(inner=Inner(size=1), labels={"k": "v"}).model_dump(
        mode="json", context={"include_secrets": True}
    )
    assert (shown["inner"]["password"], shown["labels"]) == ("hid", {"k": "v"})


def test_a_kind_of_block_says_what_it_is() -> None:
    """Its text and example are taken from the docstring; its schema says what is secret and what is a block."""
    assert (Inner.get_description(), Inner.get_code_example()) == ("Something inside.", "Inner(size=1)")
    assert 'Outer.load("BLOCK_NAME")' in Outer.get_code_example()
    assert Block.get_block_class_from_key("inner") is Inner
    with pytest.raises(UnknownBlockType):
        Block.get_block_class_from_key("nonesuch")
    with pytest.raises(InvalidBlockRegistration):
        Block.register_type_and_schema()
    schema = Outer.model_json_schema()
    assert schema["secret_fields"] == ["inner.password", "others.password", "labels.*"]
    assert set(schema["block_schema_references"]) == {"inner", "others"}
    assert "description" not in schema
    assert (Inner.get_block_schema_version(), Inner.get_block_capabilities()) == (
        "non-versioned",
        frozenset(),
    )


async def test_fields_with_other_names_come_back(session: Session) -> None:
    """A block is kept under the names that its class is made with."""

    class Named(Block):
        schema_: str = Field(alias="schema")

    await Named(schema="public").save("n")
    assert (await Named.load("n")).schema_ == "public"


# --- secrets, variables, artifacts ----------------------------------------------------------------------


async def test_a_secret_is_a_block(session: Session, bus: Bus) -> None:
    """A text or JSON, by its class or by its kind, with dashes in its name or not, inside other blocks too."""
    for i, value in enumerate(["s", "12", {"a": [1]}, ["x"]]):
        await Secret(value=value).save(f"my-key-{i}")
        assert (await Secret.load(f"my-key-{i}")).get() == value
    assert "my_key_0" in await bus.bucket("secrets").keys()  # as `{{ secrets.my_key_0 }}`
    assert (await Block.load("secret/my-key-2")).get() == {"a": [1]}
    with pytest.raises(ValueError, match="no secret named"):
        await Secret.load("nothing")
    with pytest.raises(ValueError, match="already in use"):
        await Secret(value="t").save("my-key-0")

    class Holder(Block):
        secret: Secret[Any]

    await Holder(secret=Secret(value="q")).save("h")
    assert (await Holder.load("h")).secret.get() == "q"
    await Secret.delete("my-key-0")
    with pytest.raises(ValueError, match="no secret named"):
        await Secret.delete("my-key-0")
    assert Secret[str](value="x").get() == "x"
    with pytest.raises(ValidationError):
        Secret[int](value="x")
    assert "s3" not in repr(Secret("s3"))


async def test_a_variable_that_is_set_is_given_back(session: Session) -> None:
    """With its name, value and tags."""
    made = await Variable.set("region", {"name": "eu"}, tags=["a"])
    assert (made.name, made.value, made.tags) == ("region", {"name": "eu"}, ["a"])
    with pytest.raises(ValueError, match="no JSON"):
        await Variable.set("other", {1, 2})  # type: ignore[arg-type]


async def test_an_artifact_of_any_type_is_read_back_as_text(session: Session) -> None:
    """As Prefect has it; what it was is beside that."""
    made = await Artifact(type="custom", key="any", data={"a": 1}).create()
    found = await Artifact.get("any")
    assert (found.data, found.content, found.type) == ('{"a": 1}', {"a": 1}, "custom")
    assert (found, found.updated is not None) == (made, True)


# --- serializers and files ------------------------------------------------------------------------------


def test_serializers_are_found_by_their_type() -> None:
    """Those of one's own too, which are pydantic models."""

    class Shout(Serializer):
        type: str = "shout"
        times: int = Field(default=1, ge=1)

        def dumps(self, obj: Any) -> bytes:
            return str(obj).upper().encode() * self.times

        def loads(self, blob: bytes) -> Any:
            return blob.decode()

    class Careful(Shout):
        type: Literal["careful"] = "careful"
        needed: int

    of_type: Any = Serializer
    assert of_type[dict] is Serializer
    made: Any = of_type(type="shout", times=2)
    assert (made.dumps("a"), made) == (b"AA", Shout(times=2))
    assert made.model_dump() == {"type": "shout", "times": 2}
    assert (
        Shout.model_validate_json(made.model_dump_json())
        == made
        == Serializer.model_validate(made.model_dump())
    )
    assert of_type(type="careful", needed="3") == Careful(needed=3)
    assert (
        CompressedSerializer(serializer="shout").loads(CompressedSerializer(serializer=made).dumps("a"))
        == "AA"
    )

    class Holding(BaseModel):
        by: Serializer

    assert (Holding(by=made).by, Holding.model_validate({"by": {"type": "json"}}).by) == (
        made,
        JSONSerializer(),
    )
    for wrong in (
        {"type": "nonesuch"},
        {"type": "careful"},
        {"type": "shout", "times": 0},
        {"type": "shout", "volume": 1},
    ):
        with pytest.raises(ValueError):
            of_type(**wrong)


@pytest.mark.parametrize(
    ("type_", "fields", "kind"),
    [
        ("pickle", {}, PickleSerializer),
        ("json", {}, JSONSerializer),
        ("compressed", {"serializer": "json"}, CompressedSerializer),
        ("compressed/pickle", {}, CompressedPickleSerializer),
        ("compressed/json", {}, CompressedJSONSerializer),
    ],
)
def test_serializers_have_the_published_types(
    type_: str, fields: dict[str, Any], kind: type[Serializer]
) -> None:
    """What is written beside the bytes says more: what is in them, and what they are compressed with."""
    made = Serializer(type=type_, **fields)
    assert (type(made), made.type) == (kind, type_)
    assert serializer_named(made.format).loads(made.dumps([1])) == [1]
    assert made == kind(**fields)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda: PickleSerializer(picklelib="nonesuch"),
            "Failed to import requested pickle library: 'nonesuch'",
        ),
        (
            lambda: PickleSerializer(picklelib="pathlib"),
            "Pickle library at 'pathlib' does not have a 'dumps' method",
        ),
        (
            lambda: CompressedSerializer(serializer="json", compressionlib="json"),
            "does not have a 'compress' method",
        ),
        (lambda: JSONSerializer(dumps_kwargs={"default": str}), "`default` cannot be provided"),
        (lambda: JSONSerializer(loads_kwargs={"object_hook": str}), "`object_hook` cannot be provided"),
        (lambda: setattr(PickleSerializer(), "type", "x"), "frozen"),
        (lambda: CompressedSerializer.model_validate({}), "serializer"),
    ],
)
def test_serializers_refuse_what_they_cannot_work_with(make: Callable[[], object], why: str) -> None:
    """When they are made, not at the first result."""
    with pytest.raises(ValidationError, match=why):
        make()


def test_folders_are_copied_to_a_storage_and_back(tmp_path: Path) -> None:
    """But for what a file of patterns says to leave."""
    source, store, back = tmp_path / "source", tmp_path / "store", tmp_path / "back"
    (source / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.py", "deep/c.txt", "deep/d.py", ".ignore"):
        (source / name).write_text(name)
    (source / ".ignore").write_text("# left here\n*.py\n!/b.py\n.ignore\n")
    ignore = str(source / ".ignore")
    assert kept_files(source, ignore) == [Path("a.txt"), Path("b.py"), Path("deep/c.txt")]
    (source / ".ignore").write_text("deep/\n")
    assert kept_files(source, ignore) == [Path(".ignore"), Path("a.txt"), Path("b.py")]
    (source / ".ignore").write_text("/*.txt\n**/d.*\n")
    assert kept_files(source, ignore) == [Path(".ignore"), Path("b.py"), Path("deep/c.txt")]
    (source / ".ignore").write_text("deep/\n")
    files = LocalFileSystem(basepath=str(store))
    files.put_directory(str(source), "up", ignore)
    files.get_directory("up", str(back))
    assert sorted(path.name for path in back.iterdir()) == [".ignore", "a.txt", "b.py"]
    with pytest.raises(ValueError, match="nothing is stored"):
        files.read_path("none")
    with pytest.raises(ValueError, match="is a folder"):
        files.read_path("up")
    remote = RemoteFileSystem(basepath=f"memory://{tmp_path.name}")
    assert remote.put_directory(str(source), "up") == 5
    remote.get_directory("up", str(back))
    assert (back / "deep" / "d.py").read_text() == "deep/d.py"
    with pytest.raises(ValidationError, match="no base path"):
        RemoteFileSystem(basepath="nowhere")
