"""Ids as people type them: the beginning of one does, where it is that of one thing only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import DefinitionError

if TYPE_CHECKING:
    from ..server.client import Hark

__all__ = ["event_id_of", "run_id_of"]

FEWEST_CHARS = 6
"""Ids of the same seconds begin alike; what is shorter is more likely a slip than an id."""

_ID_CHARS = 36
_SHOWN = 10


async def run_id_of(hark: Hark, text: str) -> str:
    """Return the id of the run that begins so; what is the beginning of none is returned as it is.

    Raises:
        DefinitionError: several begin so; the hint has them.
    """
    if not FEWEST_CHARS <= len(text) < _ID_CHARS:
        return text
    page = await hark.flow_runs(id_prefix=text, limit=_SHOWN + 1)
    return _only(
        text, "runs", [(str(one["id"]), f"{one.get('name')} {one.get('state_name')}") for one in page.items]
    )


async def event_id_of(hark: Hark, text: str) -> str:
    """Return the id of the event that begins so, or is so; what is the beginning of none is returned as it is.

    Raises:
        DefinitionError: several begin so; the hint has them.
    """
    if len(text) < FEWEST_CHARS or len(text) == _ID_CHARS:
        return text
    page = await hark.events(id_prefix=text, limit=_SHOWN + 1)
    found: dict[str, str] = {}
    for item in page.items:
        event = item["event"]
        if isinstance(event, dict):  # recorded again, it is there twice
            found.setdefault(
                str(event.get("id")), f"{event.get('type')} {event.get('subject') or ''}".rstrip()
            )
    if text in found or (page.next is not None and await _is_event(hark, text)):
        return text
    return _only(text, "events", list(found.items()))


async def _is_event(hark: Hark, text: str) -> bool:
    """Return whether an event has this very id: one older than those that are listed may."""
    from ..server.client import ApiError

    try:
        await hark.event(text)
    except ApiError as exc:
        if exc.status != 404:
            raise
        return False
    return True


def _only(text: str, what: str, found: Sequence[tuple[str, str]]) -> str:
    if len(found) > 1:
        shown = [f"{id_} ({said})" for id_, said in found[:_SHOWN]]
        more = ", …" if len(found) > _SHOWN else ""
        raise DefinitionError(
            f"{text!r} is the beginning of more than one id of {what}",
            hint=f"say more of it: {', '.join(shown)}{more}",
        )
    return found[0][0] if found else text
