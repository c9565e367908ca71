"""The shape of the system, held by reading its imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RANK = {
    "vocabulary": 0, "error_forms": 0, "errors": 0, "clock": 0, "duration": 1, "sandbox": 1, "template": 1, "config": 1,
    "tracing": 1,
    "bus": 2, "triggers": 3, "engine": 3, "notifications": 3,
    "automations": 4, "storage": 4, "server": 5, "cli": 6, "testing": 7,
    "absent": 7, "dotted": 8,  # above all: it has their names, and imports none of them itself
}  # fmt: skip
ONLY = {
    "nats": {"bus"},
    "aiosqlite": {"storage"},
    "sqlite3": {"storage"},
    "apprise": {"notifications"},
    "opentelemetry": {"tracing"},
    "typer": {"cli"},
    "fastapi": {"server"},
}
LONGEST = 600


@cache
def source_files() -> list[Path]:
    return [
        p
        for room in RANK
        for p in (
            [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))
        )
    ]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports_of(path: Path) -> list[tuple[str, bool, int]]:
    """Return (first word imported, whether it is one of our rooms, line) for each import in a file."""
    found: list[tuple[str, bool, int]] = []
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                words = name.name.split(".")
                ours = words[0] == "hark" and len(words) > 1
                found.append((words[1] if ours else words[0], ours, node.lineno))
        elif isinstance(node, ast.ImportFrom):
            words = (node.module or "").split(".")
            if node.level == depth:  # relative to the root of the package
                names = [words[0]] if node.module else [alias.name for alias in node.names]
                found.extend((name, True, node.lineno) for name in names)
            elif node.level == 0:
                ours = words[0] == "hark" and len(words) > 1
                found.append((words[1] if ours else words[0], ours, node.lineno))
    return found


def test_imports_point_down() -> None:
    """A room imports only rooms of a lower rank (and itself); rooms of one rank meet on the bus."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in source_files()
        for name, ours, line in imports_of(path)
        if ours and name in RANK and name != room_of(path) and RANK[room_of(path)] <= RANK[name]
        and not (RANK[room_of(path)] <= 1 and RANK[name] <= 1)
    ]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("library", sorted(ONLY))
def test_a_library_is_imported_by_its_own_room_only(library: str) -> None:
    """Foreign clients stop at their adapter: one room each."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in source_files()
        for name, ours, line in imports_of(path)
        if not ours and name == library and room_of(path) not in ONLY[library]
    ]
    assert wrong == []


def test_every_room_is_packaged() -> None:
    """A folder with Python in it that the wheel leaves out would work here and nowhere else."""
    import tomllib

    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {p.parent for p in source_files() if p.parent != ROOT}
    assert {"hark." + ".".join(f.relative_to(ROOT).parts) for f in folders} <= declared


def test_nothing_but_config_reads_the_environment() -> None:
    """Settings are read once, in one place; a room is handed its slice."""
    allowed = {"config.py", "testing/rig.py"}  # the harness *sets* it, and puts it back
    wrong = []
    for path in source_files():
        relative = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("environ", "getenv")
                and relative not in allowed
            ):
                line = path.read_text().splitlines()[node.lineno - 1]
                if (
                    "# env:" not in line
                ):  # a reason is given where a child's environment is built or `{{ env.X }}` read
                    wrong.append(f"{relative}:{node.lineno}")
    assert wrong == []


def test_no_drawers() -> None:
    """A thing that has no room yet needs a name, not a drawer."""
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [str(p.relative_to(ROOT)) for p in source_files() if p.name in drawers] == []


def test_no_file_is_long() -> None:
    """Past 600 lines there are two ideas in one coat: in tests, benchmarks and examples as well."""
    others = [p for folder in ("tests", "benchmarks", "examples") for p in (ROOT / folder).rglob("*.py")]
    lengths = {p: len(p.read_text().splitlines()) for p in [ROOT / "__init__.py", *source_files(), *others]}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > LONGEST} == {}
