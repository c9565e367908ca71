"""A real broker and a temporary home for a test, in a fraction of a second."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..bus.session import Session, SessionThread, close_session, use_session
from ..config import BusConfig, Settings, load_settings

if TYPE_CHECKING:
    from ..bus.address import BrokerAddress
    from ..bus.broker import EmbeddedBroker
    from ..bus.bus import Bus

__all__ = ["Harness", "hark_test_harness", "harness", "temporary_home"]


class Harness:
    """What ``harness()`` gives: enter it with ``with`` (sync tests) or ``async with`` (async tests).

    While inside, this process (and every child it starts) has a home of its own with a broker of its own: flows
    called here are tracked there, ``emit`` sends there. Leaving stops the broker and removes the home.

    Attributes:
        home: the temporary ``HARK_HOME``.
        bus: connected; in a sync test it lives on another thread, reached by ``session.call``.
        session: this process's session while inside.
    """

    home: Path
    broker: EmbeddedBroker
    bus: Bus
    session: Session

    def __init__(self, config: BusConfig | None = None) -> None:
        self._config = config
        self._stack = ExitStack()
        self._async_stack = AsyncExitStack()

    @property
    def address(self) -> BrokerAddress:
        """Where the broker is and what to show it."""
        return self.broker.address

    @property
    def settings(self) -> Settings:
        """The settings of this process while inside: the environment's, with this home."""
        return load_settings()

    # --- sync -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._enter_home(stack)
            thread = SessionThread(self._running)
            stack.callback(thread.stop)
            self.session = thread.start()
            stack.enter_context(use_session(self.session))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- async ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._enter_home(stack)
            bus = await stack.enter_async_context(self._running())
            self.session = stack.enter_context(use_session(bus))
            self._async_stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._async_stack.aclose()

    # --- both -----------------------------------------------------------------------------------------

    def _enter_home(self, stack: ExitStack | AsyncExitStack) -> None:
        self.home = stack.enter_context(temporary_home())

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[Bus, None]:
        from ..bus.broker import EmbeddedBroker
        from ..bus.bus import Bus

        settings = load_settings()
        config = self._config or settings.bus
        async with (
            EmbeddedBroker(self.home, config, program=settings.nats_server) as self.broker,
            Bus(self.broker.address, config, name="harness") as self.bus,
        ):
            yield self.bus


def harness(config: BusConfig | None = None) -> Harness:
    """Return a context manager, sync and async: a real broker on a free port, a temporary home, a connected bus.

    >>> with harness() as h:
    ...     my_flow()                          # tracked
    ...     h.session.call(h.bus.log.head)     # the bus lives on another thread

    Or as a pytest fixture of the same name, which is there wherever Hark is installed.
    """
    return Harness(config)


def hark_test_harness(server_startup_timeout: float | None = None) -> Harness:
    """Return what ``harness()`` does, by the name that people of the field look for.

    Args:
        server_startup_timeout: does nothing here: the broker is there in a fraction of a second.
    """
    del server_startup_timeout
    return Harness()


@contextmanager
def temporary_home() -> Generator[Path]:
    """While inside, the home of this process and its children is a new folder, and no broker is known."""
    close_session()
    with tempfile.TemporaryDirectory(prefix="hark-", ignore_cleanup_errors=True) as folder:
        before = {name: os.environ.get(name) for name in ("HARK_HOME", "HARK_NATS_URL")}
        set_environment({"HARK_HOME": folder, "HARK_NATS_URL": None})
        try:
            yield Path(folder)
        finally:
            set_environment(before)


def set_environment(values: Mapping[str, str | None]) -> None:
    """Set variables of this process, None to take one away; settings are read anew, and sessions begun anew."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    load_settings.cache_clear()
    close_session()  # forgets that no broker was known
