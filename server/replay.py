"""Past events emitted again, as new ones that say what they repeat: which, and how each of them looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..bus.event import Event, is_own_type
from ..errors import DefinitionError
from ..vocabulary import JsonObject, new_id

if TYPE_CHECKING:
    from .client import Hark

__all__ = ["Past", "Selected", "replay", "replayed", "select", "select_ids"]

_PAGE = 1000
_BATCH_EVENTS = 100
_BATCH_BYTES = 1 << 20
"""A request that carries so much is sent: well below what a server takes in one (``HARK_SERVER__MAX_BODY_BYTES``)."""


@dataclass(frozen=True, slots=True)
class Past:
    """An event of the log and its place there."""

    seq: int
    event: Event


@dataclass(frozen=True, slots=True)
class Selected:
    """What would be replayed, oldest first.

    Attributes:
        own: how many were left out because they are Hark's own: those say what happened to runs, rules and the like.
        replays: how many were left out because they are replays themselves, whose originals can be asked for.
    """

    events: tuple[Past, ...]
    own: int = 0
    replays: int = 0


def replayed(event: Event, *, replay_id: str, at: datetime) -> Event:
    """Return ``event`` as a new one that repeats it.

    It occurs at ``at``, as rules count what occurred long ago into windows that are over. It belongs to the first one's
    story, is caused by it, and no chain becomes longer by it.
    """
    return event.replace(
        id=new_id(), time=at, recordedtime=None, expirytime=None, replayof=event.id, replayid=replay_id,
        correlationid=event.correlationid or event.id, causationid=event.id,
    )  # fmt: skip


async def select(
    hark: Hark, *, types: Sequence[str] = (), source: str | None = None, subject: str | None = None,
    since: str | None = None, until: str | None = None, limit: int,
) -> Selected:  # fmt: skip
    """Return the events asked for as in a listing, without Hark's own and without replays.

    Raises:
        DefinitionError: there are more than ``limit``.
        ApiError, ServerUnreachable: as of ``Hark``.
    """
    found: list[Past] = []
    own = replays = 0
    cursor: str | None = None
    while True:
        page = await hark.events(
            type=types, source=source, subject=subject, since=since, until=until, oldest_first=True,
            limit=_PAGE, cursor=cursor,
        )  # fmt: skip
        for past in map(_past, page.items):
            if is_own_type(past.event.type):
                own += 1
            elif past.event.replayof is not None:
                replays += 1
            else:
                found.append(past)
        if len(found) > limit:
            raise DefinitionError(
                f"more than {limit} events are asked for",
                hint="narrow it with --type, --subject, --since and --until, or raise --limit",
            )
        cursor = page.next
        if cursor is None:
            return Selected(tuple(found), own=own, replays=replays)


async def select_ids(hark: Hark, ids: Iterable[str]) -> Selected:
    """Return the events of these ids.

    Raises:
        DefinitionError: one is Hark's own.
        ApiError: there is none of an id. ServerUnreachable: as of ``Hark``.
    """
    found = [_past(await hark.event(id)) for id in dict.fromkeys(ids)]
    for past in found:
        if is_own_type(past.event.type):
            raise DefinitionError(
                f"event {past.event.id} is Hark's own ({past.event.type}): it says what happened, and told again it does not "
                "happen again",
                hint="runs are tried again by `hark runs retry`, actions by `hark dlq redrive`",
            )
    return Selected(tuple(sorted(found, key=lambda past: past.seq)))


async def replay(
    hark: Hark, events: Sequence[Past], *, replay_id: str, stored: Callable[[Sequence[Event]], None]
) -> None:
    """Emit events again, in their order; ``stored`` is told of each batch once it is in the log.

    Raises:
        ApiError, ServerUnreachable: as of ``Hark``; what ``stored`` was not told of may be stored or not.
    """
    batch: list[Event] = []
    size = 0
    for past in events:
        one = replayed(past.event, replay_id=replay_id, at=datetime.now(UTC))
        weight = len(one.to_json())
        if batch and (len(batch) == _BATCH_EVENTS or size + weight > _BATCH_BYTES):
            await hark.emit_many(batch)
            stored(batch)
            batch, size = [], 0
        batch.append(one)
        size += weight
    if batch:
        await hark.emit_many(batch)
        stored(batch)


def _past(item: JsonObject) -> Past:
    seq = item["seq"]
    assert isinstance(seq, int)
    return Past(seq, Event.from_dict(item["event"]))
