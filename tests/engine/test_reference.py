"""Where decorated functions are found by other processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hark.engine.code.reference import Reference, imported


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def made(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "jobs_of_mine.py").write_text(text)
    return str(folder / "jobs_of_mine.py")


def test_modules_of_one_name_are_told_apart_by_their_files(tmp_path: Path) -> None:
    """A process that has met one of them finds what stands in the other, in either order and as often as asked."""
    one = made(tmp_path / "one", "def a(): return 'one'\n")
    other = made(tmp_path / "other", "def a(): return 'other'\ndef b(): return __name__\n")
    for _ in range(2):
        assert Reference("jobs_of_mine", "a", one).resolve()() == "one"
        assert Reference("jobs_of_mine", "a", other).resolve()() == "other"
    assert imported("jobs_of_mine", other) is imported("jobs_of_mine", other)
    assert imported("jobs_of_mine", None) is imported("jobs_of_mine", one)
    assert Reference("jobs_of_mine", "b", other).resolve()().startswith("jobs_of_mine@")


def test_a_file_that_is_not_here_is_known_by_its_name(tmp_path: Path) -> None:
    """Another machine has the module elsewhere; and a file that does not import is tried again."""
    one = made(tmp_path / "one", "x = 1\n")
    assert imported("jobs_of_mine", one).x == 1
    assert imported("jobs_of_mine", str(tmp_path / "gone" / "jobs_of_mine.py")).x == 1
    broken = made(tmp_path / "broken", "raise ValueError('not yet')\n")
    with pytest.raises(ValueError, match="not yet"):
        imported("jobs_of_mine", broken)
    Path(broken).write_text("x = 2\n")
    assert imported("jobs_of_mine", broken).x == 2
