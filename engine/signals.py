"""What code inside a run raises to end it in a way of its own, and what the machinery raises into it."""

from __future__ import annotations

__all__ = ["Abort", "Interrupted", "Skip"]


class Abort(Exception):
    """``raise Abort("…")`` in a flow or task: it ends FAILED at once, whatever retries are left."""


class Skip(Exception):
    """``raise Skip("…")`` in a flow or task: it ends COMPLETED, named ``Skipped``, with no result."""


class Interrupted(BaseException):
    """Raised into running code from outside: its process is asked to stop.

    Not an ``Exception``, so that ``except Exception`` in user code does not swallow it. What the run becomes is
    decided by what the log says of it: cancelled, lost to another worker, or left for one.
    """
