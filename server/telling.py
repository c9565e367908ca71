"""Channels that do not reach anybody: well-formed addresses that are wrong, services that refuse; from what was last delivered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta

from ..automations.analysis.target import channels_of
from ..automations.model import Automation
from ..automations.problem import Problem
from ..storage import FailingAddressRow
from .context import ServerContext
from .definition import all_defined

__all__ = ["Failing", "failing_channels", "mute_channels", "said_of"]

_LOOK_BACK = timedelta(days=7)

Failing = Mapping[str, list[FailingAddressRow]]
"""By channel, the addresses that have failed since they last took a message."""


async def failing_channels(context: ServerContext) -> Failing:
    """Return the channels that fail; what failed before a channel's definition was last changed no longer counts."""
    rows = await context.queries.failing_channels(since=context.clock.now() - _LOOK_BACK)
    if not rows:
        return {}
    changed = {one.key: one.changed_at for one in await all_defined(context.bus, "channels")}
    found: dict[str, list[FailingAddressRow]] = defaultdict(list)
    for row in rows:
        at = changed.get(row.channel)
        if at is not None and row.time >= at:
            found[row.channel].append(row)
    return found


def mute_channels(automation: Automation, failing: Failing) -> list[Problem]:
    """Return the channels a rule tells that have lately not taken what they were told."""
    return [
        Problem(loc, f"the channel {name!r} fails: {said_of(row)}; try `hark channels test {name}`")
        for loc, name in channels_of(automation)
        for row in failing.get(name, ())
    ]


def said_of(row: FailingAddressRow) -> str:
    """Return in words how an address fails."""
    times = "the last message" if row.failures == 1 else f"the last {row.failures} messages"
    return f"address {row.address} ({row.kind}) did not take {times}: {row.error or 'no reason given'}"
