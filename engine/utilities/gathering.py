"""Async calls made at once, and what they return: task groups that keep results, under the names of code written for Prefect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from ...errors import RefusedError
from ...vocabulary import new_id

__all__ = ["GatherIncomplete", "GatherTaskGroup", "asyncnullcontext", "create_gather_task_group", "gather"]

T = TypeVar("T")
_NOT_YET = object()


class GatherIncomplete(RefusedError, RuntimeError):
    """A result was asked for that is not there yet."""


class GatherTaskGroup:
    """A task group of anyio whose ``start_soon`` returns the key that ``get_result`` takes once the group has been left."""

    def __init__(self, task_group: TaskGroup) -> None:
        self._group = task_group
        self._results: dict[str, Any] = {}

    @property
    def cancel_scope(self) -> anyio.CancelScope:
        return self._group.cancel_scope

    def start_soon(self, func: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> str:
        """Call ``func(*args)`` in a task of its own; return the key of what it returns."""
        key = new_id()
        self._results[key] = _NOT_YET

        async def call() -> None:
            self._results[key] = await func(*args)

        self._group.start_soon(call, name=name)
        return key

    async def start(self, func: object, *args: object, name: object = None) -> Any:
        """Raises RuntimeError: what would be returned is the key, not what the task says when it has started."""
        raise RuntimeError("a group that gathers results does not support start(); use start_soon()")

    def get_result(self, key: str) -> Any:
        """Return what a call returned. Raises ``GatherIncomplete``: it has not ended."""
        found = self._results[key]
        if found is _NOT_YET:
            raise GatherIncomplete(
                "this call is not complete", hint="ask once the block of the group has been left"
            )
        return found

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._group.__aexit__(kind, exc, trace)


def create_gather_task_group() -> GatherTaskGroup:
    """Return a task group that keeps results: ``async with create_gather_task_group() as group``."""
    return GatherTaskGroup(anyio.create_task_group())


async def gather(*calls: Callable[[], Awaitable[T]]) -> list[T]:
    """Make calls at once, and return what they return, in their order. Unlike ``asyncio.gather`` it is given functions.

    Raises:
        ExceptionGroup: some have failed; the others were cancelled.
    """
    async with create_gather_task_group() as group:
        keys = [group.start_soon(call) for call in calls]
    return [group.get_result(key) for key in keys]


@asynccontextmanager
async def asyncnullcontext(value: T | None = None, *args: Any, **kwargs: Any) -> AsyncGenerator[T | None]:
    """Do nothing, in ``async with``; give ``value``."""
    yield value
