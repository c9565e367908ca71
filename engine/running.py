"""Running a task or a flow by a function instead of by calling it: ``run_task``, ``run_flow``. For code written for Prefect."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from logging import Logger
from typing import Any, Literal, TypeAlias
from uuid import UUID

from .calls.task_call import TaskCall, as_tuple, prepare
from .flows import Flow
from .life import flow_engine
from .life.task_engine import call_async, call_sync, run_async, run_sync
from .life.task_generator import run_generator, run_generator_async
from .runs.final_state import sums_up
from .runs.run import FlowRun
from .tasks import Task

__all__ = ["run_flow", "run_flow_async", "run_flow_sync", "run_task", "run_task_async", "run_task_sync"]

What: TypeAlias = Literal["result", "state"]


def run_task(
    task: Task[..., Any],
    task_run_id: object = None,
    task_run: Any = None,
    parameters: Mapping[str, Any] | None = None,
    wait_for: Any = None,
    return_type: What = "result",
    dependencies: Mapping[str, Iterable[Any]] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Any:
    """Run a task as a call of it does: of an async one, return what is to be awaited, of a generator, what is to be read.

    Args:
        task_run_id: the id that the run gets. task_run: one whose id it gets instead.
        parameters: by name; those that are missing have their defaults.
        wait_for: futures that must complete first.
        return_type: ``state``: return the final state, and raise nothing.
        dependencies: runs it is shown to depend on, by name; nothing waits for them.
        context: of ``serialize_context``: what run it is called in, if not the one around.
    Raises:
        ValueError: the state of a generator was asked for; the id is no UUID.
        Exception: whatever the function raised, once no retries are left.
    """
    given_id = getattr(task_run, "id", None) or task_run_id
    id_ = None if given_id is None else str(UUID(str(given_id)))
    if task.isgenerator:
        if return_type != "result":
            raise ValueError(f"The return_type for a generator task must be 'result', got {return_type!r}")
        with _in(context):
            call = _call(task, id_, parameters, wait_for, dependencies)
        return run_generator_async(call) if task.isasync else run_generator(call)
    if task.isasync:
        return _run_async(task, id_, parameters, wait_for, return_type, dependencies, context)
    with _in(context):
        call = _call(task, id_, parameters, wait_for, dependencies)
        return run_sync(call) if return_type == "state" else call_sync(call)


async def _run_async(
    task: Task[..., Any],
    id_: str | None,
    parameters: Mapping[str, Any] | None,
    wait_for: Any,
    return_type: What,
    dependencies: Mapping[str, Iterable[Any]] | None,
    context: Mapping[str, Any] | None,
) -> Any:
    with _in(context):
        call = _call(task, id_, parameters, wait_for, dependencies)
        return await (run_async(call) if return_type == "state" else call_async(call))


def _call(
    task: Task[..., Any],
    id_: str | None,
    parameters: Mapping[str, Any] | None,
    wait_for: Any,
    dependencies: Mapping[str, Iterable[Any]] | None,
) -> TaskCall:
    given = task.shape.with_defaults(parameters or {})
    call = prepare(task, given, wait_for, is_direct=True, id_=id_)
    if dependencies:
        # RunInput-like things: only those that are runs have an id.
        by = {
            name: tuple(str(run.id) for run in runs if hasattr(run, "id"))
            for name, runs in dependencies.items()
        }
        run = call.run
        run.upstream_by = {**run.upstream_by, **by}
        run.upstream = tuple(dict.fromkeys((*run.upstream, *(id_ for ids in by.values() for id_ in ids))))
    return call


def run_flow(
    flow: Flow[..., Any],
    flow_run: FlowRun | None = None,
    parameters: Mapping[str, Any] | None = None,
    wait_for: Iterable[Any] | None = None,
    return_type: What = "result",
    error_logger: Logger | None = None,
    context: Mapping[str, Any] | None = None,
) -> Any:
    """Run a flow as a call of it does: of an async one, return what is to be awaited, of a generator, what is to be read.

    Args:
        flow_run: a run that was made before (``get_client().create_flow_run``, a deployment's), to be run here, now.
        parameters: by name; those that are missing have their defaults.
        wait_for, return_type, context: as of ``run_task``.
        error_logger: told when the flow raises.
    Raises:
        ValueError: the state of a generator was asked for.
        ParameterError: a parameter is missing, or does not fit.
        RunLost: somebody else has the run.
        Exception: whatever the function raised, once no retries are left.
    """
    if flow.isasync and not flow.isgenerator:
        return _flow_async(flow, flow_run, parameters, wait_for, return_type, error_logger, context)
    given, waits = flow.shape.with_defaults(parameters or {}), as_tuple(wait_for)
    if flow.isgenerator:
        if return_type != "result":
            raise ValueError(f"The return_type for a generator flow must be 'result', got {return_type!r}")
        with _in(context):
            generate = (
                flow_engine.run_flow_generator_async if flow.isasync else flow_engine.run_flow_generator
            )
            return generate(flow, given, waits)
    with _in(context), _telling(error_logger):
        if flow_run is not None:
            state = flow_engine.execute_sync(flow, flow_run)
        else:
            state = flow_engine.run_flow(flow, given, waits)
        if return_type == "state":
            return state
        return state.data if sums_up(state) else state.result()


async def _flow_async(
    flow: Flow[..., Any],
    flow_run: FlowRun | None,
    parameters: Mapping[str, Any] | None,
    wait_for: Iterable[Any] | None,
    return_type: What,
    error_logger: Logger | None,
    context: Mapping[str, Any] | None,
) -> Any:
    given = flow.shape.with_defaults(parameters or {})
    with _in(context), _telling(error_logger):
        if flow_run is not None:
            state = await flow_engine.execute(flow, flow_run)
        else:
            state = await flow_engine.run_flow_async(flow, given, as_tuple(wait_for))
        if return_type == "state":
            return state
        return state.data if sums_up(state) else await state.aresult()


def _in(context: Mapping[str, Any] | None) -> AbstractContextManager[None]:
    if context is None:
        return nullcontext()
    from .executors.carried import hydrated_context

    return hydrated_context(context)


@contextmanager
def _telling(logger: Logger | None) -> Generator[None]:
    try:
        yield
    except BaseException:
        if logger is not None:
            logger.exception("The flow could not be run to its end")
        raise


run_task_sync = run_task_async = run_task
run_flow_sync = run_flow_async = run_flow
