"""Under which name of its module a task or flow is found, by who does not have it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import orjson

__all__ = ["MARK", "NO_NAME", "mark_of", "module_names", "name_here", "name_of", "split_name"]

MARK = "hooks"
"""The member of the data of a task run's end that says where the task is found whose hooks are told of it.

What comes before an end has it, too, where hooks are told of an end that nobody is left to write.
"""

NO_NAME = "<without a name>"
"""The last word of a name that says what it was and leads nowhere."""


def name_of(decorated: Any) -> tuple[str, str] | None:
    """Return (module, name in it) of a task or flow, or of one with the same function and the same hooks.

    The name of what nobody else can find ends in ``NO_NAME``. None for what stands in ``__main__``, whose name leads nobody there.
    """
    named = name_here(decorated)
    return None if named is not None and named[0] == "__main__" else named


def name_here(decorated: Any) -> tuple[str, str] | None:
    """Return what ``name_of`` does; of what stands in ``__main__``, too. None for what has no name at all."""
    names = module_names(decorated)
    found = _found.get(decorated)
    if found is not None and names.get(found[1]) is decorated:
        return found
    return _look_for(decorated, _function(decorated), names)


def mark_of(decorated: Any) -> str:
    """Return the member of an event's data, as JSON text with a comma behind, that says where it is found; "" for what has no name."""
    named = name_here(decorated)
    return "" if named is None else f'"{MARK}":{orjson.dumps(":".join(named)).decode()},'


def module_names(decorated: Any) -> Mapping[str, Any]:
    """Return what stands in the module that a task or flow was made in, by name."""
    # Not ``sys.modules``: a worker that serves several folders has modules of the same name in turn.
    found: Mapping[str, Any] = getattr(inspect.unwrap(_function(decorated)), "__globals__", {})
    return found


def _function(decorated: Any) -> Any:
    return getattr(decorated.fn, "__func__", decorated.fn)


_found: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()
"""Where a task or flow itself was found: still so as long as the name leads to it, whatever hooks it is given.

Asked at each end of a task that has hooks, and to look through a module takes longer than all else of that.
"""


def _look_for(decorated: Any, fn: Any, names: Mapping[str, Any]) -> tuple[str, str] | None:
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not module or not qualname:
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
