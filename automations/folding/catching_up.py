"""Whether the rule engine catches up with the log, or ends again and again before it has."""

from __future__ import annotations

import logging
from typing import Final

from ...bus import Bus

__all__ = ["note_begun", "note_caught_up", "why_behind"]

log = logging.getLogger(__name__)

_BUCKET, _BEGUN = "checkpoints", "automations.begun"
"""How many terms have begun since one caught up with the log."""
_MANY_ENDED = 3
"""Terms in a row that ended before they had caught up, from which on the next one says so: one or two may be a restart."""
_HINT: Final = (
    "if it is killed for want of memory (exit code 137, `dmesg`), give it more: a million keys need some 450 MB; or take away "
    "the rule with the most keys (`hark automations ls`)"
)


async def note_begun(bus: Bus) -> None:
    """Note that a term has begun, and say it if several before it ended before they had caught up with the log."""
    ended = await _begun(bus)
    await bus.bucket(_BUCKET).put(_BEGUN, str(ended + 1).encode())
    if ended >= _MANY_ENDED:
        log.error("automations.does_not_catch_up", extra={"terms": ended, "hint": _HINT})


async def note_caught_up(bus: Bus) -> None:
    """Note that the term that has begun has caught up."""
    await bus.bucket(_BUCKET).delete(_BEGUN)


async def why_behind(bus: Bus) -> str | None:
    """Return that the rules do not catch up and what to do, for people, from any process; None if they do."""
    ended = await _begun(bus) - 1
    if ended < _MANY_ENDED:
        return None
    return f"the rule engine has ended {ended} times in a row before it had caught up with the log: {_HINT}"


async def _begun(bus: Bus) -> int:
    found = await bus.bucket(_BUCKET).get(_BEGUN)
    return int(found.value) if found is not None and found.value.isdigit() else 0
