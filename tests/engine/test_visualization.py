"""Pictures of flows: what is in them, what runs for them, and what cannot be drawn."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from hark import flow, task
from hark.engine.visualization import (
    FlowVisualizationError,
    GraphvizExecutableNotFoundError,
    GraphvizImportError,
    Picture,
    VisualizationUnsupportedError,
    VizTask,
)

ran: list[str] = []


@task
def load(name: Any) -> Any:
    ran.append(name)


@task(viz_return_value=[4, 5])
def numbers() -> list[int]:
    raise AssertionError("it does not run")


@task
async def add(*given: Any, more: Any = None) -> Any:
    ran.append("add")


@flow
def inner(x: Any) -> Any:
    ran.append("inner")


def test_a_picture_has_the_calls_and_what_goes_between_them() -> None:
    """Also in lists and mappings; a stand-in is known again, subflows are one call, and nothing of it runs."""

    @flow
    def etl(day: str) -> None:
        first, second = load(day), load("b")
        found = numbers()
        for _ in found:
            load(found)
        inner({"both": [first, second]})

    assert etl.generate_mermaid_graph("mon").splitlines() == [
        "flowchart TD",
        '    load_0["load-0"]',
        '    load_1["load-1"]',
        '    numbers_0["numbers-0"]',
        '    load_2["load-2"]',
        '    load_3["load-3"]',
        '    inner_0["inner-0"]',
        "    numbers_0 --> load_2",
        "    numbers_0 --> load_3",
        "    load_0 --> inner_0",
        "    load_1 --> inner_0",
    ]
    assert ran == []
    assert load("after") is None
    assert ran.pop() == "after"


async def test_an_async_flow_is_drawn_in_its_loop() -> None:
    """Its tasks are awaited, and it is; sync flows are, in async code."""

    @flow
    async def whole() -> None:
        one = await add(1)
        await asyncio.gather(add(one, more=one), add(2))

    @flow
    def plain() -> None:
        load("x")

    lines = (await whole.generate_mermaid_graph()).splitlines()
    assert lines[1:] == [
        '    add_0["add-0"]',
        '    add_1["add-1"]',
        '    add_2["add-2"]',
        "    add_0 --> add_1",
    ]
    assert "load-0" in await plain.generate_mermaid_graph()
    assert ran == []


def test_what_has_one_object_for_all_is_not_taken_for_a_link() -> None:
    """A small number or a truth value that stands for a result says nothing of where another comes from."""

    @flow
    def small() -> None:
        n = load.with_options(viz_return_value=3)("a")
        load(n)

    assert "-->" not in small.generate_mermaid_graph()


def test_submitting_and_mapping_cannot_be_drawn() -> None:
    """And say so; afterwards they work as ever."""

    @flow
    def submits() -> None:
        load.submit("a")

    @flow
    def maps() -> None:
        load.map(["a"])

    with pytest.raises(VisualizationUnsupportedError, match=r"`task\.submit\(\)` is not currently supported"):
        submits.visualize()
    with pytest.raises(VisualizationUnsupportedError, match=r"`task\.map\(\)` is not currently supported"):
        maps.generate_mermaid_graph()
    submits()
    assert ran.pop() == "a"


def test_code_that_uses_a_result_is_told_what_to_do() -> None:
    """With the error it came to."""

    @flow
    def uses() -> None:
        load("a")[0]

    with pytest.raises(TypeError, match="viz_return_value"):
        uses.visualize()


def test_a_picture_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the program ``dot``, which here only says what it was given; where that, or the library, is missing, it is said."""
    monkeypatch.chdir(tmp_path)

    @flow(name="my-flow")
    def drawn() -> None:
        load(load("a"))

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(GraphvizExecutableNotFoundError, match="not on the PATH"):
        drawn.visualize()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "dot"
    program.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        "pathlib.Path(sys.argv[-1] + '.png').write_bytes(pathlib.Path(sys.argv[-1]).read_bytes())\n"
    )
    program.chmod(0o755)
    assert drawn.visualize() == "my-flow.png"
    assert '"load-0" -> "load-1"' in (tmp_path / "my-flow.png").read_text()
    program.write_text(f"#!{sys.executable}\nraise SystemExit('it did not work')\n")
    with pytest.raises(FlowVisualizationError, match="my-flow"):
        drawn.visualize()
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(GraphvizImportError, match="not installed") as caught:
        drawn.visualize()
    assert isinstance(caught.value, ImportError)


def test_a_call_without_a_stand_in_gives_the_call() -> None:
    """It can be passed on, and that is all."""
    picture = Picture()
    first = picture.add("a", {}, None)
    second = picture.add("a", {"x": (first,)}, None)
    assert isinstance(second, VizTask)
    assert (second.name, second.upstream_tasks) == ("a-1", [first])
