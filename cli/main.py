"""The command ``hark``. What a command needs is imported when it runs, its own file included: help comes at once."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command as build

from .call import Group

__all__ = ["COMMANDS", "app", "command_paths", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up:up", "Serve: embedded broker, HTTP, schedules, rules, workers."),
    "worker": ("workers:worker", "Processes that run flows: start, ls."),
    "demo": ("demonstrate:demo", "Play the main job end to end, and check every effect."),
    "run": ("run:run", "Run a flow in this process and print what it returns."),
    "emit": ("events:emit", "Store an event."),
    "plan": ("config:plan", "Show what applying the configuration would change."),
    "apply": ("config:apply", "Make live what the configuration says."),
    "lint": ("config:lint", "Check the configuration without a server."),
    "test": ("config:run_tests", "Run the tests written inside rules, in virtual time."),
    "backtest": ("backtest:backtest", "Show what a rule would have done about what has happened."),
    "explain": ("backtest:explain", "Show why rules acted on an event, or did not."),
    "events": ("events:events", "Events: ls, watch, show, replay."),
    "runs": ("runs:runs", "Flow runs: ls, show, logs, watch, cancel, pause, suspend, resume, retry, delete."),
    "tasks": ("tasks:tasks", "Background tasks: serve, ls, show."),
    "deployments": (
        "deployments:deployments",
        "Flows that can be run by name: ls, show, run, pause, resume, backfill, delete.",
    ),
    "deploy": ("deploy:deploy", "Make a deployment of a flow, with schedules."),
    "backfills": ("backfills:backfills", "Slots of the past being run: ls, show, watch, cancel."),
    "automations": ("automations:automations", "Rules: ls, show, pause, resume, delete."),
    "schedules": ("schedules:schedules", "When deployments run by themselves: ls, next, pause, resume."),
    "webhooks": (
        "webhooks:webhooks",
        "Requests that become events: ls, show, send, requests, request, redeliver, pause, resume.",
    ),
    "sources": ("exchange:sources", "NATS subjects of others that become events: ls, show, pause, resume."),
    "sinks": ("exchange:sinks", "Events forwarded to NATS or HTTP: ls, show, pause, resume."),
    "channels": ("channels:channels", "Named ways to tell people: ls, test."),
    "pools": ("channels:pools", "Where runs execute: ls, show, pause, resume."),
    "limits": ("limits:limits", "So many at once, or per time: ls, show, create, set, rm, reset."),
    "artifacts": ("kept:artifacts", "What runs show people: ls, show."),
    "blocks": ("kept:blocks", "Typed configuration kept by code: ls, show, rm."),
    "variables": ("values:variables", "Named values: ls, get, set, rm."),
    "secrets": ("values:secrets", "Named values that are never shown: ls, set, rm."),
    "alerts": ("alerts:alerts", "Open incidents of the notifications' routing: ls, show, ack."),
    "silences": ("silences:silences", "For a while, matching alerts are told to nobody: ls, add, expire."),
    "approvals": ("approvals:approvals", "Questions that rules ask people: ls, approve, reject."),
    "dlq": ("dlq:dlq", "Dead letters, what failed for good: ls, show, redrive, drop."),
    "migrate": ("migrate:migrate", "Rules and flows of other tools: prefect, eda, airflow."),
    "keys": ("values:keys", "Access keys: create, ls, revoke."),
    "status": ("service:status", "Show what the service is doing."),
    "audit": ("service:audit", "Show who changed what."),
    "rebuild": ("service:rebuild", "Fold the read model anew from the event log."),
    "backup": ("backup:backup", "Copy the whole state into one file, while it runs."),
    "restore": ("backup:restore", "Make a home, or a broker, what a backup holds."),
    "doctor": ("service:doctor", "Check what Hark needs."),
    "version": ("service:version", "Print the version."),
}
"""Every command of the first level: where it is (file:name), and its line in ``hark --help``."""


class Root(Group):
    """The first level: a table of commands, each loaded when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def find_command(self, ctx: Any, cmd_name: str) -> Any:
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        module, _, name = found[0].partition(":")
        thing = getattr(import_module(f".{module}", __package__), name)
        if not isinstance(thing, typer.Typer):
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            alone.command(cmd_name)(thing)
            thing = alone
        command = build(thing)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


app = typer.Typer(
    cls=Root, help="Hark listens for events and makes things follow: it runs flows and tells people.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip


def _say_version(wanted: bool) -> None:
    if wanted:
        from .service import version

        version()
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None: ...


def command_paths() -> list[tuple[str, ...]]:
    """Return every command there is, as its words: ``("runs", "ls")``."""
    root = build(app)
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command: Any = root.get_command(None, name)  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [(name, word) for word in inner] if inner else [(name,)]
    return found


def main() -> None:
    """Run the command line."""
    for text in sys.argv[1:]:
        try:
            text.encode()
        except UnicodeEncodeError:
            # Nothing of what Hark stores or sends could hold it, so it is told here rather than in the middle of things.
            typer.echo(f"error: the argument {text!a} is not UTF-8 text", err=True)
            sys.exit(2)
    app()


if __name__ == "__main__":
    main()
