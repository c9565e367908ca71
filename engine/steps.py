"""Writing once what is done in sync and in async code: generators that yield what is to be done, and two who do it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

__all__ = ["Do", "Steps", "take_steps", "take_steps_async"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Do:
    """Something to do, in either way; what comes of it is sent back, or thrown in."""

    sync: Callable[[], Any]
    aio: Callable[[], Awaitable[Any]]


Steps: TypeAlias = Generator[Do, Any, T]


def take_steps(steps: Steps[T]) -> T:
    """Do everything in this thread; return what the generator returns."""
    send: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.throw(error) if error is not None else steps.send(send)
        except StopIteration as end:
            value: T = end.value
            return value
        send = error = None
        try:
            send = step.sync()
        except BaseException as exc:
            error = exc


async def take_steps_async(steps: Steps[T]) -> T:
    """Do everything in this event loop; return what the generator returns."""
    send: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.throw(error) if error is not None else steps.send(send)
        except StopIteration as end:
            value: T = end.value
            return value
        send = error = None
        try:
            send = await step.aio()
        except BaseException as exc:
            error = exc
