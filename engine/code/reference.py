"""How tasks and flows go to other processes: by name where they can be found by it, whole where they cannot.

A module's task is pickled as its module and name, so the other process imports the same code, and what stands around it
(locks, connections, other tasks) is not dragged along. One made in a function or in ``__main__`` is pickled with its code.
"""

from __future__ import annotations

import copyreg
import importlib
import importlib.util
import os
import sys
import threading
from dataclasses import dataclass
from hashlib import blake2b
from types import MethodType
from typing import Any

__all__ = ["Reference", "module_file", "reduced", "reference_to", "restore"]


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a decorated function is found: what stands under ``qualname`` in ``module``.

    ``file``: from which the module is loaded if it is not on the import path.
    """

    module: str
    qualname: str
    file: str | None

    def resolve(self) -> Any:
        """Return what is found there, importing the module.

        Raises:
            ImportError, AttributeError: it is not there.
        """
        thing: Any = imported(self.module, self.file)
        for name in self.qualname.split("."):
            # Not getattr: a method's task would be bound to its class.
            thing = thing.__dict__[name] if isinstance(thing, type) else getattr(thing, name)
        return thing


def imported(module: str, file: str | None) -> Any:
    """Return a module, imported by name or else from its file.

    A process that serves many (a Dask worker) may have met another module of that name: then the one in ``file`` is loaded
    beside it.

    Raises:
        ImportError: it is in neither.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        missing = exc.name is not None and (module == exc.name or module.startswith(exc.name + "."))
        if not missing or file is None:
            raise
        # Threads of one process may ask for the same file at once.
        with _loading:
            if module in sys.modules:
                return imported(module, file)
            return _loaded(module, file)
    if file is None or not _is_another(found, file):
        return found
    # A name nothing else has: what it imports from itself by its own name would be the other one's.
    beside = f"{module}@{blake2b(os.path.realpath(file).encode(), digest_size=8).hexdigest()}"
    with _loading:
        return sys.modules.get(beside) or _loaded(beside, file)


def _loaded(module: str, file: str) -> Any:
    spec = importlib.util.spec_from_file_location(module, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported", name=module, path=file)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        sys.modules.pop(module, None)
        raise
    return loaded


def _is_another(found: Any, file: str) -> bool:
    """Return whether a module is not the one of a file that is here; packages are known by their names alone."""
    here = getattr(found, "__file__", None)
    if here is None or here == file or "." in found.__name__ or hasattr(found, "__path__"):
        return False
    return os.path.isfile(file) and not os.path.samefile(here, file)


_loading = threading.RLock()


def module_file(module: str) -> str | None:
    """Return the file of a module that is loaded; None for ``__main__`` and what has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file if module != "__main__" and isinstance(file, str) and file.endswith(".py") else None


def reference_to(decorated: Any) -> Reference | None:
    """Return where a task or flow, or one of the same function, is found; None if only by having it."""
    fn = decorated.fn
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not module or not qualname or module == "__main__" or "<" in qualname or module not in sys.modules:
        return None
    reference = Reference(module, qualname, module_file(module))
    try:
        found = reference.resolve()
    except (AttributeError, KeyError, ImportError):
        return None
    return reference if getattr(found, "fn", None) is fn else None


def reduced(decorated: Any, binds: str) -> Any:
    """Return what ``__reduce__`` of a task or flow returns."""
    fn = decorated.fn
    owner = None
    if isinstance(fn, MethodType):
        owner, fn = fn.__self__, fn.__func__
    reference = reference_to(_Holder(fn))
    if reference is not None and owner is None and reference.resolve() is decorated:
        return Reference.resolve, (reference,)
    options = dict(decorated._options)
    options["name"] = decorated.name
    # Hooks may have been added by decorators since.
    options.update({argument: list(hooks) for argument, hooks in decorated.hooks.items() if hooks})
    state = {"fn": reference or fn, "owner": owner, "options": options, "binds": binds}
    return copyreg.__newobj__, (type(decorated),), state  # type: ignore[attr-defined]


def restore(decorated: Any, state: dict[str, Any]) -> None:
    """Make a task or flow of what ``reduced`` said of it."""
    fn = state["fn"]
    if isinstance(fn, Reference):
        fn = fn.resolve().fn
    if state["owner"] is not None:
        fn = MethodType(fn, state["owner"])
    decorated.__init__(fn, **state["options"])
    decorated._binds = state["binds"]


@dataclass(slots=True)
class _Holder:
    fn: Any
