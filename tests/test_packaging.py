"""What is built is what was written."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def undeclared() -> set[str]:
    """The modules that are installed here, and that a plain ``pip install`` of Hark does not bring along."""
    wanted, todo = set(), ["hark"]
    while todo:
        name = canonicalize_name(todo.pop())
        if name in wanted:
            continue
        wanted.add(name)
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return {
        module
        for module, owners in packages_distributions().items()
        if not wanted.intersection(canonicalize_name(owner) for owner in owners)
    }


ONLY_DECLARED = """
import sys

class OnlyDeclared:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in UNDECLARED:
            raise ModuleNotFoundError(f"{name} is of no declared dependency", name=name)

sys.meta_path.insert(0, OnlyDeclared)
"""


def test_an_installed_wheel_imports_every_room(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, away from the checkout, where nothing can be imported but what Hark declares to need."""
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    # What Hark needs comes from here: to install it again would take most of a minute.
    install = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)],
        capture_output=True,
        text=True,
    )
    assert install.returncode == 0, install.stderr[-2000:]
    [packages] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "zz_needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (packages / "sitecustomize.py").write_text(f"UNDECLARED = {undeclared()!r}{ONLY_DECLARED}")
    code = "import importlib, hark; assert '/env/' in hark.__file__, hark.__file__\n" + "".join(
        f"importlib.import_module('hark.{room}')\n" for room in ROOMS
    )
    code += "import pytest"
    ran = subprocess.run(
        [python, "-W", "error::SyntaxWarning", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.stderr.endswith("ModuleNotFoundError: pytest is of no declared dependency\n"), ran.stderr[
        -2000:
    ]
    version = subprocess.run(
        [tmp_path / "env" / "bin" / "hark", "version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert version.returncode == 0, version.stderr[-2000:]
