"""``hark events``, ``hark emit``: facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ask, group, json_argument, pairs, plain, show, table, to_json
from .ident import event_id_of
from .replay import replay

if TYPE_CHECKING:
    from ..server.client import Hark
    from ..vocabulary import JsonObject

events = group("Look at events, and emit them again: ls, watch, show, replay.")
events.command("replay")(replay)

_Types = Annotated[list[str] | None, typer.Argument(help="Types, such as order.paid or flow-run.*")]
_MoreTypes = Annotated[list[str] | None, typer.Option("--type", help="The same, as `replay` has it.")]


def _line(item: JsonObject) -> str:
    event = item["event"]
    assert isinstance(event, dict)
    return f"{event.get('time')}  {item.get('seq')}  {plain(event.get('type'))}  {plain(event.get('subject'))}  {plain(event.get('data'))}"


@events.command("ls")
def ls(
    types: _Types = None,
    more_types: _MoreTypes = None,
    source: Annotated[str | None, typer.Option(help="Only of this source.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only about this subject.")] = None,
    since: Annotated[str | None, typer.Option(help="Not older than this: 10m, 2h, 7d, or a time.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List events, newest first."""
    wanted = [*(types or ()), *(more_types or ())] or None
    page = ask(lambda h: h.events(type=wanted, source=source, subject=subject, since=since, limit=limit))
    rows = []
    for item in page.items:
        event = item["event"]
        assert isinstance(event, dict)
        rows.append(
            [item["seq"], event.get("time"), event.get("type"), event.get("subject"), event.get("id")]
        )
    show(
        page.items, table(["SEQ", "TIME", "TYPE", "SUBJECT", "ID"], rows, empty="no events"), as_json=as_json
    )


@events.command("watch")
def watch(
    types: _Types = None,
    more_types: _MoreTypes = None,
    after: Annotated[int | None, typer.Option(help="Begin behind this sequence, not now.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print events as they are stored, until stopped."""

    async def follow(hark: Hark) -> None:
        seen = 0
        # The first connection must stand, so that a missing server is said and not waited for.
        await hark.status()
        async for item in hark.watch_events(*(types or ()), *(more_types or ()), after=after):
            typer.echo(to_json(item) if as_json else _line(item))
            seen += 1
            if seen == count:
                return

    ask(follow)


@events.command("show")
def show_one(
    event_id: Annotated[str, typer.Argument(help="The event's id, or its beginning.")],
    as_json: AsJson = False,
) -> None:
    """Show one event."""

    async def read(hark: Hark) -> JsonObject:
        return await hark.event(await event_id_of(hark, event_id))

    item = ask(read)
    show(item, pairs(item), as_json=as_json)


def emit(
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="Lower-case dotted words: order.paid")],
    subject: Annotated[str | None, typer.Option(help="What it is about: order/42")] = None,
    data: Annotated[str | None, typer.Option(help="JSON, or - for stdin.")] = None,
    source: Annotated[str, typer.Option(help="Who says so.")] = "/cli",
    event_id: Annotated[
        str | None, typer.Option("--id", help="An id of yours: sent twice is stored once.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store an event."""
    value = json_argument(data)
    event = ask(lambda h: h.emit(type_, subject=subject, data=value, source=source, id=event_id))
    show(event.to_dict(), event.id, as_json=as_json)
