"""``concurrency`` and ``rate_limit``: holding back code by named limits that all processes share.

::

    async with concurrency("warehouse", occupy=2):
        ...
    with concurrency(["warehouse", "api"], timeout_seconds=30):
        ...
    await rate_limit("api")
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import SlotsLost, SlotsRefused, SlotsTimedOut, UnknownLimit
from .context import TaskRunContext, current_run, refuse_if_leaving
from .limits.slots import slots_of
from .sync_async.either import blocking_session, is_async_here, session_here

if TYPE_CHECKING:
    from ..bus.session import Session

__all__ = [
    "AcquireConcurrencySlotTimeoutError",
    "ConcurrencySlotAcquisitionError",
    "concurrency",
    "rate_limit",
]

# As Prefect calls them.
ConcurrencySlotAcquisitionError = SlotsRefused
AcquireConcurrencySlotTimeoutError = SlotsTimedOut

log = logging.getLogger("hark.limits")


class concurrency:  # noqa: N801  a context manager, called like a function
    """Hold slots of limits while inside; wait for them, in order, if they are not free. ``with`` and ``async with``.

    They are given back on leaving, however that happens, and when this process dies.

    Args:
        names: of one limit or several; several are taken one after the other, in the order of their names. None: of none.
        occupy: how many slots of each.
        timeout_seconds: how long to wait at most; None: for as long as it takes.
        max_retries: give up once slots were given back so often without its being our turn; 0: do not wait at all.
        strict: a limit that does not exist is an error, and so is losing slots while inside (the connection was lost
            for so long that others hold them now; the body of an ``async with`` is cancelled then). Otherwise both are
            logged, and the code runs on.
        holder: who is shown to have them; default: the run the code is in.
        raise_on_lease_renewal_failure: whether losing slots is an error, if not as ``strict`` says.
        lease_duration: does nothing here: slots are held for as long as the process lives.
    Raises (on entering):
        SlotsTimedOut: the slots were not free in time; also a ``TimeoutError``.
        UnknownLimit: ``strict``, and there is no such limit.
        SlotsRefused: the limit is one per time, or has fewer slots in all.
        BusUnavailable: no broker is known.
    """

    def __init__(
        self,
        names: str | Sequence[str] | None,
        occupy: int = 1,
        timeout_seconds: float | None = None,
        max_retries: int | None = None,
        lease_duration: float = 300,
        strict: bool = False,
        holder: object = None,
        raise_on_lease_renewal_failure: bool | None = None,
    ) -> None:
        del lease_duration
        _check_occupy(occupy)
        if max_retries is not None and (isinstance(max_retries, bool) or max_retries < 0):
            raise ValueError(f"max_retries is a whole number >= 0 or None, got {max_retries!r}")
        self._names = _sorted(names)
        self._occupy, self._timeout_s, self._strict = occupy, timeout_seconds, strict
        self._fails_if_lost = (
            strict if raise_on_lease_renewal_failure is None else raise_on_lease_renewal_failure
        )
        self._holder = holder
        self._max_retries = max_retries
        self._stack: list[tuple[Session | None, list[Any]]] = []
        self._guards: list[asyncio.Task[None] | None] = []

    # --- sync -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if not self._names:
            self._stack.append((None, []))
            return self
        refuse_if_leaving(current_run.get())
        session = blocking_session("concurrency()")
        self._stack.append((session, session.call(self._acquire, session)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        session, held = self._stack.pop()
        if session is not None and held:
            session.call(_release, held)
        if kind is None:
            self._complain(held)

    # --- async ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if not self._names:
            self._stack.append((None, []))
            self._guards.append(None)
            return self
        refuse_if_leaving(current_run.get())
        session = session_here("concurrency()")
        held = await session.acall(self._acquire, session)
        self._stack.append((session, held))
        self._guards.append(self._guard(session, held) if self._fails_if_lost and held else None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        session, held = self._stack.pop()
        guard = self._guards.pop()
        if guard is not None:
            guard.cancel()
            await asyncio.wait([guard])
        if session is not None and held:
            await session.acall(_release, held)
        lost = any(one.is_lost for one in held)
        if kind is None or (self._fails_if_lost and lost and kind is asyncio.CancelledError):
            if kind is not None and (task := asyncio.current_task()) is not None:
                task.uncancel()
            self._complain(held)

    def _guard(self, session: Session, held: list[Any]) -> asyncio.Task[None]:
        """Cancel the body if the slots are lost."""
        body = asyncio.current_task()

        async def watch() -> None:
            await session.acall(_until_lost, held)
            if body is not None:
                body.cancel("the slots of a limit were lost")

        return asyncio.get_running_loop().create_task(watch())

    # --- both -----------------------------------------------------------------------------------------

    async def _acquire(self, session: Session) -> list[Any]:
        slots = slots_of(session)
        held: list[Any] = []
        holder = str(self._holder) if self._holder is not None else run_here()
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        try:
            for name in self._names:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                one = await slots.acquire(
                    name, self._occupy, timeout_s=left_s, holder=holder, max_retries=self._max_retries
                )
                if one is not None:
                    held.append(one)
                else:
                    missing(name, strict=self._strict)
        except BaseException:
            await _release(held)
            raise
        return held

    def _complain(self, held: list[Any]) -> None:
        lost = [one.name for one in held if one.is_lost]
        if lost and self._fails_if_lost:
            raise SlotsLost(lost)


def run_here() -> str | None:
    """Return the run the code is in, as the subject of its events: who holds the slots, for people."""
    run = current_run.get()
    if run is None:
        return None
    return f"task-run/{run.task_run.id}" if isinstance(run, TaskRunContext) else f"flow-run/{run.flow_run.id}"


async def _release(held: list[Any]) -> None:
    for one in reversed(held):
        await one.release()


async def _until_lost(held: list[Any]) -> None:
    waits = [asyncio.ensure_future(one.lost_event.wait()) for one in held]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)


def rate_limit(
    names: str | Sequence[str] | None,
    occupy: int = 1,
    timeout_seconds: float | None = None,
    strict: bool = False,
) -> Any:
    """Wait until limits per time allow ``occupy`` more; as ``await rate_limit("api")`` in async code.

    Who asks first goes first. The limits share the wall clocks of the machines that ask.

    Args:
        timeout_seconds: how long to wait at most; if it would be longer, it fails at once and counts for nothing.
        strict: a limit that does not exist is an error; otherwise that is logged, and the code runs on.
    Raises:
        SlotsTimedOut: it would take longer; also a ``TimeoutError``.
        UnknownLimit: ``strict``, and there is no such limit.
        SlotsRefused: the limit is one of slots, which nothing frees.
    """
    _check_occupy(occupy)
    every = _sorted(names)
    if is_async_here():
        return _rate_limit(every, occupy, timeout_seconds, strict)
    if not every:
        return None
    session = blocking_session("rate_limit()")
    wait_s = session.call(_reserve, session, every, occupy, timeout_seconds, strict)
    if wait_s > 0:
        time.sleep(wait_s)
    return None


async def _rate_limit(names: list[str], occupy: int, timeout_s: float | None, strict: bool) -> None:
    if names:
        session = session_here("rate_limit()")
        wait_s = await session.acall(_reserve, session, names, occupy, timeout_s, strict)
        if wait_s > 0:
            await asyncio.sleep(wait_s)


async def _reserve(
    session: Session, names: list[str], occupy: int, timeout_s: float | None, strict: bool
) -> float:
    longest = 0.0
    for name in names:
        wait_s = await slots_of(session).pace(name, occupy, timeout_s=timeout_s)
        if wait_s is None:
            missing(name, strict=strict)
        longest = max(longest, wait_s or 0.0)
    return longest


def missing(name: str, *, strict: bool) -> None:
    """Say that a limit does not exist: as an error if ``strict``."""
    if strict:
        raise UnknownLimit("limit", name)
    log.warning("there is no limit %r, so nothing is held back", name)


def _sorted(names: str | Sequence[str] | None) -> list[str]:
    if names is None:
        return []
    return sorted({names} if isinstance(names, str) else {name for name in names if name})


def _check_occupy(occupy: object) -> None:
    if not isinstance(occupy, int) or isinstance(occupy, bool) or occupy < 1:
        raise SlotsRefused(f"occupy is a whole number >= 1, got {occupy!r}")
