"""The bus of this process for code that has no server around it: user code, threads, the interactive shell.

Outside a worker it is one background thread with an event loop and one ``Bus``, started when first needed. Inside
a worker, ``use_session`` names the worker's own. A forked child has none until it asks for its own.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ..errors import BusUnavailable, RefusedError
from .address import BrokerAddress, locate_broker

if TYPE_CHECKING:
    from ..config import BusConfig, Settings
    from .arrival import Arrival
    from .bus import Bus
    from .line import Line, Lines
    from .log import Message
    from .owner import Owner

__all__ = ["Session", "close_session", "current_session", "use_session"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

DRAIN_S = 10.0
"""How long the end of the process waits for the broker to acknowledge what was emitted."""
_CLOSING_S = 2.0
"""How long what still runs on the loop of a session may take to notice that it ends."""
_LOOK_AGAIN_S = 1.0
"""After finding no broker, a process looks again at most this often: looking reads a file."""

NO_BROKER_HINT = "start one with `hark up`, or set HARK_NATS_URL to a broker that runs"


class Session:
    """A bus and the loop it lives on, reachable from every thread and loop of the process."""

    def __init__(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        self.bus = bus
        self.loop = loop
        self._thread = threading.get_ident()
        self._generation = _generation
        self._lines: Lines | None = None
        self._exchanges: set[_Exchange] = set()
        self._gate = threading.Lock()
        self._is_closed = False
        """Nothing more is given to the loop, which is about to end."""

    @property
    def is_own_loop(self) -> bool:
        """Whether the caller runs on this session's loop, where waiting by blocking would never end."""
        return threading.get_ident() == self._thread

    def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function on the session's loop and wait for it. From any other thread than the loop's.

        Raises:
            RefusedError: called on the session's own loop.
            BusUnavailable: the session has been closed.
        """
        if self.is_own_loop:
            raise _would_wait_for_itself("call")
        # A lock, and not a future to wait for: Ctrl-C may come where its condition has just been locked and nobody would
        # unlock it, and the loop, which has to tell it, would wait for ever.
        tasks, answered = list[asyncio.Task[T]](), threading.Lock()
        answered.acquire()

        def begin() -> None:
            task = self.loop.create_task(self._run(function, *args, **kwargs))
            tasks.append(task)
            task.add_done_callback(lambda _: answered.release())

        def give_up() -> None:
            for task in tasks:
                task.cancel()

        with self._open_gate():
            self.loop.call_soon_threadsafe(begin)
        try:
            answered.acquire()
        except BaseException:
            with suppress(RuntimeError):  # its loop is closed
                self.loop.call_soon_threadsafe(give_up)
            raise
        if tasks[0].cancelled():
            raise concurrent.futures.CancelledError
        return tasks[0].result()

    async def acall(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function on the session's loop and await it, from whatever loop the caller is on.

        Raises:
            BusUnavailable: the session has been closed.
        """
        if self.is_own_loop:
            return await function(*args, **kwargs)
        with self._open_gate():
            future = asyncio.run_coroutine_threadsafe(self._run(function, *args, **kwargs), self.loop)
        return await asyncio.wrap_future(future)

    def store(self, messages: Sequence[Message], *, behind: Owner | None = None) -> list[int] | None:
        """Store messages of the log in one exchange with the broker, and wait for it. From any other thread than the loop's.

        What ``call`` of ``EventLog.append`` does, for who does little else: its loop has nothing to do but to send and to
        hear the answer. None: that could not be done at once, or not all were stored, or we do not know. Then append the
        same events the usual way, which finds those that were; tell it how long this took, so that both have one deadline.

        Args:
            messages: as ``EventLog.message`` and ``two_messages`` return them.
            behind: all that this owner has given to the publisher is stored before.
        Raises:
            RefusedError: called on the session's own loop.
        """
        if self.is_own_loop:
            raise _would_wait_for_itself("store")
        if (lines := self._lines) is not None and (line := self._line(lines, messages, behind)) is not None:
            try:
                return self._places(line.ask(messages))
            finally:
                lines.give_back(line)
        answered = threading.Lock()
        answered.acquire()
        exchange = _Exchange(self, messages, behind, answered.release)
        if not self._begin(exchange):
            return None
        answered.acquire()
        return self._places(exchange.answers)

    async def astore(self, messages: Sequence[Message], *, behind: Owner | None = None) -> list[int] | None:
        """Do what ``store`` does, awaiting it, from whatever loop the caller is on.

        Cancelled, it does not take back what was sent.
        """
        if (lines := self._lines) is not None and (line := self._line(lines, messages, behind)) is not None:
            try:
                return self._places(await line.aask(messages))
            except NotImplementedError:  # no loop for lines
                self._lines = None
                line.close()
            finally:
                lines.give_back(line)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not answered.done():
                answered.set_result(None)

        def tell_from_afar() -> None:
            with suppress(RuntimeError):  # its loop is closed: nobody waits
                loop.call_soon_threadsafe(tell)

        if self.is_own_loop:
            exchange = _Exchange(self, messages, behind, tell)
            exchange.begin()
        else:
            exchange = _Exchange(self, messages, behind, tell_from_afar)
            if not self._begin(exchange):
                return None
        await answered
        return self._places(exchange.answers)

    def _places(self, answers: list[Arrival | None] | None) -> list[int] | None:
        return None if answers is None else self.bus.log.places_in(answers)

    def _line(self, lines: Lines, messages: Sequence[Message], behind: Owner | None) -> Line | None:
        """Return a line that these messages can go by."""
        if self._generation != _generation or self.is_own_loop:
            return None
        if behind is not None and (not self.bus.is_quiet or behind.is_refused):
            return None
        return lines.take(messages)

    async def _run(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(*args, **kwargs)
        except asyncio.CancelledError:
            if self._is_closed:
                raise _has_been_closed() from None
            raise

    @contextmanager
    def _open_gate(self) -> Generator[None]:
        """What is given to the loop inside the block begins before it ends.

        Raises:
            RefusedError: the loop runs in another process.
            BusUnavailable: it has ended.
        """
        if self._generation != _generation:
            # Its loop runs in the other process alone: whoever waited for it here would wait for ever.
            raise RefusedError(
                "this session with the broker belongs to the process that this one was forked from",
                hint="what a flow forks cannot call flows and track tasks as part of it; start a new process with spawn",
            )
        with self._gate:
            if self._is_closed or self.loop.is_closed():
                raise _has_been_closed()
            yield

    def _begin(self, exchange: _Exchange) -> bool:
        """Have the loop begin an exchange; False: it has ended, which the usual way says."""
        if self._generation != _generation:
            return False
        with self._gate:
            if self._is_closed:
                return False
            try:
                self.loop.call_soon_threadsafe(exchange.begin)
            except RuntimeError:
                return False
            return True

    async def aclose(self) -> None:
        """Tell everybody who waits for the loop that it ends, and let nobody in. In the loop, once its bus is closed."""
        with self._gate:
            self._is_closed = True
        await asyncio.sleep(0)  # what was given before begins
        for exchange in tuple(self._exchanges):
            exchange.give_up()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_CLOSING_S)


def _has_been_closed() -> BusUnavailable:
    return BusUnavailable("the session with the broker has been closed")


def _would_wait_for_itself(method: str) -> RefusedError:
    return RefusedError(
        f"Session.{method} on the session's own event loop would wait for itself",
        hint=f"in async code, use `await session.a{method}(...)`",
    )


class _Exchange:
    """Messages on their way from a thread to the loop of a session, and their answers on the way back."""

    __slots__ = ("_behind", "_is_over", "_messages", "_session", "_tell", "answers")

    def __init__(
        self, session: Session, messages: Sequence[Message], behind: Owner | None, tell: Callable[[], None]
    ) -> None:
        self._session, self._messages, self._behind, self._tell = session, messages, behind, tell
        self.answers: list[Arrival | None] | None = None
        self._is_over = False

    def begin(self) -> None:
        """Send, in the loop."""
        bus, behind = self._session.bus, self._behind
        self._session._exchanges.add(self)
        try:
            if (behind is None or bus.publisher.is_settled(behind)) and bus.log.store_nowait(
                self._messages, self._end
            ):
                return
        except Exception:
            # Whoever waits must be told. He goes the usual way then, where it is raised if it still holds.
            log.debug("bus.exchange-failed", exc_info=True)
        self.give_up()

    def give_up(self) -> None:
        """Let the usual way be gone."""
        self._end(None)

    def _end(self, answers: list[Arrival | None] | None) -> None:
        if not self._is_over:
            self._is_over, self.answers = True, answers
            self._session._exchanges.discard(self)
            self._tell()


class SessionThread:
    """A session on a thread of its own. ``start`` returns once it is connected; ``stop`` once all is stored.

    ``open_bus`` is called, entered and left on that thread's loop.
    """

    def __init__(self, open_bus: Callable[[], AbstractAsyncContextManager[Bus]]) -> None:
        self._open_bus = open_bus
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._session: Session | None = None
        self._stopping: asyncio.Event | None = None
        # A daemon, because the interpreter would otherwise wait for it before it tells it to stop.
        self._thread = threading.Thread(target=self._run, name="hark-session", daemon=True)

    def start(self) -> Session:
        """Connect.

        Raises:
            BusUnavailable, AccessDenied, DefinitionError: see ``Bus``.
        """
        self._thread.start()
        self._ready.wait()
        if self._session is None:
            self._thread.join()
            assert self._error is not None
            raise self._error
        return self._session

    def stop(self) -> None:
        """Wait until what was published is stored (at most ``DRAIN_S``), then close."""
        session, stopping = self._session, self._stopping
        if session is None or stopping is None or not self._thread.is_alive():
            return
        session.loop.call_soon_threadsafe(stopping.set)
        self._thread.join(DRAIN_S + 10.0)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # Else a program that sets SIGPIPE to end it would be ended by a connection that the broker has closed.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        loop = new_event_loop()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(self._serve(loop))
            loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as exc:  # handed to the thread that waits for us
            self._error = exc
        finally:
            # Not the executor's orderly shutdown: at interpreter exit it would start a thread, which is refused.
            asyncio.set_event_loop(None)
            loop.close()
            self._ready.set()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        from .line import Lines

        session: Session | None = None
        try:
            async with self._open_bus() as bus:
                self._stopping = asyncio.Event()
                session, lines = Session(bus, loop), Lines(bus, loop)
                session._lines, self._session = lines, session
                self._ready.set()
                try:
                    await self._stopping.wait()
                finally:
                    await lines.aclose()
        finally:
            if session is not None:
                await session.aclose()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop: uvloop's where it is installed, for speed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


# --- the session of this process ----------------------------------------------------------------------

_generation = 0
"""Counts forks: a session made before the last one belongs to another process."""
_lock = threading.Lock()
_process: Session | None = None
_thread: SessionThread | None = None
_none_until = 0.0
_bound: ContextVar[Session | None] = ContextVar("hark_session", default=None)


def current_session(*, tracking: bool = True) -> Session | None:
    """Return the session of this process, starting it if a broker is known; None if none is.

    With ``tracking`` (asked by runs), None too if ``engine.track`` is ``never``. Costs nothing worth counting once
    there is an answer.

    Raises:
        BusUnavailable: a broker is known and does not answer; or none is and ``engine.track`` is ``always``.
        AccessDenied, DefinitionError: it refuses us, or the settings are wrong.
    """
    session = _bound.get() or _process
    if session is None or session._generation != _generation or session.loop.is_closed():
        if time.monotonic() < _none_until and tracking:
            return None
        return _look(tracking=tracking)
    if tracking and session is _process and _tracks_never():
        return None
    return session


def _tracks_never() -> bool:
    return _thread is not None and _settings().engine.track == "never"


def _settings() -> Settings:
    # Reading settings needs a library that takes 100 ms to load: not at `from hark import emit`.
    from ..config import load_settings

    return load_settings()


def _look(*, tracking: bool) -> Session | None:
    global _process, _thread, _none_until
    with _lock:
        if _process is not None and not _process.loop.is_closed():
            return _process
        settings = _settings()
        if tracking and settings.engine.track == "never":
            _none_until = time.monotonic() + _LOOK_AGAIN_S
            return None
        address = locate_broker(settings)
        if address is None:
            if tracking and settings.engine.track == "always":
                raise no_broker("HARK_ENGINE__TRACK is 'always', and no broker is known")
            if tracking:
                _none_until = time.monotonic() + _LOOK_AGAIN_S
            return None
        thread = SessionThread(lambda: open_bus(address, settings.bus))
        _process, _thread = thread.start(), thread
        return _process


def open_bus(address: BrokerAddress, config: BusConfig) -> Bus:
    """Return the bus of a process that only uses the broker: it changes no stream that exists."""
    from .bus import Bus

    return Bus(address, config, name=f"hark session {os.getpid()}", manage=False, drain_s=DRAIN_S)


def no_broker(what: str) -> BusUnavailable:
    """Return the error for when a broker is needed and none is known."""
    return BusUnavailable(
        f"{what} (HARK_NATS_URL is unset, and none runs under {_settings().home_path})", hint=NO_BROKER_HINT
    )


def close_session() -> None:
    """Close the session this process started by itself, all it published stored. The next use starts a new one."""
    global _process, _thread, _none_until
    with _lock:
        thread = _thread
        if thread is not None and _process is thread._session:
            _process = None
        _thread, _none_until = None, 0.0
    if thread is not None:
        thread.stop()


@contextmanager
def use_session(bus: Bus | Session) -> Generator[Session, None, None]:
    """Make ``bus`` (of the running loop), or a session, this process's session while inside.

    Who asks in the same context (the tasks and copied contexts below) gets it whatever others do meanwhile; who asks
    from a bare thread gets the one that was entered last.
    """
    global _process
    session = bus if isinstance(bus, Session) else Session(bus, asyncio.get_running_loop())
    before = _process
    _process = session
    token = _bound.set(session)
    try:
        yield session
    finally:
        _bound.reset(token)
        if _process is session:
            _process = before


def _after_fork() -> None:
    """In a forked child: the parent's loop, thread and connection are not ours."""
    global _generation, _process, _thread, _none_until, _lock
    _generation += 1
    _process = _thread = None
    _none_until = 0.0
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
# By now the threads of the program have ended (daemons aside), so nothing is emitted after us.
atexit.register(close_session)
