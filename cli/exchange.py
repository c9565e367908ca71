"""``hark sources`` and ``hark sinks``: events from NATS subjects of others, and events for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ask, group, pairs, show, table

if TYPE_CHECKING:
    from ..vocabulary import JsonObject

sources = group("NATS subjects of others that become events: ls, show, pause, resume.")
sinks = group("Events forwarded to NATS or HTTP: ls, show, pause, resume.")

_Source = Annotated[str, typer.Argument(help="The source.")]
_Sink = Annotated[str, typer.Argument(help="The sink.")]


def _state(item: JsonObject) -> tuple[str, str]:
    """Return how it is and what is wrong, as far as the server knows."""
    if item.get("error"):
        return "broken", str(item["error"])
    status = item.get("status")
    if not isinstance(status, dict):
        return ("paused" if item.get("paused") else "-"), ""
    return str(status.get("state")), str(status.get("error") or "")


def _find(items: list[JsonObject], kind: str, name: str) -> JsonObject:
    from ..errors import UnknownName

    for item in items:
        if item["name"] == name:
            return item
    raise UnknownName(kind, name, known=[str(i["name"]) for i in items])


@sources.command("ls")
def sources_ls(as_json: AsJson = False) -> None:
    """List sources and how each is."""
    items = ask(lambda h: h.sources())
    rows = [[i["name"], i.get("stream"), i.get("subject"), *_state(i)] for i in items]
    text = table(
        ["NAME", "STREAM", "SUBJECT", "STATE", ""], rows, empty="no sources; write some into hark.yaml"
    )
    show([*items], text, as_json=as_json)


@sources.command("show")
def sources_show(name: _Source, as_json: AsJson = False) -> None:
    """Show one source."""
    item = _find(ask(lambda h: h.sources()), "source", name)
    show(item, pairs(item), as_json=as_json)


@sources.command("pause")
def sources_pause(name: _Source, as_json: AsJson = False) -> None:
    """Stop listening; a stream keeps what comes meanwhile."""
    show(ask(lambda h: h.pause("source", name)), f"{name} is paused", as_json=as_json)


@sources.command("resume")
def sources_resume(name: _Source, as_json: AsJson = False) -> None:
    """Listen again."""
    show(ask(lambda h: h.resume("source", name)), f"{name} goes on", as_json=as_json)


@sinks.command("ls")
def sinks_ls(as_json: AsJson = False) -> None:
    """List sinks and how each is."""
    items = ask(lambda h: h.sinks())
    rows = []
    for i in items:
        nats, http = i.get("nats"), i.get("http")
        target = (
            nats.get("subject")
            if isinstance(nats, dict)
            else http.get("url")
            if isinstance(http, dict)
            else None
        )
        rows.append([i["name"], i.get("on"), target, *_state(i)])
    show(
        [*items],
        table(["NAME", "ON", "TO", "STATE", ""], rows, empty="no sinks; write some into hark.yaml"),
        as_json=as_json,
    )


@sinks.command("show")
def sinks_show(name: _Sink, as_json: AsJson = False) -> None:
    """Show one sink."""
    item = _find(ask(lambda h: h.sinks()), "sink", name)
    show(item, pairs(item), as_json=as_json)


@sinks.command("pause")
def sinks_pause(name: _Sink, as_json: AsJson = False) -> None:
    """Stop forwarding; what comes meanwhile is forwarded when it goes on."""
    show(ask(lambda h: h.pause("sink", name)), f"{name} is paused", as_json=as_json)


@sinks.command("resume")
def sinks_resume(name: _Sink, as_json: AsJson = False) -> None:
    """Forward again, from where it stopped."""
    show(ask(lambda h: h.resume("sink", name)), f"{name} goes on", as_json=as_json)
