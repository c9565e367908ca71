"""Cache policies: what makes two calls of a task the same, so that the second gets the result of the first.

``DEFAULT`` is ``INPUTS + TASK_SOURCE + RUN_ID``; policies are added up, and ``INPUTS - "debug"`` leaves an argument out.
A policy gives a key, or None for "do not cache this call". Keys hold across processes and machines.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from types import CodeType
from typing import TYPE_CHECKING, Any, Self

import orjson

from ..errors import HashError
from .calls.call_key import OPTIONS, canonical

if TYPE_CHECKING:
    from .locking import LockManager
    from .transactions import IsolationLevel

__all__ = [
    "DEFAULT", "FLOW_PARAMETERS", "INPUTS", "NONE", "NO_CACHE", "RUN_ID", "TASK_SOURCE", "CacheKeyFnPolicy", "CachePolicy",
    "CompoundCachePolicy", "FlowParameters", "Inputs", "RunId", "TaskSource", "hash_objects", "task_input_hash",
]  # fmt: skip

MAX_KEY_CHARS = 2000


def hash_objects(*values: Any) -> str:
    """Return 32 hex digits that stand for the values, the same in every process.

    Raises:
        HashError: one of them can neither be written as JSON nor pickled.
    """
    return blake2b(bytes_of(*values), digest_size=16).hexdigest()


def bytes_of(*values: Any) -> bytes:
    """Return bytes that stand for the values, the same in every process; raises as ``hash_objects`` does."""

    def plain(value: Any) -> Any:
        found = canonical(value)
        if (
            isinstance(found, list)
            and found
            and isinstance(found[-1], str)
            and found[-1].startswith("!opaque")
        ):
            raise HashError(
                f"Unable to create hash: a {type(value).__qualname__} is no JSON and cannot be pickled"
            )
        return found

    try:
        return orjson.dumps(values, default=plain, option=OPTIONS)
    except (TypeError, RecursionError) as exc:
        cause = exc.__cause__
        if isinstance(cause, HashError):
            raise cause from None
        raise HashError(f"Unable to create hash of these values: {exc}") from exc


@dataclass(frozen=True)
class CachePolicy:
    """What the key of a call is made of. Subclasses say ``compute_key``.

    Attributes:
        key_storage: where it is noted what there is under which key, if not beside the results.
        isolation_level: ``SERIALIZABLE``: of several who compute a key at once, one does, and the others get its result.
        lock_manager: who sees to that. Default: the broker, or this process where none is known.
    """

    key_storage: Any = field(default=None, kw_only=True)
    isolation_level: str | None = field(default=None, kw_only=True)
    lock_manager: LockManager | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        level = getattr(self.isolation_level, "value", self.isolation_level)
        if level not in (None, "READ_COMMITTED", "SERIALIZABLE"):
            raise ValueError(f"isolation_level is READ_COMMITTED or SERIALIZABLE, got {level!r}")
        object.__setattr__(self, "isolation_level", level)

    def configure(
        self,
        key_storage: Any = None,
        lock_manager: LockManager | None = None,
        isolation_level: IsolationLevel | str | None = None,
    ) -> Self:
        """Return a copy with what is given changed; see the attributes."""
        given = {"key_storage": key_storage, "lock_manager": lock_manager, "isolation_level": isolation_level}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @classmethod
    def from_cache_key_fn(cls, cache_key_fn: Callable[..., str | None]) -> CacheKeyFnPolicy:
        """Return the policy that asks ``cache_key_fn(context, parameters)``."""
        return CacheKeyFnPolicy(cache_key_fn=cache_key_fn)

    def compute_key(
        self, task_ctx: Any, inputs: Mapping[str, Any], flow_parameters: Mapping[str, Any], **kwargs: Any
    ) -> str | None:
        """Return the key of a call; None: do not cache it.

        Args:
            task_ctx: the context of the task run: ``.task``, ``.task_run``.
            inputs: the arguments, by name.
            flow_parameters: those of the flow run around it; empty outside one.
        Raises:
            HashError: something the key is made of cannot be hashed.
        """
        raise NotImplementedError

    def __add__(self, other: CachePolicy) -> CachePolicy:
        if not isinstance(other, CachePolicy):
            return NotImplemented
        if isinstance(other, _NoCache):
            return self
        mine = self.policies if isinstance(self, CompoundCachePolicy) else [self]
        theirs = other.policies if isinstance(other, CompoundCachePolicy) else [other]
        together = {}
        for name, what in (
            ("key_storage", "storage locations"),
            ("isolation_level", "isolation levels"),
            ("lock_manager", "lock implementations"),
        ):
            one, another = getattr(self, name), getattr(other, name)
            if one is not None and another is not None and one != another:
                raise ValueError(f"Cannot add CachePolicies with different {what}: {one!r} and {another!r}")
            together[name] = another if one is None else one
        return CompoundCachePolicy([*mine, *theirs], **together)

    def __sub__(self, other: str) -> CachePolicy:
        """Return the policy without an argument; one that asks for no arguments is itself."""
        if not isinstance(other, str):
            raise TypeError(
                f"Can only subtract strings from key policies: the names of arguments, not {other!r}"
            )
        return self

    def _how(self) -> dict[str, Any]:
        return {
            "key_storage": self.key_storage, "isolation_level": self.isolation_level, "lock_manager": self.lock_manager,
        }  # fmt: skip


@dataclass(frozen=True)
class CacheKeyFnPolicy(CachePolicy):
    """The key is what a function of the author's says."""

    cache_key_fn: Callable[..., str | None]

    def compute_key(
        self, task_ctx: Any, inputs: Mapping[str, Any], flow_parameters: Mapping[str, Any], **kwargs: Any
    ) -> str | None:
        return self.cache_key_fn(task_ctx, dict(inputs))


@dataclass(frozen=True)
class CompoundCachePolicy(CachePolicy):
    """The keys of several policies together; those that give none are passed over."""

    policies: list[CachePolicy] = field(default_factory=list, hash=False)

    def compute_key(
        self, task_ctx: Any, inputs: Mapping[str, Any], flow_parameters: Mapping[str, Any], **kwargs: Any
    ) -> str | None:
        keys = [policy.compute_key(task_ctx, inputs, flow_parameters, **kwargs) for policy in self.policies]
        known = [key for key in keys if key is not None]
        return hash_objects(*known) if known else None

    def __sub__(self, other: str) -> CachePolicy:
        if not isinstance(other, str):
            raise TypeError(
                f"Can only subtract strings from key policies: the names of arguments, not {other!r}"
            )
        if not any(isinstance(policy, Inputs) for policy in self.policies):
            return self
        return CompoundCachePolicy(
            [policy - other if isinstance(policy, Inputs) else policy for policy in self.policies],
            **self._how(),
        )


@dataclass(frozen=True)
class _NoCache(CachePolicy):
    """No key: nothing is cached."""

    def compute_key(
        self, task_ctx: Any, inputs: Mapping[str, Any], flow_parameters: Mapping[str, Any], **kwargs: Any
    ) -> str | None:
        return None

    def __add__(self, other: CachePolicy) -> CachePolicy:
        return other

    def __repr__(self) -> str:
        return "NO_CACHE"


@dataclass(frozen=True)
class TaskSource(CachePolicy):
    """The source of the task's function; not that of what it calls.

    Of an object that can be called, that of its class; a ``partial`` counts with what it has bound.
    """

    def compute_key(
        self, task_ctx: Any, inputs: Mapping[str, Any], flow_parameters: Mapping[str, Any], **kwargs: Any
    ) -> str | None:
        return None if task_ctx is None else hash_objects(*_source_of(task_ctx.task.fn))


@dataclass(frozen=True)
class FlowParameters(CachePolicy):
    """The parameters of the flow run."""

    def compute_key(
        self, task_ctx: Any, inputs: Mapping[str, Any], flow_parameters: Mapping[str, Any], **kwargs: Any
    ) -> str | None:
        return hash_objects(dict(flow_parameters)) if flow_parameters else None


@dataclass(frozen=True)
class RunId(CachePolicy):
    """The flow run; of a task outside any, the task run."""

    def compute_key(
        self, task_ctx: Any, inputs: Mapping[str, Any], flow_parameters: Mapping[str, Any], **kwargs: Any
    ) -> str | None:
        if task_ctx is None:
            return None
        run = task_ctx.task_run
        return str(run.flow_run_id or run.id)


@dataclass(frozen=True)
class Inputs(CachePolicy):
    """The arguments of the call, but for those in ``exclude``."""

    exclude: list[str] = field(default_factory=list, hash=False)

    def compute_key(
        self, task_ctx: Any, inputs: Mapping[str, Any], flow_parameters: Mapping[str, Any], **kwargs: Any
    ) -> str | None:
        if not inputs:
            return None
        return hash_objects({name: value for name, value in inputs.items() if name not in self.exclude})

    def __sub__(self, other: str) -> CachePolicy:
        if not isinstance(other, str):
            raise TypeError(
                f"Can only subtract strings from key policies: the names of arguments, not {other!r}"
            )
        return Inputs([*self.exclude, other], **self._how())


INPUTS = Inputs()
TASK_SOURCE = TaskSource()
FLOW_PARAMETERS = FlowParameters()
RUN_ID = RunId()
NO_CACHE = NONE = _NoCache()
DEFAULT = INPUTS + TASK_SOURCE + RUN_ID


def _source_of(fn: Callable[..., Any]) -> list[Any]:
    function, found = inspect.unwrap(fn), []
    while isinstance(function, partial):
        found.append([function.args, function.keywords])
        function = inspect.unwrap(function.func)
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function)
    try:
        return [inspect.getsource(function), *found]
    except (OSError, TypeError):
        # Typed into an interpreter, say: then what it was compiled to. Of what was never compiled, its name.
        code = getattr(function, "__code__", None)
        named = f"{function.__module__}.{function.__qualname__}"
        return [_compiled(code) if isinstance(code, CodeType) else named, *found]


def _compiled(code: CodeType) -> str:
    constants = [_compiled(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return f"{code.co_code.hex()}{constants}"


def task_input_hash(context: Any, arguments: Mapping[str, Any]) -> str | None:
    """Return a key of the task and its arguments: ``@task(cache_key_fn=task_input_hash)``."""
    code = getattr(inspect.unwrap(context.task.fn), "__code__", None)
    function = code.co_code.hex() if code is not None else _source_of(context.task.fn)
    return hash_objects(context.task.task_key, function, dict(arguments))
