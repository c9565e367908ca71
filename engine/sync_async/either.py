"""Operations that are called alike from sync and async code, as in Prefect: awaited in the one, plain in the other.

``run_deployment("etl")`` in a sync flow waits and returns; in an async one it is written ``await run_deployment("etl")``.
Which it is follows from the run the code is in, and outside of runs from whether an event loop runs in this thread.
``.aio`` is the async form, whatever surrounds it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from ..context import FlowRunContext, TaskRunContext, current_run, refuse_if_leaving

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["Either", "blocking_session", "is_async_here", "session_here", "takes_async"]

P = ParamSpec("P")
R = TypeVar("R")


def is_async_here() -> bool:
    """Return whether the calling code can await: its run is async, or it is in no run and a loop runs in its thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    context = current_run.get()
    if context is None:
        return True
    code: Any = context.task if isinstance(context, TaskRunContext) else context.flow
    return bool(code.isasync)


def takes_async(kwargs: dict[str, Any]) -> bool:
    """Return whether a call is to be awaited: as its ``_sync`` says, which is taken out, else by where the code is."""
    sync = kwargs.pop("_sync", None)
    return is_async_here() if sync is None else not sync


def session_here(what: str = "this") -> Session:
    """Return the session of the run the code is in, else that of the process.

    Raises:
        BusUnavailable: no broker is known.
    """
    flow = FlowRunContext.get()
    if flow is not None and flow.tracker is not None:
        return flow.tracker.session
    from ...bus.session import current_session, no_broker

    session = current_session(tracking=False)
    if session is None:
        raise no_broker(f"{what} needs a broker, and none is known")
    return session


def blocking_session(what: str = "this") -> Session:
    """Return a session that code which holds its thread may wait on: never one that lives on this very thread."""
    session = session_here(what)
    if session.is_own_loop:
        flow = FlowRunContext.get()
        if flow is not None and flow.tracker is not None:
            return flow.tracker.side.session()
        from .side_session import side_of

        return side_of(session.bus).session()
    return session


class Either(Generic[P, R]):
    """An async function of a session, to be called without one from sync and async code.

    The function itself runs on the session's loop, in the caller's context. It is not called any more in the code of a run that
    leaves its worker: when that goes on, the code comes by again.
    """

    def __init__(self, fn: Callable[Concatenate[Session, P], Coroutine[Any, Any, R]]) -> None:
        self._fn = fn
        functools.update_wrapper(self, fn)
        signature = inspect.signature(fn)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        self._what = f"{getattr(fn, '__name__', 'this')}()"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Do it; which way, ``_sync=True`` or ``_sync=False`` may say."""
        if takes_async(kwargs):
            return self.aio(*args, **kwargs)
        refuse_if_leaving(current_run.get())
        session = blocking_session(self._what)
        return session.call(self._fn, session, *args, **kwargs)

    def blocking(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do it holding the thread, whatever kind of code calls."""
        refuse_if_leaving(current_run.get())
        session = blocking_session(self._what)
        return session.call(self._fn, session, *args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do it from async code."""
        refuse_if_leaving(current_run.get())
        session = session_here(self._what)
        return await session.acall(self._fn, session, *args, **kwargs)
