"""``task.delay``: having a task run by any worker that serves it, and being given its future at once."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.emit import CauseAttrs, current_cause
from ...bus.event import Event
from ...errors import DefinitionError
from ...vocabulary import JsonObject, derived_id, new_id
from ..annotations import allow_failure, quote, unmapped
from ..calls.nested import replace_leaves
from ..calls.task_call import as_tuple, resolve_inputs
from ..context import FlowRunContext, current_run, current_tags
from ..futures import TaskFuture
from ..results import InlineResult, LargeResult, encode_result
from ..runs.replay import begins_anew
from ..runs.run_log import RunLog
from ..states import State
from ..sync_async.either import blocking_session
from .background import BackgroundLog, scheduled_event
from .distributed_future import DistributedFuture

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..tasks import Task

__all__ = ["key_of", "send"]

MAX_KEY_CHARS = 120


def key_of(task: Task[..., Any]) -> str:
    """Return the name under which a task's runs wait for a worker: its name, its module's last word, its function's name.

    Not more of the module: the file that is the program of one process is a module of a package in another.
    """
    module = getattr(task.fn, "__module__", None) or ""
    if module == "__main__":
        main = sys.modules.get("__main__")
        spec = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        module = spec.name if spec is not None else os.path.basename(file or "").removesuffix(".py")
    key = f"{task.name}-{module.rpartition('.')[2]}.{getattr(task.fn, '__qualname__', task.name)}"
    if len(key) > MAX_KEY_CHARS:
        key = f"{key[:MAX_KEY_CHARS]}-{blake2b(key.encode(), digest_size=8).hexdigest()}"
    return key


def send(
    task: Task[..., Any],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    wait_for: Any = None,
    dependencies: Mapping[str, Any] | None = None,
) -> DistributedFuture[Any]:
    """Have one run of ``task`` served; return its future. It is accepted for good when this returns.

    Futures of ``delay`` are waited for by whoever serves the run; those of tasks submitted here are waited for first.

    Raises:
        Unpicklable: an argument cannot go to another process.
        UpstreamFailed: a task submitted here, whose future is among the arguments, did not complete.
        BusUnavailable: no broker is known, or it does not answer. StreamFull: too much work is waiting.
    """
    if inspect.ismethod(task.fn):
        raise DefinitionError(
            f"task {task.name!r} is a method, and the object it belongs to does not go along to another process",
            hint="make it a function, or a staticmethod, that is given what it needs",
        )
    what = f"task {task.name!r}"
    parameters = task.shape.bind(tuple(args), dict(kwargs or {}))
    upstream: dict[str, None] = {}
    distributed: dict[str, DistributedFuture[Any]] = {}
    sent = {name: _that_travels(value, upstream, distributed, what) for name, value in parameters.items()}
    sent_waits: list[Any] = []
    for item in as_tuple(wait_for):
        others: dict[str, DistributedFuture[Any]] = {}
        travels = _that_travels(item, upstream, others, what)
        if others:  # the rest has been waited for
            sent_waits.append(travels)
            distributed |= others
    _that_travels(dict(dependencies or {}), upstream, {}, what)
    flow = FlowRunContext.get()
    tracker = flow.tracker if flow is not None else None
    session = blocking_session("task.delay()")
    from ...config import load_settings

    inline_bytes = load_settings().engine.inline_result_bytes
    if tracker is not None:
        inline_bytes = tracker.events.inline_bytes
    given: dict[str, Any] = {"parameters": sent}
    if sent_waits:
        given["wait_for"] = sent_waits
    encoded = encode_result(given, inline_bytes=inline_bytes)
    if isinstance(encoded, str) and '"missing"' in encoded[:40]:
        from ..executors.shipment import about_arguments

        raise about_arguments(task, sent)
    run_id = new_id()
    if tracker is not None:
        context = current_run.get()
        assert context is not None
        assert flow is not None
        key, _ = context.calls.key(f"delay:{task.name}", parameters, salt=task.key_salt)
        run_id = session.call(_id_in_flow, session, flow, key)
    tags = current_tags.get() | task.tags
    cause = current_cause.get()
    future: DistributedFuture[Any] = DistributedFuture(run_id, f"{task.name}-{run_id[-6:]}")
    facts: dict[str, Any] = {
        "run_id": run_id, "key": key_of(task), "run_name": future.name, "task": {"name": task.name, "key": task.task_key},
        "wait_for": list(distributed), "upstream": list(upstream), "tags": sorted(tags), "flow": _flow_facts(flow),
        **_caused(cause), "now": datetime.now(UTC),
    }  # fmt: skip
    session.call(_send, session, encoded, facts)
    return future


async def _send(session: Session, encoded: InlineResult | LargeResult, facts: Mapping[str, Any]) -> None:
    if isinstance(encoded, LargeResult):
        name = f"arguments/{facts['run_id']}"
        await session.bus.objects.put(name, encoded.data)
        encoded = encoded.reference(name)
    await BackgroundLog(session.bus).ask(scheduled_event(arguments=orjson.loads(encoded), **facts))


async def _id_in_flow(session: Session, flow: FlowRunContext, key: str) -> str:
    """Return the id of the run that this very call asks for, the same when the flow run is taken up again."""
    run = flow.flow_run
    # A flow run that is run again from its start asks for everything anew.
    anew = begins_anew(await RunLog(session.bus).history(run.id)) if run.attempt > 1 else 0
    run_id = derived_id("delay", run.id, key, str(anew))
    undoing = flow.tracker.undoing if flow.tracker is not None else None
    if undoing is not None and await BackgroundLog(session.bus).get(run_id) is None:
        undoing.stop()
    return run_id


def _that_travels(
    value: Any, upstream: dict[str, None], distributed: dict[str, DistributedFuture[Any]], what: str
) -> Any:
    """Return an argument with results in place of what is known here only, noting what it depends on."""

    def change(leaf: Any, allowed: bool = False) -> Any:
        if isinstance(leaf, DistributedFuture):
            upstream[leaf.task_run_id] = None
            distributed[leaf.task_run_id] = leaf
            return allow_failure(leaf) if allowed else leaf
        if isinstance(leaf, TaskFuture | State):
            id_ = leaf.task_run_id if isinstance(leaf, TaskFuture) else leaf.run_id
            if id_:
                upstream[id_] = None
            known = allow_failure(leaf) if allowed else leaf
            return resolve_inputs({"value": known}, (), what=what)["value"]
        if isinstance(leaf, allow_failure):
            return replace_leaves(leaf.value, lambda inner: change(inner, True))
        if isinstance(leaf, unmapped):
            return replace_leaves(leaf.value, change)
        if isinstance(leaf, quote):
            return leaf
        return leaf

    return replace_leaves(value, change)


def _flow_facts(flow: FlowRunContext | None) -> JsonObject | None:
    if flow is None or flow.tracker is None:
        return None
    run = flow.flow_run
    return {
        "flow_run": {"id": run.id, "name": run.name, "attempt": run.attempt}, "flow": {"name": run.flow_name},
        "deployment": {"name": run.deployment} if run.deployment else None,
    }  # fmt: skip


def _caused(cause: Event | CauseAttrs | None) -> dict[str, Any]:
    """Return the story the run belongs to: that of the run or event around it."""
    if isinstance(cause, Event):
        caused = cause.caused()
        del caused["traceparent"]
        return caused
    if cause is not None:
        return {
            "correlationid": cause.correlationid,
            "causationid": cause.causationid,
            "causaldepth": cause.causaldepth,
        }
    return {"correlationid": None, "causationid": None, "causaldepth": 0}
