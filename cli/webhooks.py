"""``hark webhooks``: addresses that turn requests into events."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ago, ask, group, pairs, plain, show, table

if TYPE_CHECKING:
    from ..server.client import Hark
    from ..vocabulary import JsonObject

webhooks = group(
    "Addresses that turn HTTP requests into events: ls, show, send, requests, request, redeliver, pause, resume."
)

_Name = Annotated[str, typer.Argument(help="The webhook.")]


@webhooks.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List webhooks and their addresses."""
    items = ask(lambda h: h.webhooks())
    rows = [[w["name"], w.get("preset"), plain(w.get("type")), w.get("paused"), w.get("url")] for w in items]
    head = ["NAME", "VERIFY", "EVENT", "PAUSED", "URL"]
    show(items, table(head, rows, empty="no webhooks; write some into hark.yaml"), as_json=as_json)


@webhooks.command("show")
def show_one(name: _Name, as_json: AsJson = False) -> None:
    """Show one webhook."""
    item = ask(lambda h: h.webhook(name))
    show(item, pairs(item), as_json=as_json)


@webhooks.command("send")
def send(
    name: _Name,
    body: Annotated[
        str | None, typer.Argument(help="JSON text, @file, or - for stdin; default: an empty object.")
    ] = None,
    header: Annotated[list[str] | None, typer.Option("-H", "--header", help="NAME: VALUE")] = None,
    secret_from: Annotated[
        Path | None,
        typer.Option(
            "--secret-file",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Sign with the secret in this file.",
        ),
    ] = None,
    event: Annotated[
        str, typer.Option("--event", help="What the sender calls the event: push, orders/create.")
    ] = "",
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Send without a signature.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver a request to a webhook, signed as its sender would; exit 1 if it was not accepted.

    The secret is asked for (or read from stdin), unless it is in a file or the webhook needs none.
    """
    raw = _body(body)
    headers = {}
    for item in header or ():
        key, sep, value = item.partition(":")
        if not sep:
            raise typer.BadParameter(f"{item!r} is not NAME: VALUE")
        headers[key.strip().lower()] = value.strip()

    async def call(hark: Hark) -> tuple[int, JsonObject]:
        from ..server.signing import signed_headers

        hook = await hark.webhook(name)
        verify = hook.get("verify")
        assert isinstance(verify, dict)
        extra: dict[str, str] = {}
        if not unsigned and verify.get("preset") != "none":
            if secret_from is not None:
                secret = _secret_in(secret_from)
            elif body == "-" and not sys.stdin.isatty():
                raise typer.BadParameter(
                    "stdin is the body, so the secret has to be in a file: --secret-file"
                )
            elif not sys.stdin.isatty():
                secret = sys.stdin.read().removesuffix("\n")
            else:
                secret = typer.prompt(f"Secret of {name}", hide_input=True)
            extra = signed_headers(verify, body=raw, secret=secret, event=event)
        signed = {name.lower(): value for name, value in extra.items()}
        sent = {"content-type": "application/json", **signed, **headers}
        return await hark.send_webhook(name, body=raw, headers=sent)

    status, answer = ask(call)
    show({"status": status, "answer": answer}, f"{status}\n{pairs(answer)}", as_json=as_json)
    if status >= 300:
        raise typer.Exit(1)


def _secret_in(file: Path) -> str:
    try:
        return file.read_text().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{file} cannot be read: {exc}") from exc


def _body(text: str | None) -> bytes:
    if text is None:
        return b"{}"
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_bytes()
        except OSError as exc:
            raise typer.BadParameter(f"{text[1:]} cannot be read: {exc.strerror}") from exc
    return text.encode()


@webhooks.command("requests")
def requests(
    name: _Name,
    refused: Annotated[
        bool | None, typer.Option("--refused/--accepted", help="Only those that were refused, or accepted.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List what a webhook was sent lately, the newest first."""
    items = ask(lambda h: h.webhook_requests(name, limit=limit, refused=refused))
    rows = []
    for r in items:
        ids = r.get("event_ids")
        led_to = ", ".join(str(i) for i in ids[:3]) if isinstance(ids, list) and ids else r.get("reason")
        rows.append(
            [r["id"], ago(r["received_at"]), r["method"], r["status"], r["size"], r.get("remote"), led_to]
        )
    head = ["ID", "AGE", "METHOD", "STATUS", "BYTES", "FROM", "EVENT OR REASON"]
    show(items, table(head, rows, empty="no requests are kept of this webhook"), as_json=as_json)


_Id = Annotated[str, typer.Argument(help="The request, from `hark webhooks requests`.")]


@webhooks.command("request")
def request(id: _Id, as_json: AsJson = False) -> None:
    """Show one request with its headers and body; what proves who sent it is taken out."""
    item = ask(lambda h: h.webhook_request(id))
    show(item, pairs(item), as_json=as_json)


@webhooks.command("redeliver")
def redeliver(id: _Id, as_json: AsJson = False) -> None:
    """Take a request in again, by the webhook as it is now; exit 1 if it is not accepted.

    One that was accepted before makes a new event; one that was refused is the delivery it was.
    """
    item = ask(lambda h: h.redeliver_webhook_request(id))
    answer = item["answer"]
    assert isinstance(answer, dict)
    show(item, f"{item['status']}\n{pairs(answer)}", as_json=as_json)
    if not isinstance(item["status"], int) or item["status"] >= 300:
        raise typer.Exit(1)


@webhooks.command("pause")
def pause(name: _Name, as_json: AsJson = False) -> None:
    """Refuse what is sent to a webhook."""
    show(ask(lambda h: h.pause("webhook", name)), f"{name} is paused", as_json=as_json)


@webhooks.command("resume")
def resume(name: _Name, as_json: AsJson = False) -> None:
    """Accept again what is sent to a webhook."""
    show(ask(lambda h: h.resume("webhook", name)), f"{name} goes on", as_json=as_json)
