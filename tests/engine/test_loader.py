"""Loading flows from files and modules."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hark.engine.code.loader import Facts, Loader, facts_of, find_source
from hark.errors import DefinitionError, MissingFile, UnknownName

HEAD = """
class F:
    def __init__(self, fn): self.fn = fn
    def __call__(self): return self.fn()
"""


@pytest.fixture(autouse=True)
def _imports_put_back() -> Iterator[None]:
    """What a test imports is gone afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(root: Path, name: str, text: str) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text(HEAD + text)
    # The file system's clock may be coarser than two writes of a test are apart.
    if before:
        os.utime(file, ns=(before + 1_000_000, before + 1_000_000))
    return file


def test_a_file_is_imported_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    """The same module as long as the file is the same; the new code as soon as it is not."""
    write(tmp_path, "flows/etl.py", "etl = F(lambda: 1)")
    loader = Loader()
    first = loader.load("flows/etl.py:etl", str(tmp_path))
    assert first() == 1
    assert loader.load("flows/etl.py:etl", str(tmp_path)) is first
    write(tmp_path, "flows/etl.py", "etl = F(lambda: 2)")
    assert loader.is_stale(str(tmp_path))
    assert loader.load("flows/etl.py:etl", str(tmp_path))() == 2


def test_a_change_in_a_module_that_was_imported_counts_too(tmp_path: Path) -> None:
    """A helper beside the flow's file, or at the root, is reloaded with it."""
    write(tmp_path, "flows/beside_it.py", "N = 1")
    write(tmp_path, "at_root.py", "M = 10")
    write(tmp_path, "flows/etl.py", "import beside_it, at_root\netl = F(lambda: beside_it.N + at_root.M)")
    loader = Loader()
    assert loader.load("flows/etl.py:etl", str(tmp_path))() == 11
    write(tmp_path, "flows/beside_it.py", "N = 2")
    assert loader.load("flows/etl.py:etl", str(tmp_path))() == 12


def test_roots_do_not_see_each_others_modules(tmp_path: Path) -> None:
    """Two projects with a module of the same name each get their own, in any order."""
    for name, number in (("a", 1), ("b", 2)):
        write(tmp_path / name, "common_name.py", f"N = {number}")
        write(tmp_path / name, "etl.py", "import common_name\nn = common_name.N\netl = F(lambda: n)")
    loader = Loader()
    assert [loader.load("etl.py:etl", str(tmp_path / name))() for name in "abab"] == [1, 2, 1, 2]


def test_a_failed_import_is_tried_again(tmp_path: Path) -> None:
    """What went wrong comes through as it is, leaves nothing behind, and mending the file is enough."""
    write(tmp_path, "etl.py", "import broken_helper\netl = F(lambda: 1)")
    write(tmp_path, "broken_helper.py", "1 / 0")
    loader = Loader()
    with pytest.raises(ZeroDivisionError):
        loader.load("etl.py:etl", str(tmp_path))
    assert not {"etl", "broken_helper"} & set(sys.modules)
    write(tmp_path, "broken_helper.py", "")
    assert loader.load("etl.py:etl", str(tmp_path))() == 1


def test_a_module_is_found_by_its_dotted_name(tmp_path: Path) -> None:
    """``package.module:function``, looked for below the root first, without importing to find it."""
    write(tmp_path, "some_pkg/__init__.py", "")
    file = write(tmp_path, "some_pkg/inner.py", "etl = F(lambda: 5)")
    assert find_source("some_pkg.inner:etl", str(tmp_path)).file == file
    assert "some_pkg" not in sys.modules
    assert Loader().load("some_pkg.inner:etl", str(tmp_path))() == 5


def test_a_file_does_not_take_the_name_of_a_known_module(tmp_path: Path) -> None:
    """A flow in ``json.py`` or ``pytest.py`` must not replace those modules for everybody."""
    for name in ("json", "pytest"):
        write(tmp_path, f"{name}.py", "etl = F(lambda: 1)")
        assert find_source(f"{name}.py:etl", str(tmp_path)).module.startswith("hark_flow_")
    write(tmp_path, "flows/etl.py", "")
    assert find_source("flows/etl.py:etl", str(tmp_path)).module == "flows.etl"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Each mistake in an entrypoint gets an error that says which."""
    write(tmp_path, "etl.py", "etl = F(lambda: 1)\ndef plain(): pass")
    loader, path = Loader(), str(tmp_path)
    with pytest.raises(DefinitionError, match="not an entrypoint"):
        loader.load("etl.py", path)
    with pytest.raises(DefinitionError, match=r"no file .*nope\.py"):
        loader.load("nope.py:etl", path)
    with pytest.raises(UnknownName, match="did you mean 'etl'"):
        loader.load("etl.py:etll", path)
    with pytest.raises(DefinitionError, match=r"not a flow: .* names a function"):
        loader.load("etl.py:plain", path)


@pytest.mark.parametrize(
    ("text", "what", "facts"),
    [
        ("@flow\nasync def f(): ...", "f", Facts("loop")),
        ("@flow\ndef f(): ...", "f", Facts("process")),
        ("def f(): ...\nasync def f(): ...", "f", Facts("loop")),
        ("class A:\n    @flow\n    async def f(self): ...", "A.f", Facts("loop")),
        ("@flow(retries=2, crash_retries=7)\nasync def f(): ...", "f", Facts("loop", 7)),
        ("@flow(crash_retries=N)\ndef f(): ...", "f", Facts("process")),
        ("f = flow(g)", "f", Facts("process")),
        ("this is not python", "f", Facts("process")),
    ],
)
def test_how_a_flow_runs_is_read_from_its_text(tmp_path: Path, text: str, what: str, facts: Facts) -> None:
    """Async functions run in the loop; everything else, and whatever is unclear, in a process."""
    (tmp_path / "f.py").write_text(text)
    assert replace(facts_of(find_source(f"f.py:{what}", str(tmp_path))), parameter_schema=None) == facts
    assert facts_of(find_source("gone.py:f", str(tmp_path))) == Facts("process")


def test_a_module_is_that_of_the_root_that_asks_for_it(tmp_path: Path) -> None:
    """Also one that flows of another root have imported while they ran; what only another root has is not found."""
    loader = Loader()
    for name in ("a", "b"):
        write(tmp_path / name, "flows.py", "def f():\n    import parts\n    return parts.N\nf = F(f)\n")
        write(tmp_path / name, "parts.py", f"N = {name!r}")
    write(tmp_path / "b", "only_here.py", "N = 'b'")
    roots = {name: str(tmp_path / name) for name in ("a", "b")}
    for name, path in roots.items():
        flow = loader.load("flows.py:f", path)
        for other in reversed(roots):
            assert other == loader.module("parts", roots[other]).N
        loader.load("flows.py:f", path)
        assert flow() == name
    assert loader.module("only_here", roots["b"]).N == "b"
    with pytest.raises(MissingFile, match="belongs to another deployment"):
        loader.module("only_here", roots["a"])
    with pytest.raises(ModuleNotFoundError):
        loader.module("nowhere", roots["a"])
    assert loader.module("json", roots["a"]) is sys.modules["json"]


def test_what_another_root_imported_while_it_ran_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """Nobody has seen that import; the module is kept for the root it belongs to."""
    loader = Loader()
    for name in ("a", "b"):
        write(tmp_path / name, "flows.py", "def f():\n    import parts\n    return parts.N\nf = F(f)\n")
        write(tmp_path / name, "parts.py", f"N = {name!r}")
    assert loader.load("flows.py:f", str(tmp_path / "a"))() == "a"
    parts = sys.modules["parts"]
    assert loader.module("parts", str(tmp_path / "b")).N == "b"
    assert loader.module("parts", str(tmp_path / "a")) is parts
