"""Under which name of its module a task or flow is found, by who does not have it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["MARK", "NO_NAME", "name_of", "split_name"]

MARK = "hooks"
"""The member of the data of a task run's end that says where the task is found whose hooks are told of it."""

NO_NAME = "<without a name>"
"""The last word of a name that says what it was and leads nowhere."""


def name_of(decorated: Any) -> tuple[str, str] | None:
    """Return (module, name in it) of a task or flow, or of one with the same function and the same hooks.

    The name of what nobody else can find ends in ``NO_NAME``. None for what stands in ``__main__``, which is loaded by nobody else.
    """
    fn = getattr(decorated.fn, "__func__", decorated.fn)
    # Not ``sys.modules``: a worker that serves several folders has modules of the same name in turn.
    names = getattr(inspect.unwrap(fn), "__globals__", {})
    found = _found.get(decorated)
    if found is not None and names.get(found[1]) is decorated:
        return found
    return _look_for(decorated, fn, names)


_found: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()
"""Where a task or flow itself was found: still so as long as the name leads to it, whatever hooks it is given.

Asked at each end of a task that has hooks, and to look through a module takes longer than all else of that.
"""


def _look_for(decorated: Any, fn: Any, names: Mapping[str, Any]) -> tuple[str, str] | None:
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not module or not qualname or module == "__main__":
        return None
    if "<" not in qualname:
        first, *rest = qualname.split(".")
        thing: Any = names.get(first)
        for name in rest:
            thing = vars(thing).get(name) if isinstance(thing, type) else None
        if thing is decorated and not rest:
            _found[decorated] = module, qualname
        if type(thing) is type(decorated):
            found = getattr(thing.fn, "__func__", thing.fn)
            if found is fn and _told(thing) == _told(decorated):
                return module, qualname
    # As ``other = it.with_options(on_failure=[…])``.
    known = next((name for name, value in list(names.items()) if value is decorated), None)
    if known is not None:
        _found[decorated] = module, known
    return module, known or f"{qualname}.{NO_NAME}"


def split_name(text: str) -> tuple[str, str]:
    """Return (module, name) of ``module:name``.

    Raises:
        LookupError: it was made where no other process finds it.
    """
    module, _, what = text.rpartition(":")
    if "<" in what:
        what = what.removesuffix(f".{NO_NAME}")
        raise LookupError(
            f"{what} of {module} was made while its run went on, so no other process can find it; "
            "give it a name at the top of a module, with_options included"
        )
    return module, what


def _told(decorated: Any) -> dict[str, list[Any]]:
    return {argument: hooks for argument, hooks in decorated.hooks.items() if hooks}
