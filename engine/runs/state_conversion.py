"""States from exceptions and values, and back, for code that makes states itself; under Prefect's names in ``states``."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Any

from ...vocabulary import new_id
from ..states import Failed, State, get_state_exception, raise_state_exception
from .final_state import describe, is_state_iterable, state_of_crash, state_of_value

__all__ = [
    "aget_state_exception", "araise_state_exception", "exception_to_crashed_state", "exception_to_failed_state",
    "format_exception", "get_state_result", "is_state_iterable", "return_value_to_state",
]  # fmt: skip


def format_exception(exc: BaseException, tb: TracebackType | None = None) -> str:
    """Return ``ValueError: what it said``; with ``tb`` the whole traceback."""
    return describe(exc) if tb is None else "".join(traceback.format_exception(type(exc), exc, tb))


async def exception_to_failed_state(
    exc: BaseException | None = None, result_store: Any = None, write_result: bool = False, **state: Any
) -> State:
    """Return a FAILED state that has the exception, by default the one being handled.

    Args:
        result_store: with ``write_result``, where the exception is kept too.
        state: fields of the state; ``message`` comes before what the exception says.
    Raises:
        ValueError: none was given, and none is being handled.
    """
    exc = exc or sys.exc_info()[1]
    if exc is None:
        raise ValueError("Exception was not passed and no active exception could be found.")
    if result_store is not None and write_result:
        await result_store.awrite(exc, new_id())
    before = str(state.pop("message", None) or "")
    message = f"{before.rstrip()} {format_exception(exc)}" if before else format_exception(exc)
    return Failed(data=exc, message=message, **state)


async def exception_to_crashed_state(exc: BaseException, result_store: Any = None) -> State:
    """Return the CRASHED state of a run that something outside its code ended."""
    del result_store
    return state_of_crash(exc, run_id="").replace(run_id=None)


async def return_value_to_state(
    retval: Any,
    result_store: Any = None,
    key: str | None = None,
    expiration: Any = None,
    write_result: bool = False,
) -> State:
    """Return the state a run ends in by what its function returned; futures are to be replaced by their states first.

    Args:
        result_store: with ``write_result``, where the value is kept too, under ``key``.
    """
    state = state_of_value(retval, run_id=new_id()).replace(run_id=None)
    if result_store is not None and write_result and state.is_completed():
        await result_store.awrite(state.data, key or new_id(), expiration)
    return state


async def get_state_result(
    state: State, raise_on_failure: bool = True, retry_result_failure: bool = True
) -> Any:
    """Return what ``state.result()`` returns, without holding the loop."""
    return await state.aresult(raise_on_failure, retry_result_failure)


async def aget_state_exception(state: State) -> BaseException:
    """Do what ``get_state_exception`` does, in async code."""
    return get_state_exception(state)


async def araise_state_exception(state: State) -> None:
    """Do what ``raise_state_exception`` does, in async code."""
    raise_state_exception(state)
