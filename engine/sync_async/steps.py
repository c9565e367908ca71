"""Writing once what is done in sync and in async code: generators that yield what is to be done, and two who do it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeAlias, TypeVar

__all__ = ["Do", "Steps", "Turns", "take_steps", "take_steps_async"]

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Do:
    """Something to do, in either way; what comes of it is sent back, or thrown in."""

    sync: Callable[[], Any]
    aio: Callable[[], Awaitable[Any]]


Steps: TypeAlias = Generator[Do, Any, T]


class Turns(Generic[S, T]):
    """Take turns with a generator that asks for things to be done: iterate over what it asks for.

    After each item, ``answer`` or ``error`` is set to what came of it, which the generator is sent, or has thrown in,
    when the next item is asked for. ``result`` is what it returned, once the iteration has ended. What the generator
    raises goes on up.
    """

    def __init__(self, asking: Generator[S, Any, T]) -> None:
        self._asking = asking
        self.answer: Any = None
        self.error: BaseException | None = None
        self.result: T

    @property
    def is_over(self) -> bool:
        """Whether it has returned or raised.

        An interruption (Ctrl-C) may come between two items, where nothing is being done that it could be the error of: who
        iterates has to see to it that it is thrown in, too, unless this says that nothing is left to hear of it.
        """
        return inspect.getgeneratorstate(self._asking) == inspect.GEN_CLOSED

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> S:
        answer, self.answer = self.answer, None
        error, self.error = self.error, None
        try:
            return self._asking.send(answer) if error is None else self._asking.throw(error)
        except StopIteration as end:
            self.result = end.value
            raise
        finally:
            del error  # whose traceback holds this frame


def take_steps(steps: Steps[T]) -> T:
    """Do everything in this thread; return what the generator returns."""
    turns = Turns(steps)
    for step in turns:
        try:
            turns.answer = step.sync()
        except BaseException as exc:
            turns.error = exc
    return turns.result


async def take_steps_async(steps: Steps[T]) -> T:
    """Do everything in this event loop; return what the generator returns."""
    turns = Turns(steps)
    for step in turns:
        try:
            turns.answer = await step.aio()
        except BaseException as exc:
            turns.error = exc
    return turns.result
