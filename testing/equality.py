"""Whether two exceptions are as good as equal."""

from __future__ import annotations

__all__ = ["exceptions_equal"]


def exceptions_equal(a: BaseException | None, b: BaseException | None) -> bool:
    """Return whether two exceptions are of one class and were made with the same arguments: they never equal one another."""
    return a is b or (type(a) is type(b) and getattr(a, "args", None) == getattr(b, "args", None))
