"""Python objects by where they are imported from: ``json.dumps``, ``json:dumps``, ``flows/etl.py:nightly``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import reduce
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import InvalidValueError
from ..exceptions import ScriptError

__all__ = [
    "from_qualified_name",
    "import_object",
    "load_module",
    "load_script_as_module",
    "to_qualified_name",
]


def to_qualified_name(obj: Any) -> str:
    """Return the name of a function or class with that of its module."""
    return f"{obj.__module__}.{obj.__qualname__}"


def from_qualified_name(name: str) -> Any:
    """Return the module of a name, or what a module has under its last word. Raises ImportError, AttributeError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        module, dot, attribute = name.rpartition(".")
        if not dot:
            raise
        return getattr(importlib.import_module(module), attribute)


def load_module(module_name: str) -> ModuleType:
    """Import a module, of the working folder too."""
    with _on_path(os.getcwd()):
        return importlib.import_module(module_name)


def load_script_as_module(path: str) -> ModuleType:
    """Run a file as a module of its own, with its folder and the working folder to import from.

    Raises:
        InvalidValueError: it is no ``.py`` file. ScriptError: it raised something, which is its cause.
    """
    if not path.endswith(".py"):
        raise InvalidValueError(f"{path!r} is no Python file: its name does not end in .py")
    file = Path(path).resolve()
    # One of a module that is there already would stand in its place.
    name = (
        file.stem
        if file.stem not in sys.modules
        else f"__script_{sha256(os.fsencode(file)).hexdigest()[:16]}__"
    )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _on_path(os.getcwd()), _on_path(str(file.parent)):
            spec.loader.exec_module(module)
    except Exception as exc:
        del sys.modules[name]
        raise ScriptError(user_exc=exc, path=path) from exc
    return module


def import_object(import_path: str) -> Any:
    """Return what stands at ``module.object``, ``module:object`` or ``file.py:object``; behind the colon dots may follow.

    Raises:
        InvalidValueError: it is none of these. ScriptError, ImportError, AttributeError: there is none.
    """
    where, colon, what = import_path.rpartition(":")
    if colon and where.endswith(".py"):
        module = load_script_as_module(where)
    else:
        if not colon:
            where, colon, what = import_path.rpartition(".")
        if not colon:
            raise InvalidValueError(f"{import_path!r} names no object: write module:object or file.py:object")
        module = load_module(where)
    return reduce(getattr, what.split("."), module)


@contextmanager
def _on_path(folder: str) -> Generator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
