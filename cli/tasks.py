"""``hark tasks``: serving what ``task.delay`` asks for, and looking at task runs."""

from __future__ import annotations

from typing import Annotated

import typer

from .call import AsJson, ago, ask, group, pairs, show, table

tasks = group("Background tasks: serve, list, show.")


@tasks.command("serve")
def serve(
    entrypoints: Annotated[
        list[str],
        typer.Argument(metavar="FILE:TASK…", help="path/file.py:task or module:task, one or several."),
    ],
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Runs at once; one that waits for long is none of them.")
    ] = 10,
) -> None:
    """Run what `task.delay(…)` asks of tasks in this process, until it is stopped."""
    from ..engine.tasks import Task
    from ..errors import DefinitionError
    from ..server.serving import serve as serve_all
    from .run import load_entrypoint

    found = [load_entrypoint(entrypoint) for entrypoint in entrypoints]
    for entrypoint, one in zip(entrypoints, found, strict=True):
        if not isinstance(one, Task):
            raise DefinitionError(
                f"{entrypoint} is no task", hint="decorate it with @task; flows: `hark run`"
            )
    serve_all(*found, limit=limit)


@tasks.command("ls")
def ls(
    state: Annotated[list[str] | None, typer.Option(help="Only in this state: failed, running …")] = None,
    task: Annotated[str | None, typer.Option(help="Only of this task.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List task runs outside any flow, those that changed last first; those of a flow run: `hark runs show`."""
    found = ask(lambda h: h.tasks_alone(state=state, task=task, limit=limit)).items
    rows = [
        [
            run["id"],
            run.get("name"),
            run.get("state_name"),
            run.get("attempt"),
            ago(run.get("updated_at")),
            run.get("state_message"),
        ]
        for run in found
    ]
    show(
        found,
        table(["ID", "NAME", "STATE", "ATTEMPT", "AGE", "MESSAGE"], rows, empty="no task runs"),
        as_json=as_json,
    )


@tasks.command("show")
def show_one(
    task_run: Annotated[str, typer.Argument(help="The task run's id.")], as_json: AsJson = False
) -> None:
    """Show one task run, of a flow or of `delay`."""
    item = ask(lambda h: h.task_run(task_run))
    show(item, pairs(item), as_json=as_json)
