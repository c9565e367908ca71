"""What is built is what was written."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a clean copy of the tracked files (and those about to be)."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        target = source / name
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return next(out.glob("hark-*.whl"))


def test_the_wheel_holds_every_room_and_its_data(wheel: Path) -> None:
    """Code, SQL, page templates and the type marker are all inside; tests and benchmarks are not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = {
        str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*") if p.suffix in SHIPPED
    }
    assert {f"hark/{name}" for name in tracked} <= names
    assert "hark/py.typed" in names
    entry_points = next(n for n in names if n.endswith(".dist-info/entry_points.txt"))
    assert (
        "[pytest11]\nhark.testing.plugin = hark.testing.plugin"
        in zipfile.ZipFile(wheel).read(entry_points).decode()
    )
    assert not [n for n in names if n.startswith(("hark/tests", "hark/benchmarks", "tests", "benchmarks"))]


ROOMS = ("bus", "triggers", "engine", "notifications", "automations", "storage", "server", "cli", "testing")
SHIPPED = {".py", ".sql", ".html", ".css"}


@pytest.mark.timeout(300)
def test_an_installed_wheel_imports_every_room(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, away from the checkout, each room imports from the installed package."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = subprocess.run(
        [python, "-m", "pip", "install", "-q", str(wheel)], capture_output=True, text=True
    )
    assert install.returncode == 0, install.stderr[-2000:]
    code = "import importlib, hark; assert '/env/' in hark.__file__, hark.__file__\n" + "".join(
        f"importlib.import_module('hark.{room}')\n" for room in ROOMS
    )
    ran = subprocess.run(
        [python, "-W", "error::SyntaxWarning", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    version = subprocess.run(
        [tmp_path / "env" / "bin" / "hark", "version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert version.returncode == 0, version.stderr[-2000:]
