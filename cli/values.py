"""``hark variables``, ``hark secrets``, ``hark keys``: named values and who may call."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ask, group, show, table, to_json

if TYPE_CHECKING:
    from ..vocabulary import JsonValue

variables = group("Named values that rules, flows and deployments read: ls, get, set, rm.")
secrets = group("Named values that are encrypted and never shown: ls, set, rm.")
keys = group("Access keys: create, ls, revoke.")

_Name = Annotated[str, typer.Argument(help="The name.")]


@variables.command("ls")
def variables_ls(as_json: AsJson = False) -> None:
    """List variables."""
    items = ask(lambda h: h.variables())
    rows = [[v["name"], v.get("value")] for v in items]
    show(items, table(["NAME", "VALUE"], rows, empty="no variables"), as_json=as_json)


@variables.command("get")
def variables_get(name: _Name, as_json: AsJson = False) -> None:
    """Print a variable."""
    value = ask(lambda h: h.variable(name))
    typer.echo(value if isinstance(value, str) and not as_json else to_json(value))


@variables.command("set")
def variables_set(
    name: _Name, value: Annotated[str, typer.Argument(help="The value; JSON keeps its type, - reads stdin.")]
) -> None:
    """Set a variable."""
    from ..bus.exact import NotExact, loads

    text = sys.stdin.read() if value == "-" else value
    parsed: JsonValue = text
    try:
        parsed = loads(text)
    except NotExact as exc:
        raise typer.BadParameter(str(exc)) from exc
    except ValueError:
        pass  # then it is a text
    ask(lambda h: h.set_variable(name, parsed))
    typer.echo(f"{name} is set")


@variables.command("rm")
def variables_rm(name: _Name) -> None:
    """Remove a variable."""
    ask(lambda h: h.remove_variable(name))
    typer.echo(f"{name} is removed")


@secrets.command("ls")
def secrets_ls(as_json: AsJson = False) -> None:
    """List the names of secrets."""
    names = ask(lambda h: h.secrets())
    listed: list[JsonValue] = [*names]
    show(listed, "\n".join(names) or "no secrets", as_json=as_json)


@secrets.command("set", context_settings={"allow_extra_args": True})
def secrets_set(ctx: typer.Context, name: _Name) -> None:
    """Set a secret; its value is asked for, or read from stdin.

    It is no argument on purpose: arguments end up in the shell's history and the process list.
    """
    if ctx.args:
        raise typer.BadParameter(
            f"the value is no argument, for it would stay in the shell's history: `hark secrets set {name}` asks for it, "
            "and reads what is piped in"
        )
    if sys.stdin.isatty():
        value = typer.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True)
    else:
        value = sys.stdin.read().removesuffix("\n")
    if not value:
        raise typer.BadParameter("the value is empty")
    ask(lambda h: h.set_secret(name, value))
    typer.echo(f"{name} is set")


@secrets.command("rm")
def secrets_rm(name: _Name) -> None:
    """Remove a secret."""
    ask(lambda h: h.remove_secret(name))
    typer.echo(f"{name} is removed")


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Who will use it.")], as_json: AsJson = False
) -> None:
    """Make an access key and print it, this once."""
    made = ask(lambda h: h.create_key(name))
    show(made, str(made["token"]), as_json=as_json)
    if not as_json:
        typer.echo(
            "keep it: it is not shown again; from now on every call needs a key (HARK_API_KEY)", err=True
        )


@keys.command("ls")
def keys_ls(as_json: AsJson = False) -> None:
    """List access keys."""
    items = ask(lambda h: h.keys())
    rows = [[k["id"], k["name"], k["created_at"]] for k in items]
    show(items, table(["ID", "NAME", "CREATED"], rows, empty="no keys: access is open"), as_json=as_json)


@keys.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(help="Its id or name.")], as_json: AsJson = False
) -> None:
    """Make a key worthless."""
    show(ask(lambda h: h.revoke_key(name)), f"{name} is revoked", as_json=as_json)
