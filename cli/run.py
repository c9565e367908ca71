"""``hark run FILE:FLOW``: call a flow here and now, tracked when a broker is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .call import AsJson, key_values, run_async, to_json

if TYPE_CHECKING:
    from collections.abc import Callable


def run(
    entrypoint: Annotated[str, typer.Argument(metavar="FILE:FLOW", help="path/file.py:flow or module:flow")],
    parameters: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="NAME=VALUE; JSON keeps its type.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a flow in this process and print what it returns; exit 1 if it failed."""
    from ..engine.tasks import Task
    from ..errors import DefinitionError

    flow = load_entrypoint(entrypoint)
    if isinstance(flow, Task):
        raise DefinitionError(f"{entrypoint} is a task, not a flow", hint="serve it with `hark tasks serve`")
    given = key_values(parameters or [])
    state = _call(flow, given)
    if state.is_completed():
        value = state.data
        if value is not None or as_json:
            typer.echo(to_json(value) if as_json or not isinstance(value, str) else value)
        return
    typer.echo(f"error: the run ended {state.name}: {state.message or ''}".rstrip(": "), err=True)
    raise typer.Exit(1)


def load_entrypoint(entrypoint: str) -> Any:
    """Return the flow or task that an entrypoint names. Raises ``DefinitionError`` if there is none."""
    import importlib
    import importlib.util

    from ..errors import DefinitionError
    from ..server.entrypoint import inspect_entrypoint

    if ":" not in entrypoint:
        hint = "write the function's name too: flows/etl.py:etl"
        if not entrypoint.endswith(".py"):
            hint += f"; a deployment is started with `hark deployments run {entrypoint}`"
        raise DefinitionError(f"{entrypoint!r} is not FILE:FLOW", hint=hint)
    where, _, what = entrypoint.rpartition(":")
    inspect_entrypoint(entrypoint, Path.cwd())
    sys.path.insert(0, str(Path.cwd()))
    if where.endswith(".py"):
        path = Path(where).absolute()
        sys.path.insert(0, str(path.parent))
        # Under its own name, so that process pools and pickles find it again.
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    found: Any = module
    for part in what.split("."):
        found = getattr(found, part, None)
    if found is None or not hasattr(found, "with_options"):
        raise DefinitionError(f"{what!r} in {where} is no flow", hint="decorate it with @flow")
    return found


def _call(flow: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    import inspect

    made = flow(**parameters, return_state=True)
    if inspect.isawaitable(made):

        async def wait() -> Any:
            return await made

        return run_async(wait)
    return made
