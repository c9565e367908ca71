"""The worker of a service that does more than work: in a thread of its own, with an event loop and a connection of its own.

Code in an async flow that does not await holds the loop it runs in. In that loop nothing but flows runs; rules, alerts, HTTP
and schedules have another, and go on.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self

import anyio
from anyio import AsyncContextManagerMixin

from ..clock import SYSTEM_CLOCK, Clock
from ..errors import UnavailableError

if TYPE_CHECKING:
    from ..bus import BrokerAddress
    from ..config import Settings

__all__ = ["ApartWorker"]

log = logging.getLogger("hark.service")

_TURN_S = 0.005
"""How long a thread may keep Python's lock while others wait. With less, the service takes what flows write by the handful, as it
comes, and of the time both need half as much again goes into that; with more, it waits longer for flows that compute."""
_LEAVING_S = 5.0
"""How long a worker that is waited for no longer may take to notice. One whose loop is held notices nothing."""


class ApartWorker(AsyncContextManagerMixin):
    """A worker in a thread of its own. Entered means it takes work; left means it has drained and closed its connection.

    Being cancelled while leaving ends the waiting. A worker whose loop is held is then left behind: its thread lives until
    that code awaits or the process ends, and its runs are another's once the broker has not heard of them for long enough.

    Args:
        clock: must do for two threads, as that of the system does.

    Raises (on entering): as ``Bus`` and ``Worker``.
    Raises (once entered, into the block): what ended the worker.
    """

    def __init__(self, address: BrokerAddress, settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._address, self._settings, self._clock = address, settings, clock
        self._here: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._begun, self._ended = asyncio.Event(), asyncio.Event()
        self._was_up = self._is_asked = False
        self._ask_there: Callable[[], object] | None = None
        self._error: Exception | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._here = asyncio.get_running_loop()
        # No daemon: nothing of a process may be taken down under it. Who ends the process does not wait for ever, though.
        self._thread = threading.Thread(
            target=self._run, args=(contextvars.copy_context(),), name="hark-worker"
        )
        turn_s = sys.getswitchinterval()
        sys.setswitchinterval(max(turn_s, _TURN_S))
        self._thread.start()
        try:
            await self._begun.wait()
            if not self._was_up:
                raise self._ending()
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._watch)
                yield self
                tg.cancel_scope.cancel("leaving")
        finally:
            try:
                await self._leave()
            finally:
                sys.setswitchinterval(turn_s)

    async def _watch(self) -> None:
        await self._ended.wait()
        raise self._ending()

    def _ending(self) -> Exception:
        return self._error or UnavailableError("the worker ended by itself")

    async def _leave(self) -> None:
        if self._ended.is_set():
            return
        self._ask()
        try:
            await self._ended.wait()
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVING_S):
                await self._ended.wait()
            if not self._ended.is_set():
                self._say_left()
            raise
        if self._error is not None:
            raise self._error

    def _ask(self) -> None:
        """Ask it to stop; that may be before it has begun, or after it has ended."""
        self._is_asked = True
        if self._ask_there is not None:
            self._ask_there()

    def _say_left(self) -> None:
        from ..engine.workers.watchdog import where_held

        ident = self._thread.ident
        held = where_held(ident) if ident is not None and self._thread.is_alive() else None
        run = held.run if held is not None else None
        log.error(
            "worker.left_behind", extra={"run_id": run and run.id, "at": held.at if held and run else None}
        )

    # --- in the thread --------------------------------------------------------------------------------

    def _run(self, context: contextvars.Context) -> None:
        try:
            # The same kind of loop as here. Closing it may wait for threads of flows; by then we have said that we ended.
            with asyncio.Runner(loop_factory=type(self._here)) as runner:
                loop = runner.get_loop()
                living = loop.create_task(self._live(), context=context)
                while not living.done():
                    try:
                        loop.run_until_complete(living)
                    except (SystemExit, KeyboardInterrupt, RuntimeError) as exc:
                        # A task that a flow has left to itself says sys.exit(), or loop.stop(): no word for all the others.
                        log.error("worker.loop_interrupted", extra={"error": repr(exc)})
        finally:
            self._tell(self._begun, self._ended)

    async def _live(self) -> None:
        try:
            await self._serve()
        except Exception as exc:
            self._error = exc
        except asyncio.CancelledError:
            # Not by us. Raised from here it would be printed past the log, and nobody told why.
            self._error = UnavailableError("code of a flow has cancelled all tasks of the worker's loop")
        finally:
            self._tell(self._begun, self._ended)

    async def _serve(self) -> None:
        from ..bus import Bus
        from ..engine.workers.worker import Worker

        settings, loop, stop = self._settings, asyncio.get_running_loop(), asyncio.Event()
        with anyio.CancelScope() as starting:

            def stop_now() -> None:
                stop.set()
                if not self._was_up:
                    starting.cancel("asked to stop while starting")

            def ask() -> None:
                with suppress(RuntimeError):  # its loop is closed
                    loop.call_soon_threadsafe(stop_now)

            self._ask_there = ask
            if self._is_asked:  # before there was anything to call
                return
            # What the streams are to be like is said by the service's own connection.
            bus = Bus(self._address, settings.bus, name="hark worker", clock=self._clock, manage=False)
            async with bus, Worker(bus, settings.worker, settings.engine, clock=self._clock):
                self._was_up = True
                self._tell(self._begun)
                await stop.wait()

    def _tell(self, *events: asyncio.Event) -> None:
        for event in events:
            with suppress(RuntimeError):  # we were left behind, and the service's loop is closed
                self._here.call_soon_threadsafe(event.set)
