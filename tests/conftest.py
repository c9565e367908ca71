"""Fixtures for every room: a temporary home, a real broker, a connected bus; and what a test may not leave behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.session import Session, use_session
from hark.config import BusConfig, load_settings
from hypothesis import HealthCheck, settings
from nats.aio.client import Client

from .hanging import pytest_timeout_set_timer as pytest_timeout_set_timer  # a hook, which pytest finds here
from .peer import a_peer

# Machines are shared and noisy: how long an example takes says nothing. What failed is printed so that it can be replayed.
settings.register_profile(
    "hark", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("hark")

PATIENCE_S = float(os.environ.get("LEFT_BEHIND_AFTER_S", "60"))
"""How long threads and processes that a test has ended may take to be gone, on a machine that has much else to do."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """All of Hark runs on asyncio; uvloop in service, the plain loop here, for its better complaints."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(autouse=True)
def _plain_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Settings of the machine do not reach tests: no HARK_ variables, and a home that is not the user's."""
    for name in [name for name in os.environ if name.startswith("HARK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HARK_HOME", str(tmp_path_factory.getbasetemp() / "no-home"))
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A thread, child process or task that outlives its test fails it."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("_no_tasks_left")
    threads, children = set(threading.enumerate()), _children()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while True:
        left = [
            t.name
            for t in threading.enumerate()
            if t not in threads and t.is_alive() and not _is_pooled(t.name)
        ]
        running = sorted(_children() - children)
        if not left and not running:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    pytest.fail(f"left behind: threads {left}, child processes {[(p, _command(p)) for p in running]}")


@pytest.fixture
async def _no_tasks_left(anyio_backend: object) -> AsyncIterator[None]:
    """A task that outlives its test fails it."""
    before = asyncio.all_tasks()
    yield
    for _ in range(5):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before if "TestRunner." not in repr(task.get_coro())]
    assert left == [], f"tasks left behind: {left}"
    gc.collect(0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A temporary HARK_HOME."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def bus_config() -> BusConfig:
    """The configuration of ``broker`` and ``bus``; override it in a module to change theirs."""
    return BusConfig()


@pytest.fixture
async def broker(home: Path, bus_config: BusConfig) -> AsyncIterator[EmbeddedBroker]:
    """A fresh real broker of the test's own."""
    async with EmbeddedBroker(home, bus_config) as running:
        yield running


@pytest.fixture
async def bus(broker: EmbeddedBroker, bus_config: BusConfig) -> AsyncIterator[Bus]:
    """A connected bus on a fresh real broker."""
    async with Bus(broker.address, bus_config, name="test") as connected:
        yield connected


@pytest.fixture
async def session(bus: Bus) -> AsyncIterator[Session]:
    """The test's own loop as the session of this process, as in a worker: what runs is tracked."""
    with use_session(bus) as found:
        yield found


@pytest.fixture
def keys_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home for the key of secrets that code without arguments (a session, a block) finds by itself."""
    monkeypatch.setenv("HARK_HOME", str(tmp_path / "keys"))
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


@pytest.fixture
async def peer(broker: EmbeddedBroker) -> AsyncIterator[Client]:
    """Somebody else on the same broker, with nothing of ours."""
    async with a_peer(broker.address) as client:
        yield client


@pytest.fixture
def forgets(bus: Bus) -> Callable[[], Awaitable[None]]:
    """Waits until the broker has forgotten the ids it has seen by now; for a short ``dedup_window_s``."""

    async def wait() -> None:
        probe = Event(type="probe.sent", source="/test")
        await bus.log.append(probe)
        while (await bus.log.append(probe)).duplicate:
            pass

    return wait


@pytest.fixture
def hears() -> Iterator[Callable[[str, str], asyncio.Event]]:
    """``hears("hark.bus", "some.word")``: an event that is set when that logger says this."""
    added: list[tuple[logging.Logger, logging.Handler]] = []

    def listen(name: str, word: str) -> asyncio.Event:
        heard = asyncio.Event()

        class Ear(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.msg == word:
                    heard.set()

        logger, ear = logging.getLogger(name), Ear()
        logger.addHandler(ear)
        added.append((logger, ear))
        return heard

    yield listen
    for logger, ear in added:
        logger.removeHandler(ear)


@pytest.fixture
def frozen(broker: EmbeddedBroker) -> Callable[[], AbstractContextManager[None]]:
    """Freezes the broker while inside: connections stay, nothing is answered."""

    @contextmanager
    def freeze() -> Iterator[None]:
        pid = broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            # Its threads stop one by one; until the last has, an answer may still come.
            while not all(_is_stopped(task) for task in Path(f"/proc/{pid}/task").iterdir()):
                time.sleep(0.001)
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    return freeze


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] in "TX"


def _is_pooled(name: str) -> bool:
    """Whether a thread belongs to a pool that lives as long as its loop or process, as anyio's and asyncio's do."""
    return name.startswith(
        (
            "AnyIO worker thread",
            "asyncio_",
            "ThreadPoolExecutor",
            "pydevd",
            "hark-shared-task",
            "hark-timeouts",
            "Dask-Offload",
        )
    )


def _children() -> set[int]:
    """Return the pids of the child processes of this one that have not ended."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir() if Path("/proc/self/task").exists() else ():
        try:
            found |= {int(pid) for pid in (task / "children").read_text().split()}
        except OSError:
            continue
    return {pid for pid in found if _state(pid) != "Z"}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "?"
