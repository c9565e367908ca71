"""How many files this process may have open, and how many of them callers may take.

Every connection is an open file, and so are the database, the pipes of runs and what is asked of others. A shell's usual
1024 are soon gone, and then everything fails at once; so the limit is raised, and callers never get the last ones.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["for_callers", "raise_limit"]

log = logging.getLogger(__name__)

ENOUGH = 65_536
"""Not more, where there is no limit: programs that runs start may try to close each that there could be."""
_KEPT = 256
"""What is kept from callers, or half of all, if that is less."""


def raise_limit(enough: int = ENOUGH) -> int:
    """Raise the number of files this process may open, up to ``enough`` or to what it is allowed; return what it is now."""
    if sys.platform == "win32":
        return enough
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return enough if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as exc:  # some systems have another limit below the one they name
        log.debug("hark.open_files", extra={"limit": soft, "error": str(exc)})
        return soft
    return wanted


def for_callers() -> int:
    """Return how many connections callers may have at once."""
    if sys.platform == "win32":
        return ENOUGH
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else max(soft // 2, soft - _KEPT)
