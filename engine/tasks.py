"""Tasks: functions whose calls are runs of their own, with retries, timeouts, hooks and recorded results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from hashlib import blake2b
from importlib import import_module
from types import MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    cast,
    overload,
)

import orjson

from .cache_policies import DEFAULT, NO_CACHE, task_input_hash
from .calls.mapping import map_calls
from .calls.parameters import CallShape
from .calls.task_call import as_tuple, prepare
from .code.reference import reduced, restore
from .context import FlowRunContext, check_tags
from .futures import FutureList, TaskFuture
from .life.task_engine import call_async, call_sync, run_async, run_sync
from .life.task_generator import run_generator, run_generator_async
from .options.drawing import drawing
from .options.hooks import Hook, check_hooks, note_task_hooks
from .options.keeping import Keeping
from .options.marked import Marked
from .options.retry import check_delays, exponential_backoff
from .options.task_options import (
    HOOKS,
    STAYS,
    Binds,
    TaskOptions,
    asks_for_cache,
    check_options,
    check_retries,
    check_timeout,
    engine_settings,
    is_async,
    is_no_cache,
    key_of_function,
    policy_of,
    take_own,
    unwrapped,
)
from .runs.naming import check_template
from .states import State
from .task_runners import default_runner

if TYPE_CHECKING:
    from typing import Unpack

    from .background_tasks.distributed_future import DistributedFuture
    from .persistence.caching import TaskCache
    from .task_runners import TaskRunner

__all__ = ["DEFAULT", "NO_CACHE", "Task", "TaskOptions", "exponential_backoff", "task", "task_input_hash"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Task(Marked, Generic[P, R]):
    """A function marked with ``@task``. ``task.fn`` is the function itself.

    Raises:
        TypeError, ValueError, DefinitionError: an option makes no sense; the message says which.
    """

    def __init__(self, fn: Callable[P, R], *called: str, **options: Unpack[TaskOptions]) -> None:
        if called:
            (options["name"],) = called  # said by its place, as code written for Prefect may
        check_options("task", options, TaskOptions)
        self._binds: Binds
        fn, self._binds = unwrapped("task", fn)
        self._options = options
        self.fn = fn
        functools.update_wrapper(self, fn, updated=())
        self.name = str(options.get("name") or getattr(fn, "__name__", type(fn).__name__))
        self.shape = CallShape(fn, label=f"task {self.name!r}")
        self.description = options.get("description") or inspect.getdoc(fn)
        self.version = options.get("version")
        self.tags = check_tags(options.get("tags") or ())
        self.task_key = key_of_function(fn)
        self.key_salt = blake2b(getattr(fn, "__qualname__", self.name).encode(), digest_size=16).digest()
        self.fragment = orjson.dumps({"name": self.name, "key": self.task_key}).decode()
        self.isgenerator = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)
        self.isasync = is_async(fn)
        # Submitted, an async generator gives the list of what it yields, as a sync one does.
        self.body: Callable[..., Any] = _collecting(fn) if inspect.isasyncgenfunction(fn) else fn
        self.task_run_name = options.get("task_run_name")
        check_template("task_run_name", self.task_run_name)
        retries, delays = options.get("retries"), options.get("retry_delay_seconds")
        self._retries = None if retries is None else check_retries(retries)
        self._retry_delays = None if delays is None else check_delays(delays, retries=self._retries or 0)
        self.retry_jitter_factor = options.get("retry_jitter_factor")
        if self.retry_jitter_factor is not None and self.retry_jitter_factor < 0:
            raise ValueError(f"`retry_jitter_factor` must be >= 0, got {self.retry_jitter_factor}.")
        retry_if: object = options.get("retry_condition_fn")
        if retry_if is not None and not callable(retry_if):
            raise TypeError(
                f"Expected `retry_condition_fn` to be callable, got {type(retry_if).__name__} instead."
            )
        self.retry_condition_fn = options.get("retry_condition_fn")
        self.timeout_seconds = check_timeout(options.get("timeout_seconds"))
        self.result_storage, self.result_serializer = (
            options.get("result_storage"),
            options.get("result_serializer"),
        )
        self.result_storage_key = options.get("result_storage_key")
        if self.result_storage_key is not None and not isinstance(self.result_storage_key, str):
            raise TypeError(f"result_storage_key must be a text, got {self.result_storage_key!r}")
        self.cache_result_in_memory = options.get("cache_result_in_memory") is not False
        self.keeping = Keeping.of(
            options, key=self.result_storage_key is not None, asks=asks_for_cache(options)
        )
        """What it says of its results; None: nothing."""
        self.persist_result = self.keeping.persist if self.keeping is not None else None
        self.log_prints = options.get("log_prints")
        self.hooks: dict[str, list[Hook]] = {
            argument: hooks for argument in HOOKS if (hooks := check_hooks(argument, options.get(argument)))
        }
        if self.hooks:
            note_task_hooks()
        self.needs_care = (
            bool(self.hooks) or self.timeout_seconds is not None or self.task_run_name is not None
        )
        """Whether a call needs more than its function to be called; see ``task_engine.call_sync``."""
        self.needs_care |= not self.shape.is_simple
        self.on_commit_hooks = check_hooks("on_commit", options.get("on_commit"))
        self.on_rollback_hooks = check_hooks("on_rollback", options.get("on_rollback"))
        if self.on_rollback_hooks:
            note_task_hooks()
        self.needs_care |= self.has_transaction_hooks
        self.is_uncached = is_no_cache(options.get("cache_policy"))
        """Whether it says NO_CACHE: what is said around it makes no cache for it either."""
        self.cache = self._cache_of(options)
        self.needs_care |= self.cache is not None
        self.on_running_hooks = self.hooks.setdefault("on_running", [])
        self.cache_policy, self.cache_key_fn = policy_of(options), options.get("cache_key_fn")
        self.cache_expiration, self.refresh_cache = (
            options.get("cache_expiration"),
            options.get("refresh_cache"),
        )
        self.viz_return_value, self.asset_deps = (
            options.get("viz_return_value"),
            list(options.get("asset_deps") or ()),
        )
        self._bound_shape: CallShape | None = None
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; of one that is an option, or the function, be what the task would be with that."""
        if "_is_made" not in self.__dict__ or not (name == "fn" or name in TaskOptions.__annotations__):
            object.__setattr__(self, name, value)
            return
        if name == "task_run_name":
            # Whoever calls it is told if that is no name, as in Prefect.
            self.__dict__.update(task_run_name=value, needs_care=True)
            self._options = cast("TaskOptions", {**self._options, name: value})
            return
        # Much is worked out once from the options, for calls to be quick.
        options = {
            "name": self.name,
            **self._options,
            **self.hooks,
            **({} if name == "fn" else {name: value}),
        }
        made = type(self)(value if name == "fn" else self.fn, **cast("TaskOptions", options))
        kept = {
            "_binds": self._binds,
            "task_key": self.task_key,
            "key_salt": self.key_salt,
            "fragment": self.fragment,
        }
        if name not in ("on_commit", "on_rollback"):
            kept |= {"on_commit_hooks": self.on_commit_hooks, "on_rollback_hooks": self.on_rollback_hooks}
        self.__dict__.update(made.__dict__, **kept)
        self.__dict__["needs_care"] |= self.has_transaction_hooks

    @property
    def has_transaction_hooks(self) -> bool:
        """Whether somebody wants to hear of its transaction."""
        return bool(self.on_commit_hooks or self.on_rollback_hooks)

    def _cache_of(self, options: TaskOptions) -> TaskCache | None:
        words = ("cache_policy", "cache_key_fn", "cache_expiration", "refresh_cache")
        if not options.get("persist_result") and all(options.get(word) is None for word in words):
            return None
        from .persistence.caching import TaskCache

        return TaskCache.of(
            self.name, policy=options.get("cache_policy"), key_fn=options.get("cache_key_fn"),
            expiration=options.get("cache_expiration"), refresh=options.get("refresh_cache"), persist=options.get("persist_result"),
        )  # fmt: skip

    # --- being a method ------------------------------------------------------------------------------

    def __get__(self, instance: object, owner: type | None = None) -> Task[..., R]:
        target = owner if self._binds == "class" else instance
        if target is None or self._binds == "nothing":
            return self
        # Not copy.copy(), which makes a task anew of its options, and so looks this one up once more.
        bound: Task[..., R] = object.__new__(type(self))
        fn = MethodType(self.fn, target)
        if self._bound_shape is None:
            self._bound_shape = CallShape(fn, label=f"task {self.name!r}")
        body = _collecting(fn) if inspect.isasyncgenfunction(self.fn) else fn
        bound.__dict__.update(self.__dict__, _binds="nothing", fn=fn, body=body, shape=self._bound_shape)
        return bound

    @property
    def retries(self) -> int:
        """As given, or else what the settings say (``engine.task_retries``)."""
        return engine_settings().task_retries if self._retries is None else self._retries

    @retries.setter
    def retries(self, retries: int) -> None:
        self.__setattr__("retries", retries)  # which is what setting it calls anyway; here for type checkers

    @property
    def retry_delays(self) -> float | tuple[float, ...]:
        """As given, or else what the settings say (``engine.task_retry_delay_s``), in seconds."""
        if self._retry_delays is not None:
            return self._retry_delays
        return check_delays(engine_settings().task_retry_delay_s, retries=self.retries)

    @property
    def retry_delay_seconds(self) -> float | list[float]:
        """The delays before retries: one for all, or a list of which the last repeats."""
        return list(self.retry_delays) if isinstance(self.retry_delays, tuple) else self.retry_delays

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
        """Run the task here and return its result.

        Args:
            return_state: return the final state instead; nothing is raised then.
            wait_for: futures or states that must complete first, besides those among the arguments.
        Raises:
            UpstreamFailed: something it waits for did not complete.
            Exception: whatever the function raised, once no retries are left.
        """
        return_state, wait_for = take_own(kwargs) if kwargs else (False, None)
        parameters = self.shape.bind(args, kwargs)
        if drawing.count and (picture := drawing.picture) is not None:
            return picture.call(self.name, parameters, self.viz_return_value, is_async=self.isasync)
        if self.isgenerator:
            if return_state:
                raise ValueError(
                    "The return_type for a generator task must be 'result': "
                    f"{self.name!r} has no state until it is read"
                )
            if self.isasync:
                return _generate_async(self, parameters, wait_for)
            return _generate(self, parameters, wait_for)
        if self.isasync:
            return _call_async(self, parameters, wait_for, return_state)
        call = prepare(self, parameters, wait_for, is_direct=True)
        return run_sync(call) if return_state else call_sync(call)

    # The arguments are not checked: any of them may be a future of what the function takes.
    @overload
    def submit(
        self, *args: Any, return_state: Literal[True], wait_for: Any = ..., **kwargs: Any
    ) -> State: ...

    @overload
    def submit(
        self: Task[P, Coroutine[Any, Any, T]], *args: Any, return_state: Literal[False] = ..., **kwargs: Any
    ) -> TaskFuture[T]: ...

    @overload
    def submit(self, *args: Any, return_state: Literal[False] = ..., **kwargs: Any) -> TaskFuture[R]: ...

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task by the flow's task runner; return its future at once.

        Args:
            return_state: wait for it, and return its final state.
        """
        if drawing.count:
            drawing.refuse("task.submit()")
        return_state, wait_for = take_own(kwargs) if kwargs else (False, None)
        future = _runner().launch(prepare(self, self.shape.bind(args, kwargs), wait_for))
        if return_state:
            future.wait()
            return future.state
        return future

    @overload
    def map(
        self, *args: Any, return_state: Literal[True], wait_for: Any = ..., **kwargs: Any
    ) -> list[State]: ...

    @overload
    def map(
        self: Task[P, Coroutine[Any, Any, T]],
        *args: Any,
        return_state: Literal[False] = ...,
        wait_for: Any = ...,
        **kwargs: Any,
    ) -> FutureList[T]: ...

    @overload
    def map(
        self, *args: Any, return_state: Literal[False] = ..., wait_for: Any = ..., **kwargs: Any
    ) -> FutureList[R]: ...

    def map(
        self,
        *args: Any,
        return_state: bool = False,
        wait_for: Any = None,
        deferred: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the task once for each element of its iterable arguments, in parallel; return the futures in order.

        Iterables must be equally long. Texts, bytes and files count as single values; ``unmapped(x)`` makes anything
        one. Defaults are not iterated over. A future of a list is waited for and iterated over.

        Args:
            deferred: have each of them run by any worker that serves the task, as ``delay`` does.
        Raises:
            MappingMissingIterable, MappingLengthMismatch: there is no iterable, or they differ in length.
        """
        if drawing.count:
            drawing.refuse("task.map()")
        calls = map_calls(self, self.shape.bind_given(args, kwargs))
        if deferred:
            from .background_tasks.delay import send
            from .utilities.callables import parameters_to_args_kwargs

            asked = [parameters_to_args_kwargs(self.fn, call) for call in calls]
            return FutureList([send(self, given, words, wait_for=wait_for) for given, words in asked])
        runner = _runner()
        waits = None if wait_for is None else as_tuple(wait_for)
        futures = FutureList([runner.launch(prepare(self, parameters, waits)) for parameters in calls])
        if return_state:
            futures.wait()
            return [future.state for future in futures]
        return futures

    def delay(self, *args: Any, **kwargs: Any) -> DistributedFuture[Any]:
        """Have the task run by any worker that serves it (``task.serve()``); return its future at once.

        From sync and async code, in and outside of flows. It is accepted for good when this returns, see ``delay.send``.
        """
        from .background_tasks.delay import send

        if drawing.count:
            drawing.refuse("task.delay()")
        return send(self, args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        wait_for: Any = None,
        dependencies: Mapping[str, Any] | None = None,
    ) -> DistributedFuture[Any]:
        """Do what ``delay`` does, with the arguments as a list and a mapping.

        Args:
            wait_for: futures that must complete first.
            dependencies: futures it is shown to depend on, by name; nothing waits for them.
        """
        from .background_tasks.delay import send

        if drawing.count:
            drawing.refuse("task.apply_async()")
        return send(self, args or (), kwargs, wait_for=wait_for, dependencies=dependencies)

    def serve(self, *, limit: int | None = 10) -> None:
        """Run what ``delay`` asks of this task in this process, until it is stopped (Ctrl-C, TERM). See ``hark.serve``.

        Args:
            limit: runs at once; None: as many as there are.
        """
        import_module(__package__.rpartition(".")[0]).serve(self, limit=limit)

    # --- making others -------------------------------------------------------------------------------

    def with_options(self, **options: Unpack[TaskOptions]) -> Task[P, R]:
        """Return a copy with some options changed; what is not given stays.

        None takes an option away, but for those of which it says nothing (``STAYS``), as in Prefect: the name, the
        description, the tags, the time limit, hooks and what is said of the cache; no tags are ``tags=()``.
        """
        check_options("task", options, TaskOptions)
        changed = {name: value for name, value in options.items() if value is not None or name not in STAYS}
        merged = cast("TaskOptions", {**self._options, **changed})
        options = cast("TaskOptions", changed)
        if options.get("name") is None:
            merged["name"] = self.name
        for argument, hooks in self.hooks.items():
            # Also those that decorators have added since.
            if argument not in options:
                merged[argument] = list(hooks)  # type: ignore[literal-required]
        new = Task(self.fn, **merged)
        new._binds = self._binds
        if "on_commit" not in options:
            new.on_commit_hooks = list(self.on_commit_hooks)
        if "on_rollback" not in options:
            new.on_rollback_hooks = list(self.on_rollback_hooks)
        new.needs_care |= new.has_transaction_hooks
        return new

    # --- going to other processes --------------------------------------------------------------------

    def __reduce__(self) -> Any:
        return reduced(self, self._binds)

    def __setstate__(self, state: Any) -> None:
        restore(self, state)

    def _hook(self, argument: str, fn: Hook) -> Hook:
        self.hooks.setdefault(argument, []).append(fn)
        self.needs_care = True
        note_task_hooks()
        return fn

    def on_commit(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(txn)`` when the transaction that a run is part of is committed."""
        self.on_commit_hooks.append(fn)
        self.needs_care = True
        return fn

    def on_rollback(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(txn)`` to undo a run that completed, when the transaction it is part of is rolled back."""
        self.on_rollback_hooks.append(fn)
        self.needs_care = True
        note_task_hooks()
        return fn

    def on_running(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(task, task_run, state)`` when a try begins."""
        return self._hook("on_running", fn)

    def on_completion(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(task, task_run, state)`` when a run completes."""
        return self._hook("on_completion", fn)

    def on_failure(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(task, task_run, state)`` when a run fails and no retries are left."""
        return self._hook("on_failure", fn)

    def on_cancellation(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(task, task_run, state)`` when a run is cancelled."""
        return self._hook("on_cancellation", fn)

    def on_crashed(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(task, task_run, state)`` when a run crashes."""
        return self._hook("on_crashed", fn)

    def __repr__(self) -> str:
        return f"<task {self.name!r}>"


@overload
def task(fn: Callable[P, R], /, **options: Unpack[TaskOptions]) -> Task[P, R]: ...


@overload
def task(fn: None = None, /, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(fn: Callable[P, R] | None = None, /, **options: Unpack[TaskOptions]) -> Any:
    """Mark a function as a task: ``@task`` or ``@task(retries=3, …)``. The options are those of ``TaskOptions``."""
    if fn is None:
        check_options("task", options, TaskOptions)
        return lambda fn: Task(fn, **options)
    return Task(fn, **options)


# --- calls --------------------------------------------------------------------------------------------


async def _call_async(
    task: Task[..., Any], parameters: dict[str, Any], wait_for: Any, return_state: bool
) -> Any:
    call = prepare(task, parameters, wait_for, is_direct=True)
    return await (run_async(call) if return_state else call_async(call))


def _generate(task: Task[..., Any], parameters: dict[str, Any], wait_for: Any) -> Any:
    return (yield from run_generator(prepare(task, parameters, wait_for)))


async def _generate_async(task: Task[..., Any], parameters: dict[str, Any], wait_for: Any) -> Any:
    async for item in run_generator_async(prepare(task, parameters, wait_for)):
        yield item


def _collecting(fn: Callable[..., Any]) -> Callable[..., Any]:
    async def collect(*args: Any, **kwargs: Any) -> list[Any]:
        return [item async for item in fn(*args, **kwargs)]

    return collect


def _runner() -> TaskRunner:
    flow = FlowRunContext.get()
    return flow.runner if flow is not None else default_runner()
