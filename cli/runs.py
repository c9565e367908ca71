"""``hark runs``: flow runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .call import AsJson, ago, ask, group, json_argument, pairs, plain, show, table, to_json
from .cancel_runs import cancel
from .ident import run_id_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..server.client import Hark
    from ..vocabulary import JsonObject

runs = group(
    "Look at and steer flow runs: ls, show, logs, watch, cancel, pause, suspend, resume, retry, delete."
)

T = TypeVar("T")

_Id = Annotated[str, typer.Argument(help="The run's id, or its beginning.")]


def _ask_of(run_id: str, call: Callable[[Hark, str], Awaitable[T]]) -> T:
    """Ask the server something of the run whose id this is, or begins so."""

    async def whole(hark: Hark) -> T:
        return await call(hark, await run_id_of(hark, run_id))

    return ask(whole)


def run_rows(items: list[JsonObject]) -> str:
    rows = [
        [
            r["id"],
            r.get("name"),
            r.get("flow_name"),
            r.get("deployment"),
            r.get("state_name"),
            ago(r.get("updated_at")),
        ]
        for r in items
    ]
    return table(["ID", "NAME", "FLOW", "DEPLOYMENT", "STATE", "AGE"], rows, empty="no runs")


@runs.command("ls")
def ls(
    state: Annotated[list[str] | None, typer.Option(help="Only in this state: failed, running …")] = None,
    flow: Annotated[str | None, typer.Option(help="Only of this flow.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Only of this deployment.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    since: Annotated[str | None, typer.Option(help="Not older than this: 10m, 2h, 7d, or a time.")] = None,
    text: Annotated[str | None, typer.Option(help="Only with this in their name, flow or message.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List flow runs, newest first."""
    page = ask(
        lambda h: h.flow_runs(
            state=state, flow=flow, deployment=deployment, tag=tag, since=since, text=text, limit=limit
        )
    )
    show(page.items, run_rows(page.items), as_json=as_json)


_TASKS = 200
"""So many lines of a table are read by people; how many there are of each state stands above them."""


@runs.command("show")
def show_one(
    run_id: _Id,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"At most so many task runs (default: {_TASKS}; with --json all)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one run and its task runs."""
    most = limit if limit is not None or as_json else _TASKS

    async def both(hark: Hark, run_id: str) -> JsonObject:
        run = await hark.flow_run(run_id)
        run["task_runs"] = [*await hark.task_runs(run_id, limit=most)]
        return run

    run = _ask_of(run_id, both)
    text = pairs({k: v for k, v in run.items() if k != "task_runs"})
    tasks = run["task_runs"]
    if isinstance(tasks, list) and tasks:
        rows = [
            [
                t.get("name"),
                t.get("state_name"),
                t.get("attempt"),
                t.get("duration_s"),
                t.get("state_message"),
            ]
            for t in tasks
            if isinstance(t, dict)
        ]
        text += "\n\n" + table(["TASK", "STATE", "ATTEMPT", "SECONDS", "MESSAGE"], rows)
        states = run.get("task_states")
        there = sum(n for n in states.values() if isinstance(n, int)) if isinstance(states, dict) else 0
        if there > len(tasks):
            text += f"\nThese are the first {len(tasks)} of {there} task runs; --limit shows more."
    show(run, text, as_json=as_json)


@runs.command("logs")
def logs(
    run_id: _Id,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes until the run is over.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the log lines of a run."""
    if follow:
        _ask_of(run_id, lambda h, id_: _follow(h, id_, as_json=as_json))
        return
    lines = _ask_of(run_id, lambda h, id_: h.flow_run_logs(id_))
    text = "\n".join(log_line(line) for line in lines) or "no log lines"
    show(lines, text, as_json=as_json)


async def _follow(hark: Hark, run_id: str, *, as_json: bool) -> None:
    async for line in hark.follow_flow_run_logs(run_id):
        typer.echo(to_json(line) if as_json else log_line(line))


def log_line(line: JsonObject) -> str:
    level = line.get("level")
    name = logging.getLevelName(level) if isinstance(level, int) else level
    message = "\n    ".join(plain(part) for part in str(line.get("message", "")).splitlines() or [""])
    return f"{line.get('at')}  {name!s:<7}  {plain(line.get('logger'))}  {message}"


@runs.command("watch")
def watch(run_id: _Id, as_json: AsJson = False) -> None:
    """Print the transitions of a run until it is over; exit 1 if it did not complete."""

    async def follow(hark: Hark, run_id: str) -> str:
        run = await hark.flow_run(run_id)
        if not run.get("is_final"):
            async for item in hark.watch_events("flow-run.*", subject=f"flow-run/{run_id}", after=_seq(run)):
                typer.echo(to_json(item) if as_json else _transition(item))
                event: Any = item["event"]
                if event["data"]["state"]["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"):
                    return str(event["data"]["state"]["type"])
        else:
            typer.echo(
                to_json(run) if as_json else f"{run.get('state_name')}: {plain(run.get('state_message'))}"
            )
        return str(run.get("state_type"))

    if _ask_of(run_id, follow) != "COMPLETED":
        raise typer.Exit(1)


def _seq(run: JsonObject) -> int | None:
    seq = run.get("seq")
    return seq if isinstance(seq, int) else None


def _transition(item: JsonObject) -> str:
    event: Any = item["event"]
    state = event["data"]["state"]
    return f"{event['time']}  {state['name']:<24}  {plain(state.get('message') or '')}".rstrip()


def _done(run: JsonObject, as_json: bool) -> None:
    show(run, f"{run['id']}  {run.get('state_name')}", as_json=as_json)


runs.command("cancel")(cancel)


@runs.command("suspend")
def suspend(run_id: _Id, as_json: AsJson = False) -> None:
    """Stop a run for now and free its worker; what is finished is kept."""
    _done(_ask_of(run_id, lambda h, id_: h.flow_run_action(id_, "suspend")), as_json)


@runs.command("pause")
def pause(run_id: _Id, as_json: AsJson = False) -> None:
    """Do what suspend does."""
    suspend(run_id, as_json)


@runs.command("resume")
def resume(
    run_id: _Id,
    given: Annotated[
        str | None, typer.Option("--input", help="What the run waits for, as JSON; - reads stdin.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a paused or suspended run go on."""
    body: JsonObject = {} if given is None else {"input": json_argument(given)}
    _done(_ask_of(run_id, lambda h, id_: h.flow_run_action(id_, "resume", **body)), as_json)


@runs.command("retry")
def retry(
    run_id: _Id,
    from_start: Annotated[bool, typer.Option("--from-start", help="Run all of it again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a failed run again, from the failed task."""
    _done(_ask_of(run_id, lambda h, id_: h.retry_flow_run(id_, from_start=from_start)), as_json)


@runs.command("delete")
def delete(
    run_ids: Annotated[
        list[str], typer.Argument(help="The runs' ids, or their beginnings.", metavar="RUN_ID...")
    ],
    reason: Annotated[str, typer.Option(help="Said in the event that tells of it.")] = "",
) -> None:
    """Delete runs that are over, with their task runs, logs and artifacts. What happened stays in the log of events."""

    async def each(hark: Hark) -> None:
        # All are known before the first is gone.
        for run_id in [await run_id_of(hark, one) for one in run_ids]:
            gone = await hark.delete_flow_run(run_id, reason=reason)
            typer.echo(f"{gone['id']}  {gone.get('name')} is deleted")

    ask(each)
