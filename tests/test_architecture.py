"""The shape of the system, held by reading its imports."""

from __future__ import annotations

import ast
from collections import Counter
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
PACKAGES = {
    "engine": {
        "options": 0, "sync_async": 0, "code": 1, "limits": 1, "persistence": 2, "runs": 2, "calls": 3, "life": 4, "utilities": 4,
        "executors": 5, "pausing": 5, "background_tasks": 6, "dispatching": 6, "client_calls": 7, "workers": 7,
    },
    "automations": {"matching": 0, "forms": 1, "migrate": 1, "folding": 2, "acting": 3, "analysis": 4},
}  # fmt: skip
"""Rooms that are sorted into packages. The modules above those carry the names people write, and are on no floor of theirs."""
LARGEST = 40
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


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports_of(path: Path) -> list[tuple[str, bool, int]]:
    """Return (first word imported, whether it is one of our rooms, line) for each import in a file."""
    found: list[tuple[str, bool, int]] = []
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(tree_of(path)):
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


@cache
def imported_first(path: Path) -> frozenset[Path]:
    """Return our files that a file imports when it is imported itself, wherever in it that is not a function."""
    found: set[Path] = set()
    inside: list[ast.AST] = [tree_of(path)]
    while inside:
        node = inside.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inside.extend(node.orelse)
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [folder.joinpath(alias.name) for alias in node.names]
            found |= {f for p in (folder, *names) if (f := p.with_suffix(".py")).is_file()}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def package_of(path: Path) -> str:
    """Return the package of its room that a file is in; nothing for the modules above the packages, and in other rooms."""
    room, *inner = path.relative_to(ROOT).parts
    return inner[0] if room in PACKAGES and len(inner) > 1 else ""


@pytest.mark.parametrize("room", sorted(PACKAGES))
def test_packages_of_a_room_import_what_is_below_them(room: str) -> None:
    """When they are imported, that is; inside a function and for types alone, an arrow may point up."""
    rank, files = PACKAGES[room], [path for path in source_files() if room_of(path) == room]
    assert {package_of(path) for path in files} - {""} == set(rank)
    wrong = [
        f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
        for path in files
        for other in imported_first(path)
        if room_of(other) == room and (here := package_of(path)) and (there := package_of(other)) and here != there
        and rank[here] <= rank[there]
    ]  # fmt: skip
    assert wrong == []


def test_no_imports_go_in_a_circle() -> None:
    """A file whose import leads back to it works or not by which of them somebody imports first."""
    open_: list[Path] = []
    done: set[Path] = set()
    circles: list[str] = []

    def visit(path: Path) -> None:
        if path in open_:
            circles.append(" > ".join(str(p.relative_to(ROOT)) for p in [*open_[open_.index(path) :], path]))
        elif path not in done:
            open_.append(path)
            for other in sorted(imported_first(path)):
                visit(other)
            done.add(open_.pop())

    for path in source_files():
        visit(path)
    assert circles == []


def test_no_folder_of_a_sorted_room_is_a_list() -> None:
    """Past forty files nobody finds their way by reading the names."""
    sizes = Counter(path.parent for path in source_files() if room_of(path) in PACKAGES)
    assert {str(folder.relative_to(ROOT)): n for folder, n in sizes.items() if n > LARGEST} == {}


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
        for node in ast.walk(tree_of(path)):
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
