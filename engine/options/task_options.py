"""What can be said of a task in ``@task(…)`` and ``with_options(…)``, and what makes sense of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from ..cache_policies import DEFAULT, NO_CACHE, CacheKeyFnPolicy
from .hooks import Hook
from .retry import RetryDelays

if TYPE_CHECKING:
    from ...config import EngineConfig
    from ..cache_policies import CachePolicy
    from ..serializers import Serializer

__all__ = [
    "HOOKS", "STAYS", "Binds", "TaskOptions", "asks_for_cache", "check_options", "check_retries", "check_timeout",
    "engine_settings", "is_async", "is_no_cache", "key_of_function", "policy_of", "prints_to_log", "take_own", "unwrapped",
]  # fmt: skip


class TaskOptions(TypedDict, total=False):
    """What can be said of a task, in ``@task(...)`` and ``with_options(...)``.

    name: default: the function's. description: default: its docstring. version: any text.
    tags: put on each of its runs, besides those of ``with tags(...)``.
    task_run_name: a template of the parameters (``"load-{day}"``), or a function giving the name.
    retries: how often a failed run is tried again; default, also of the delay: as the settings say. retry_delay_seconds: a number, a list (the last one repeats), or a
        function of the number of retries giving a list (``exponential_backoff(2)``). retry_jitter_factor: >= 0; spreads
        a delay over ``delay * (1 ± factor)``. retry_condition_fn(task, task_run, state): False: do not retry this.
    timeout_seconds: for each try; see ``timeouts.py`` for what can be interrupted.
    persist_result: False: do not record the result; a resumed run then runs the task again. True: keep it for the
        retries of a flow that is not tracked, and for equal calls in the same run, too. None: as the flow or task around.
    result_storage: where it is kept: a URL, a path, a saved block (``"slug/name"``) or a block. result_serializer: how it is
        written: ``"json"``, ``"compressed/pickle"``, … None, of both: as the flow or task around.
    result_storage_key: what it is called there: ``"{flow_run.name}-{parameters[day]}"``; a later call with the same key
        takes the result. cache_result_in_memory: taken; a value stays in memory while its state is held.
    cache_policy: what makes calls equal, whose results are kept for each other beyond the run (``cache_policies``).
    cache_key_fn(context, parameters): a function that says the key instead; None: do not cache this call.
    cache_expiration: how long a result counts: a ``timedelta``, seconds, or ``"1h"``. refresh_cache: run anyway, and keep
        the new result.
    log_prints: send ``print`` to the run's log; None: as the flow does.
    on_running, on_completion, on_failure, on_cancellation, on_crashed: lists of ``hook(task, task_run, state)``.
    on_commit, on_rollback: lists of ``hook(txn)``; see ``transactions.py``.
    viz_return_value: what stands for its result where the flow is only drawn (``flow.visualize()``).
    asset_deps: assets that it reads, of tasks that make some (``assets.py``).
    """

    name: str | None
    description: str | None
    tags: Iterable[str] | None
    version: str | None
    task_run_name: str | Callable[..., str] | None
    retries: int
    retry_delay_seconds: RetryDelays
    retry_jitter_factor: float | None
    retry_condition_fn: Callable[..., Any] | None
    timeout_seconds: float | None
    persist_result: bool | None
    result_storage: object
    result_storage_key: str | None
    result_serializer: Serializer | str | None
    cache_result_in_memory: bool | None
    cache_policy: CachePolicy | None
    cache_key_fn: Callable[..., str | None] | None
    cache_expiration: timedelta | float | str | None
    refresh_cache: bool | None
    log_prints: bool | None
    on_running: Sequence[Hook] | None
    on_completion: Sequence[Hook] | None
    on_failure: Sequence[Hook] | None
    on_cancellation: Sequence[Hook] | None
    on_crashed: Sequence[Hook] | None
    on_commit: Sequence[Hook] | None
    on_rollback: Sequence[Hook] | None
    viz_return_value: Any
    asset_deps: Iterable[Any] | None


Binds: TypeAlias = Literal["instance", "class", "nothing"]
HOOKS = ("on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed")
STAYS = frozenset(
    {
        *HOOKS, "on_commit", "on_rollback", "name", "description", "tags", "timeout_seconds", "cache_key_fn",
        "cache_expiration", "retry_condition_fn", "viz_return_value", "asset_deps",
    }
)  # fmt: skip
"""Options of which None says nothing in ``with_options``."""


def take_own(kwargs: dict[str, Any]) -> tuple[bool, Any]:
    """Take out of a call's keyword arguments what is not for the function: ``return_state`` and ``wait_for``."""
    return bool(kwargs.pop("return_state", False)), kwargs.pop("wait_for", None)


def unwrapped(kind: str, fn: Any) -> tuple[Any, Binds]:
    """Return the function to call and what it is bound to when looked up in an object.

    Raises:
        TypeError: it cannot be called.
    """
    if isinstance(fn, classmethod):
        return fn.__func__, "class"
    if isinstance(fn, staticmethod):
        return fn.__func__, "nothing"
    if not callable(fn):
        raise TypeError(f"'fn' must be callable: @{kind} marks functions, and {fn!r} is none")
    return fn, "instance"


def key_of_function(fn: Any) -> str:
    """Return what tells a task's function from others, whatever the task is called; it stays as the function changes."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    said = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{said.__qualname__.rpartition('.')[2]}-{getattr(said, '__module__', '')}.{said.__qualname__}"


def check_options(kind: str, options: Any, known: Any) -> None:
    """Raise ``TypeError`` for an option that does not exist, suggesting one that does."""
    for name in options:
        if name not in known.__annotations__:
            near = get_close_matches(name, known.__annotations__, n=1)
            raise TypeError(
                f"@{kind} has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )


def asks_for_cache(options: TaskOptions) -> bool:
    policy = options.get("cache_policy")
    return options.get("cache_key_fn") is not None or (policy is not None and not is_no_cache(policy))


def policy_of(options: TaskOptions) -> CachePolicy | None:
    """Return the policy that ``task.cache_policy`` shows: the one in force where results are kept."""
    policy, key_fn = options.get("cache_policy"), options.get("cache_key_fn")
    if key_fn is not None:
        return CacheKeyFnPolicy(cache_key_fn=key_fn)
    if options.get("persist_result") is False:
        return None if policy is None and "cache_policy" in options else NO_CACHE
    if "cache_policy" in options:
        return policy
    return DEFAULT if options.get("result_storage_key") is None else None


def is_no_cache(policy: object) -> bool:
    """Return whether a policy is NO_CACHE."""
    return policy is NO_CACHE


def check_retries(retries: object) -> int:
    """Return a number of retries; raise if it is none."""
    if retries is None:
        return 0
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise ValueError(f"retries must be a whole number >= 0, got {retries!r}")
    return retries


def check_timeout(seconds: object) -> float | None:
    """Return a time limit in seconds, None for none, which 0 says too; raise if it is neither."""
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:
        raise ValueError(f"timeout_seconds must be a number >= 0, got {seconds!r}")
    if seconds == 0:
        return None
    return float(seconds)


def engine_settings() -> EngineConfig:
    """Return what the settings say of running, for what an author has not said; loaded when it is first asked for."""
    from ...config import load_settings

    return load_settings().engine


def prints_to_log(said: bool | None, outer: bool | None) -> bool:
    """Return whether ``print`` goes to the log of a run, by what its author says, what holds around it, and the settings."""
    if said is not None:
        return said
    return engine_settings().log_prints if outer is None else outer


def is_async(fn: Callable[..., Any]) -> bool:
    """Return whether calling ``fn`` gives something to await or to iterate over with ``async for``."""
    call = fn if inspect.isroutine(fn) else getattr(fn, "__call__", fn)  # noqa: B004  the method itself is wanted
    while isinstance(call, functools.partial):
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)
