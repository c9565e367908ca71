"""Flows: functions whose calls are flow runs, and which other runs, schedules and rules can start by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypedDict, TypeVar, cast, overload

from ..vocabulary import JsonObject, JsonValue
from .calls.parameters import CallShape
from .calls.task_call import as_tuple
from .code.reference import reduced, restore
from .context import check_tags
from .futures import TaskFuture
from .life import flow_engine
from .options.deployable import Deployable
from .options.drawable import Drawable
from .options.drawing import drawing
from .options.hooks import Hook, check_hooks
from .options.keeping import Keeping
from .options.marked import Marked
from .options.task_options import (
    HOOKS,
    Binds,
    check_options,
    check_retries,
    check_timeout,
    engine_settings,
    is_async,
    take_own,
    unwrapped,
)
from .runs.final_state import sums_up
from .runs.naming import check_name, check_template, flow_name_of
from .states import State
from .task_runners import TaskRunner, ThreadPoolTaskRunner

if TYPE_CHECKING:
    from typing import Unpack

    from .serializers import Serializer

__all__ = ["Flow", "FlowDecorator", "FlowOptions", "flow", "load_flow_from_entrypoint", "select_flow"]

P = ParamSpec("P")
R = TypeVar("R")


class FlowOptions(TypedDict, total=False):
    """What can be said of a flow, in ``@flow(...)`` and ``with_options(...)``.

    name: default: the function's, with dashes. description: default: its docstring.
    version: default: a hash of the file it is defined in.
    flow_run_name: a template of the parameters (``"etl-{day}"``), or a function giving the name.
    retries, retry_delay_seconds: how often the whole function is tried again, and after how long; default: as the
        settings say. In a tracked run, tasks that completed are not run again.
    crash_retries: how often a run whose worker or process died is taken up again; a plain number, because it is read
        from the text of the file, without importing it. Default: the worker's setting.
    timeout_seconds: for each try; see ``timeouts.py`` for what can be interrupted.
    task_runner: where submitted tasks run; a runner or its class. Default: ``ThreadPoolTaskRunner()``.
    validate_parameters: False: take parameters as they come.
    persist_result: False: do not record results, of the flow and of its tasks. True: keep them, also for the retries of a
        flow that is not tracked and for equal calls. None: as the flow or task around; else recorded in tracked runs.
    result_storage: where results are kept, of the flow and of its tasks: a URL, a path, a saved block (``"slug/name"``) or
        a block. result_serializer: how they are written: ``"json"``, ``"compressed/pickle"``, …
    cache_result_in_memory: taken, and passed on to tasks; a value stays in memory while its state is held.
    log_prints: send ``print`` to the run's log; None: as the parent flow does.
    tags: put on each of its runs and on what they call.
    on_running, on_completion, on_failure, on_cancellation, on_crashed: lists of ``hook(flow, flow_run, state)``.
    """

    name: str | None
    version: str | None
    description: str | None
    flow_run_name: str | Callable[..., str] | None
    retries: int | None
    retry_delay_seconds: float | None
    crash_retries: int | None
    timeout_seconds: float | None
    task_runner: TaskRunner | type[TaskRunner] | None
    validate_parameters: bool | None
    persist_result: bool | None
    result_storage: object
    result_serializer: Serializer | str | None
    cache_result_in_memory: bool | None
    log_prints: bool | None
    tags: Iterable[str] | None
    on_running: Sequence[Hook] | None
    on_completion: Sequence[Hook] | None
    on_failure: Sequence[Hook] | None
    on_cancellation: Sequence[Hook] | None
    on_crashed: Sequence[Hook] | None


class Flow(Marked, Deployable, Drawable, Generic[P, R]):
    """A function marked with ``@flow``. ``flow.fn`` is the function itself.

    Raises:
        TypeError, ValueError, DefinitionError: an option makes no sense; the message says which.
    """

    def __init__(self, fn: Callable[P, R], *called: str, **options: Unpack[FlowOptions]) -> None:
        if called:
            (options["name"],) = called  # said by its place, as code written for Prefect may
        check_options("flow", options, FlowOptions)
        self._binds: Binds
        fn, self._binds = unwrapped("flow", fn)
        self._options = options
        self.fn = fn
        functools.update_wrapper(self, fn, updated=())
        name = options.get("name")
        self.name = check_name("flow", name if name is not None else flow_name_of(fn))
        self.shape = CallShape(fn, label=f"flow {self.name!r}")
        self.description = options.get("description") or inspect.getdoc(fn)
        self._version = options.get("version")
        self._is_in_no_file = False  # as far as anybody has looked
        self.flow_run_name = options.get("flow_run_name")
        check_template("flow_run_name", self.flow_run_name)
        retries, delay_s = options.get("retries"), options.get("retry_delay_seconds")
        self._retries = None if retries is None else check_retries(retries)
        self._retry_delay_s = None if delay_s is None else _check_delay(delay_s)
        crash_retries = options.get("crash_retries")
        self.crash_retries = None if crash_retries is None else check_retries(crash_retries)
        self.timeout_seconds = check_timeout(options.get("timeout_seconds"))
        runner = options.get("task_runner")
        if isinstance(runner, type):
            runner = runner()
        if not isinstance(runner, TaskRunner | None):
            raise TypeError(f"task_runner must be a task runner, got {runner!r}")
        self.task_runner: TaskRunner = runner or ThreadPoolTaskRunner()
        self.should_validate_parameters = options.get("validate_parameters") is not False
        self.result_storage, self.result_serializer = (
            options.get("result_storage"),
            options.get("result_serializer"),
        )
        self.cache_result_in_memory = options.get("cache_result_in_memory") is not False
        self.keeping = Keeping.of(options)
        """What it says of its results, and of those of its tasks; None: nothing."""
        self.persist_result = self.keeping.persist if self.keeping is not None else None
        self.log_prints = options.get("log_prints")
        self.tags = check_tags(options.get("tags") or ())
        self.hooks: dict[str, list[Hook]] = {
            argument: check_hooks(argument, options.get(argument)) for argument in HOOKS
        }
        self.isgenerator = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)
        self.isasync = is_async(fn)
        self._bound_shape: CallShape | None = None

    @property
    def retries(self) -> int:
        """As given, or else what the settings say (``engine.flow_retries``)."""
        return engine_settings().flow_retries if self._retries is None else self._retries

    @property
    def retry_delay_seconds(self) -> float:
        """As given, or else what the settings say (``engine.flow_retry_delay_s``)."""
        return engine_settings().flow_retry_delay_s if self._retry_delay_s is None else self._retry_delay_s

    @property
    def on_running_hooks(self) -> list[Hook]:
        return self.hooks["on_running"]

    @property
    def version(self) -> str | None:
        """As given, or else a hash of the defining file; None where there is no file."""
        if self._version is None and not self._is_in_no_file:
            self._version = _version_of_file(self.fn)
            self._is_in_no_file = self._version is None
        return self._version

    @property
    def parameters(self) -> JsonObject:
        """The JSON schema of the parameters."""
        return self.shape.json_schema()

    def serialize_parameters(self, parameters: Mapping[str, Any]) -> JsonObject:
        """Return parameters as JSON, as a run is asked for with them; what has no such form is named by its type."""
        return {name: _as_json(value) for name, value in parameters.items() if value is not self._bound_to()}

    def _bound_to(self) -> object:
        return getattr(self.fn, "__self__", _NOTHING)

    def validate_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters, given by name, with defaults, checked and coerced by the type hints.

        Raises:
            ParameterError: one is missing, unknown, or does not fit; the message names it.
        """
        return self.shape.validate(self.shape.from_mapping(parameters))

    # --- being a method ------------------------------------------------------------------------------

    def __get__(self, instance: object, owner: type | None = None) -> Flow[..., R]:
        target = owner if self._binds == "class" else instance
        if target is None or self._binds == "nothing":
            return self
        # Not copy.copy(), which makes a flow anew of its options, and so looks this one up once more.
        bound: Flow[..., R] = object.__new__(type(self))
        bound.__dict__.update(self.__dict__, _binds="nothing")
        bound.fn = MethodType(self.fn, target)
        if self._bound_shape is None:
            self._bound_shape = CallShape(bound.fn, label=f"flow {self.name!r}")
        bound.shape = self._bound_shape
        return bound

    # --- calling -------------------------------------------------------------------------------------

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def __call__(
        self, *args: Any, return_state: Literal[True], wait_for: Any = ..., **kwargs: Any
    ) -> Any: ...

    @overload
    def __call__(self, *args: Any, wait_for: Any, return_state: bool = ..., **kwargs: Any) -> Any: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow here and now and return its result; inside another run it is a subflow with a run of its own.

        Where a broker is known (``HARK_NATS_URL``, or one found under ``HARK_HOME``) the run is tracked.

        Args:
            return_state: return the final state instead; nothing is raised then.
            wait_for: futures or states that must complete first.
        Raises:
            ParameterError: the arguments do not fit.
            UpstreamFailed: something it waits for did not complete.
            Exception: whatever the function raised, once no retries are left; or what a state stands for that it returned.
                Where it returned several states or futures, these states are the result, whatever became of them.
        """
        return_state, wait_for = take_own(kwargs) if kwargs else (False, None)
        parameters = self.shape.bind(args, kwargs)
        if drawing.count and (picture := drawing.picture) is not None:
            return picture.call(self.name, parameters, None, is_async=self.isasync)
        waits = as_tuple(wait_for)
        if self.isgenerator:
            if return_state:
                raise ValueError(
                    f"The return_type for a generator flow must be 'result': {self.name!r} has no state until it is read"
                )
            if self.isasync:
                return flow_engine.run_flow_generator_async(self, parameters, waits)
            return flow_engine.run_flow_generator(self, parameters, waits)
        if self.isasync:
            return _call_async(self, parameters, waits, return_state)
        state = flow_engine.run_flow(self, parameters, waits)
        if return_state:
            return state
        return state.data if sums_up(state) else state.result()

    # --- making others -------------------------------------------------------------------------------

    def with_options(self, **options: Unpack[FlowOptions]) -> Flow[P, R]:
        """Return a copy with some options changed; what is not given stays, and None takes an option away."""
        merged = cast("FlowOptions", {**self._options, **options})
        if options.get("name") is None:
            merged["name"] = self.name
        for argument, hooks in self.hooks.items():
            # Also those that decorators have added since.
            if argument not in options:
                merged[argument] = list(hooks)  # type: ignore[literal-required]
        new = Flow(self.fn, **merged)
        new._binds = self._binds
        new._origin = self._origin
        return new

    # --- going to other processes --------------------------------------------------------------------

    def __reduce__(self) -> Any:
        return reduced(self, self._binds)

    def __setstate__(self, state: Any) -> None:
        restore(self, state)

    # --- hooks ---------------------------------------------------------------------------------------

    def on_running(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run, or a retry of it, begins."""
        self.hooks["on_running"].append(fn)
        return fn

    def on_completion(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run completes."""
        self.hooks["on_completion"].append(fn)
        return fn

    def on_failure(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run fails and no retries are left."""
        self.hooks["on_failure"].append(fn)
        return fn

    def on_cancellation(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run is cancelled."""
        self.hooks["on_cancellation"].append(fn)
        return fn

    def on_crashed(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run crashes."""
        self.hooks["on_crashed"].append(fn)
        return fn

    def __repr__(self) -> str:
        return f"<flow {self.name!r}>"


def load_flow_from_entrypoint(entrypoint: str, use_placeholder_flow: bool = True) -> Flow[..., Any]:
    """Return the flow that ``path/file.py:function``, ``package.module:function`` or ``package.module.function`` names.

    Paths begin at the working folder.

    Args:
        use_placeholder_flow: does nothing here: a file that cannot be imported is an error. For code written for Prefect.
    Raises:
        MissingFlowError: there is none of that name. ScriptFailed: the file raises when it is imported.
        DefinitionError: not an entrypoint, or there is no such file.
    """
    from ..errors import HarkError, MissingFlowError, ScriptFailed
    from .code.loader import Loader

    del use_placeholder_flow
    words = entrypoint.split(".")
    if len(words) > 1 and words[-1] != "py" and all(word.isidentifier() for word in words):
        entrypoint = f"{'.'.join(words[:-1])}:{words[-1]}"
    try:
        found = Loader().load(entrypoint)
    except HarkError:
        raise
    except Exception as exc:
        raise ScriptFailed(exc, entrypoint.rpartition(":")[0]) from exc
    if not isinstance(found, Flow):  # a task, say, which the service may deploy
        what, kind = entrypoint.rpartition(":")[2], type(found).__name__.lower()
        raise MissingFlowError(
            f"Function with name {what!r} is not a flow: {entrypoint} names a {kind}",
            hint="mark the function with @flow",
        )
    return found


def select_flow(
    flows: Iterable[Flow[P, R]], flow_name: str | None = None, from_message: str | None = None
) -> Flow[P, R]:
    """Return the flow of a name, or the only one there is.

    Raises:
        MissingFlow: there is none (of that name). DefinitionError: there are several, and no name was given.
    """
    from ..errors import DefinitionError, MissingFlow, MissingFlowError

    where = f" {from_message}" if from_message else ""
    known = {flow.name: flow for flow in flows}
    if not known:
        raise MissingFlowError(f"No flows found{where}", hint="mark the function with @flow")
    if flow_name is None and len(known) > 1:
        raise DefinitionError(f"there are several flows{where}: {', '.join(sorted(known))}; say which")
    name = flow_name or next(iter(known), "")
    if name not in known:
        raise MissingFlow(f"flow{where}", name, known=list(known))
    return known[name]


async def _call_async(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any], return_state: bool
) -> Any:
    state = await flow_engine.run_flow_async(flow, parameters, wait_for)
    if return_state:
        return state
    return state.data if sums_up(state) else await state.aresult()


class FlowDecorator:
    """Marks a function as a flow: ``@flow`` or ``@flow(retries=3, …)``. The options are those of ``FlowOptions``."""

    @overload
    def __call__(self, fn: Callable[P, R], /, **options: Unpack[FlowOptions]) -> Flow[P, R]: ...

    @overload
    def __call__(
        self, fn: None = None, /, **options: Unpack[FlowOptions]
    ) -> Callable[[Callable[P, R]], Flow[P, R]]: ...

    def __call__(self, fn: Callable[P, R] | None = None, /, **options: Unpack[FlowOptions]) -> Any:
        if fn is None:
            check_options("flow", options, FlowOptions)
            return lambda fn: Flow(fn, **options)
        return Flow(fn, **options)

    def __reduce__(self) -> str:
        return "flow"

    from_source = staticmethod(Flow.from_source)
    afrom_source = staticmethod(Flow.afrom_source)


flow = FlowDecorator()


_NOTHING = object()


def _as_json(value: Any) -> JsonValue:
    if isinstance(value, TaskFuture | State):
        return f"<{type(value).__name__}>"
    from pydantic_core import to_jsonable_python

    try:
        plain: JsonValue = to_jsonable_python(value)
    except Exception:  # of whatever kind the value's class raises
        return f"<{type(value).__name__}>"
    return plain


def _check_delay(delay: object) -> float:
    if not isinstance(delay, int | float) or isinstance(delay, bool) or delay < 0:
        raise ValueError(f"retry_delay_seconds of a flow must be a number >= 0, got {delay!r}")
    return float(delay)


def _version_of_file(fn: Callable[..., Any]) -> str | None:
    try:
        path = inspect.getsourcefile(inspect.unwrap(fn))
    except TypeError:
        return None
    try:
        return _hash_of(path, Path(path).stat().st_mtime_ns) if path else None
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _hash_of(path: str, changed_ns: int) -> str:
    # A worker loads a file again when it has changed: the moment of its change is part of what is remembered.
    return sha256(Path(path).read_bytes()).hexdigest()[:16]
