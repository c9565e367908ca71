"""Finding a flow by its entrypoint: reading how it runs without importing it, importing it, noticing changes.

``path/file.py:function`` is a file below a root folder, ``package.module:function`` a module found there or on the import
path. Files are imported under the dotted name they have below the root, so that what the flow pickles can be read back
by another process that loads the same flow.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import DefinitionError, MissingFile, MissingFlow, MissingFlowError
from .entrypoint import split_entrypoint
from .lane import LOOP, PROCESS, Lane
from .signature import schema_of

__all__ = ["Facts", "Loader", "Source", "facts_of", "find_source"]

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the code of an entrypoint is.

    Attributes:
        root: absolute folder that relative entrypoints, and imports, begin at.
        file: the file; None for a module that has none (a C extension) or was not found.
        module: the name it is imported under.
        what: the function's name in the module, dotted for a method.
    """

    root: Path
    file: Path | None
    module: str
    what: str
    is_file: bool


def find_source(entrypoint: str, path: str | None = None) -> Source:
    """Return where the code of an entrypoint is, without importing anything.

    Args:
        path: the folder a deployment's code is in; the working folder by default.
    Raises:
        DefinitionError: not an entrypoint.
    """
    try:
        where, what = split_entrypoint(entrypoint)
    except ValueError as exc:
        raise DefinitionError(str(exc)) from exc
    root = _root(path)
    if where.endswith(".py") or "/" in where:
        return _file_source(root, where, what)
    return Source(root, _find_module(where, root), where, what, is_file=False)


def _root(path: str | None) -> Path:
    if path and path.startswith("~"):
        return Path(os.path.abspath(Path(path).expanduser()))
    path = path or "."
    return _absolute(path, "" if os.path.isabs(path) else os.getcwd())


@lru_cache(maxsize=1024)
def _absolute(path: str, working: str) -> Path:
    # Asked several times for each run, and ten times what the answer costs.
    return Path(os.path.abspath(os.path.join(working, path)))


@lru_cache(maxsize=1024)
def _file_source(root: Path, where: str, what: str) -> Source:
    # Remembered also because the name a file was first imported under has to stay the same.
    file = Path(os.path.abspath(root / Path(where).expanduser()))
    return Source(root, file, _module_name(root, file), what, is_file=True)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a flow's text says of it, without importing it.

    Attributes:
        lane: ``LOOP`` if the function is written ``async def``. Whatever cannot be told by looking (a missing file, a
            flow made by calling something) is ``PROCESS``, where any flow can run and a failing import is reported.
        crash_retries: what its decorator says; None if it says nothing, or not with a plain number.
        parameter_schema: what the function takes, as far as its text tells; None if it does not.
    """

    lane: Lane = PROCESS
    crash_retries: int | None = None
    parameter_schema: dict[str, Any] | None = None


def facts_of(source: Source) -> Facts:
    """Return what the text of a flow says of it. Reads the file only when it has changed."""
    if source.file is None:
        return Facts()
    stamp = _stamp(source.file)
    return _facts_in(str(source.file), stamp, source.what) if stamp else Facts()


@lru_cache(maxsize=1024)
def _facts_in(file: str, stamp: Stamp, what: str) -> Facts:
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return Facts()
    body: list[ast.stmt] = tree.body
    found: ast.stmt | None = None
    is_method = "." in what
    for name in what.split("."):
        found = None
        for node in body:  # the last definition of a name is the one that counts
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
                found = node
        body = found.body if isinstance(found, ast.ClassDef) else []
    if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        return Facts()
    return Facts(
        LOOP if isinstance(found, ast.AsyncFunctionDef) else PROCESS,
        _crash_retries(found.decorator_list),
        None if is_method else schema_of(found),
    )


def _crash_retries(decorators: list[ast.expr]) -> int | None:
    for decorator in decorators:
        for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
            value = keyword.value
            if (
                keyword.arg == "crash_retries"
                and isinstance(value, ast.Constant)
                and isinstance(value.value, int)
            ):
                return value.value
    return None


@dataclass(slots=True)
class _Loaded:
    """The modules one root has brought in, and the files they were read from as they were then."""

    stamps: dict[Path, Stamp | None] = field(default_factory=dict)
    modules: dict[str, ModuleType] = field(default_factory=dict)


class Loader:
    """Imports flows, again when a file below their root has changed.

    Flows of different roots may have modules of the same name: those of a root are in ``sys.modules`` while a flow
    of that root is imported, and set aside when another root's turn comes. Thread-safe.
    """

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        """For who loads from an event loop, so that many who want the same do not each take a thread to find it there."""
        self._lock = threading.RLock()
        self._roots: dict[Path, _Loaded] = {}
        self._current: Path | None = None

    def load(self, entrypoint: str, path: str | None = None) -> Any:
        """Import the module of an entrypoint, if it is not imported already and unchanged, and return the flow.

        The import runs the file: whatever it raises comes through as it is.

        Raises:
            DefinitionError: not an entrypoint, or there is no such file.
            MissingFlowError: the module has nothing of this name, or something else.
        """
        source = find_source(entrypoint, path)
        with self._lock:
            loaded = self._enter(source.root)
            if self._stale(loaded):
                self._unload(loaded)
            module = sys.modules.get(source.module) if source.module in loaded.modules else None
            if module is None:
                module = self._import(source, loaded)
        return self._flow_in(module, source, entrypoint)

    def loaded(self, entrypoint: str, path: str | None = None) -> Any | None:
        """Return the flow if ``load`` would import nothing for it, else None. Never waits.

        Raises:
            DefinitionError, MissingFlow: as ``load``.
        """
        source = find_source(entrypoint, path)
        if not self._lock.acquire(blocking=False):
            return None  # somebody is importing
        try:
            known = self._roots.get(source.root) if self._current == source.root else None
            module = known.modules.get(source.module) if known else None
            if known is None or module is None or self._stale(known):
                return None
        finally:
            self._lock.release()
        return self._flow_in(module, source, entrypoint)

    def _flow_in(self, module: ModuleType, source: Source, entrypoint: str) -> Any:
        thing: Any = module
        for name in source.what.split("."):
            if not hasattr(thing, name):
                raise MissingFlow(
                    f"flow in {source.file or source.module}", source.what, known=_flow_names(module)
                )
            thing = getattr(thing, name)
        if not hasattr(thing, "fn") or not callable(thing):
            raise MissingFlowError(
                f"Function with name {source.what!r} is not a flow: {entrypoint} names a {type(thing).__name__}",
                hint="mark the function with @flow",
            )
        return thing

    def module(self, name: str, path: str | None = None) -> ModuleType:
        """Return the module of this name as the flows of a root see it; it is imported if none of them has done that yet.

        Raises:
            MissingFile: only another root has a module of this name.
            ImportError: nobody has. What the module raises comes through, too.
        """
        root = _root(path)
        with self._lock:
            loaded = self._enter(root)
            known = loaded.modules.get(name)
            if known is not None:
                return known
            file = _find_module(name, root)
            if file is not None and self._owner_of(file, root) is not None:
                raise MissingFile(
                    f"there is no module {name!r} below {root}; {file} belongs to another deployment"
                )
            return self._import(Source(root, file, name, "", is_file=False), loaded)

    def is_stale(self, path: str | None = None) -> bool:
        """Whether a file that was imported for the root ``path`` is no longer as it was then."""
        root = _root(path)
        with self._lock:
            loaded = self._roots.get(root)
            return loaded is not None and self._stale(loaded)

    def _enter(self, root: Path) -> _Loaded:
        """Make ``root`` the one whose modules are visible."""
        if self._current != root:
            if self._current is not None:
                for name in self._roots[self._current].modules:
                    sys.modules.pop(name, None)
            loaded = self._roots.setdefault(root, _Loaded())
            sys.modules.update(loaded.modules)
            self._current = root
        return self._roots[root]

    def _owner_of(self, file: Path, root: Path) -> _Loaded | None:
        """Return what another root has brought in, if a file is that root's own and none of ``root``."""
        if _below(file, root):
            return None
        for other, loaded in self._roots.items():
            if str(other) in _put_there and not root.is_relative_to(other) and _below(file, other):
                return loaded
        return None

    def _set_aside(self, name: str, root: Path) -> None:
        """Take out of sight what flows of another root have imported under a name, or above it, while they ran."""
        parts = name.split(".")
        for depth in range(len(parts)):
            above = ".".join(parts[: depth + 1])
            module = sys.modules.get(above)
            file = getattr(module, "__file__", None)
            owner = self._owner_of(Path(file), root) if isinstance(file, str) else None
            if module is not None and owner is not None:
                owner.modules.setdefault(above, module)
                owner.stamps.setdefault(Path(str(file)), _stamp(Path(str(file))))
                del sys.modules[above]

    def _stale(self, loaded: _Loaded) -> bool:
        return any(_stamp(file) != stamp for file, stamp in loaded.stamps.items())

    def _unload(self, loaded: _Loaded) -> None:
        for name in loaded.modules:
            sys.modules.pop(name, None)
        for file in loaded.stamps:
            # Compiled files are matched by size and whole seconds, which misses a quick edit. Where there is none, or
            # the folder may not be written to, there is nothing of ours to take for the file.
            with suppress(OSError, NotImplementedError):
                os.unlink(importlib.util.cache_from_source(str(file)))
        loaded.modules.clear()
        loaded.stamps.clear()
        importlib.invalidate_caches()

    def _import(self, source: Source, loaded: _Loaded) -> ModuleType:
        before = set(sys.modules)
        try:
            _put_on_path(source)
            self._set_aside(source.module, source.root)
            return self._import_file(source) if source.is_file else importlib.import_module(source.module)
        finally:
            # Also after a failure: what was half imported must not be taken for whole next time.
            failed = sys.exc_info()[0] is not None
            for name in set(sys.modules) - before | {source.module}:
                module = sys.modules.get(name)
                file = getattr(module, "__file__", None)
                if module is None or not isinstance(file, str) or not _below(Path(file), source.root):
                    continue
                if name.partition(".")[0] == "hark":
                    continue  # our own, when flows live in a checkout of it
                if failed:
                    del sys.modules[name]
                    continue
                loaded.modules[name] = module
                loaded.stamps[Path(file)] = _stamp(Path(file))

    def _import_file(self, source: Source) -> ModuleType:
        file = source.file
        if file is None or not file.is_file():
            raise MissingFile(
                f"there is no file {file}", hint="an entrypoint is relative to the deployment's `path`"
            )
        present = sys.modules.get(source.module)
        if present is not None and getattr(present, "__file__", None) == str(file):
            return present  # imported by name by another flow of this root
        spec = importlib.util.spec_from_file_location(source.module, file)
        if spec is None or spec.loader is None:
            raise DefinitionError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[source.module] = module
        spec.loader.exec_module(module)
        return module


def _below(file: Path, root: Path) -> bool:
    """Whether a file is the user's own: below the root, and not in an environment that lies there."""
    return file.is_relative_to(root) and not _is_installed(str(file))


_put_there: set[str] = set()
"""What of the import path comes from us. What was there before, all flows share."""


def _put_on_path(source: Source) -> None:
    """Put the root and the file's own folder on the import path, for good: flows import when they run, too."""
    folders = [source.root]
    if source.is_file and source.file is not None and source.file.parent != source.root:
        folders.append(source.file.parent)
    for folder in reversed(folders):
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        else:
            _put_there.add(str(folder))
        sys.path.insert(0, str(folder))


def _stamp(file: Path) -> Stamp | None:
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _module_name(root: Path, file: Path) -> str:
    """Return the dotted name of a file below the root; one that cannot be taken for another module."""
    parts = list(file.relative_to(root).with_suffix("").parts) if file.is_relative_to(root) else []
    if parts and all(part.isidentifier() for part in parts):
        name = ".".join(parts)
        if parts[0] not in sys.stdlib_module_names and not _is_foreign(parts[0]):
            return name
    return "hark_flow_" + "".join(c if c.isalnum() else "_" for c in str(file.with_suffix("")))


def _is_foreign(name: str) -> bool:
    """Whether ``name`` is a package of the environment, or Hark itself; another project's does not count."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if name == "hark" or (isinstance(file, str) and _is_installed(file)):
        return True
    spec = PathFinder.find_spec(name, [entry for entry in sys.path if _is_installed(entry)])
    return spec is not None and spec.origin is not None


def _is_installed(path: str) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in Path(path).parts)


def _find_module(name: str, root: Path) -> Path | None:
    """Return the file of a module without importing the packages it is in."""
    search: list[str] | None = [str(root), *sys.path]
    parts = name.split(".")
    for depth, part in enumerate(parts):
        # The finder looks for the last word of a dotted name in the folders it is given.
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), search)
        if spec is None:
            return None
        if depth == len(parts) - 1:
            return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
        search = list(spec.submodule_search_locations or ())
        if not part or not search:
            return None
    return None


def _flow_names(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if hasattr(value, "fn")]
