"""``hark channels`` and ``hark pools``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .call import AsJson, ask, group, pairs, plain, show, table

if TYPE_CHECKING:
    from ..vocabulary import JsonObject

channels = group("Named ways to tell people: ls, test.")
pools = group("Where runs execute: ls, pause, resume.")


@channels.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List channels; addresses are not shown, they hold tokens."""
    items = ask(lambda h: h.channels())
    rows = [
        [c["name"], c.get("addresses"), c.get("services"), c.get("rate"), _failing(c.get("failing"))]
        for c in items
    ]
    columns = ["NAME", "ADDRESSES", "SERVICES", "RATE", "FAILING"]
    show(items, table(columns, rows, empty="no channels"), as_json=as_json)


def _failing(found: object) -> str:
    """Return in one line what does not take messages, if anything."""
    said = [
        f"{f.get('kind')} ({f.get('failures')}x): {f.get('error')}"
        for f in (found if isinstance(found, list) else [])
        if isinstance(f, dict)
    ]
    return "; ".join(said) or "-"


@channels.command("test")
def send_test(
    name: Annotated[str, typer.Argument(help="The channel.")],
    title: Annotated[str | None, typer.Option(help="Title of the message.")] = None,
    body: Annotated[str | None, typer.Option(help="Text of the message.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a test message to every address of a channel."""
    answer = ask(lambda h: h.test_channel(name, title=title, body=body))
    deliveries = answer.get("deliveries")
    rows = [
        [d.get("address"), d.get("kind"), d.get("outcome"), d.get("error") or "", d.get("duration_s")]
        for d in (deliveries if isinstance(deliveries, list) else [])
        if isinstance(d, dict)
    ]
    show(answer, table(["ADDRESS", "SERVICE", "OUTCOME", "ERROR", "SECONDS"], rows), as_json=as_json)
    if not answer.get("ok"):
        raise typer.Exit(1)


@pools.command("ls")
def pools_ls(as_json: AsJson = False) -> None:
    """List pools; of their workers' places those taken, and how many runs wait without one."""
    items = ask(lambda h: h.pools())
    rows = [
        [
            p["name"], p.get("type"), p.get("concurrency"), plain(p.get("queues")), p.get("paused"), held["count"],
            f"{held['taken']}/{held['places']}", held["waiting"],
        ]
        for p, held in ((p, _held(p)) for p in items)
    ]  # fmt: skip
    show(
        items,
        table(
            ["NAME", "TYPE", "CONCURRENCY", "QUEUES", "PAUSED", "WORKERS", "PLACES", "WAITING"],
            rows,
            empty="no pools",
        ),
        as_json=as_json,
    )


def _held(pool: JsonObject) -> Any:
    """Return what a pool's workers hold together."""
    return pool["workers"]


@pools.command("show")
def pools_show(name: Annotated[str, typer.Argument(help="The pool.")], as_json: AsJson = False) -> None:
    """Show one pool."""
    found = [p for p in ask(lambda h: h.pools()) if p["name"] == name]
    if not found:
        from ..errors import UnknownName

        raise UnknownName("pool", name)
    show(found[0], pairs(found[0]), as_json=as_json)


@pools.command("pause")
def pools_pause(name: Annotated[str, typer.Argument(help="The pool.")], as_json: AsJson = False) -> None:
    """Stop handing runs to the workers of a pool."""
    show(ask(lambda h: h.pause("pool", name)), f"{name} is paused", as_json=as_json)


@pools.command("resume")
def pools_resume(name: Annotated[str, typer.Argument(help="The pool.")], as_json: AsJson = False) -> None:
    """Hand runs to the workers of a pool again."""
    show(ask(lambda h: h.resume("pool", name)), f"{name} goes on", as_json=as_json)
