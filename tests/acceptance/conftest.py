"""Real processes: `hark up` is started, watched through its own log, and killed at the worst moment."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from hark.bus import Bus, Event, Recorded, locate_broker
from hark.config import BusConfig, Settings
from hark.server.child import HarkProcess

Start = Callable[..., HarkProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The project folder of the service under test."""
    made = tmp_path / "project"
    made.mkdir()
    return made


@pytest.fixture
def write(folder: Path) -> Callable[..., None]:
    """Write files into the project: ``write(**{"hark.yaml": "…"})``; texts are dedented."""

    def to_files(**files: str) -> None:
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(textwrap.dedent(text))

    return to_files


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a `hark up` on the test's home; whatever still runs at the end is stopped."""
    with ExitStack() as stack:

        def started(
            *, role: str | None = None, environment: Mapping[str, str] | None = None, home: str = "home"
        ) -> HarkProcess:
            process = HarkProcess(
                folder,
                tmp_path / home,
                role=role,
                environment={"HARK_ENGINE__ACK_WAIT_S": "2", **(environment or {})},
            )
            stack.callback(process.stop)
            return process.start()

        yield started


class Watch:
    """Follows the log of a running service from its first event, and waits for what must come."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.seen: list[Recorded] = []
        self._changed = anyio.Event()

    async def follow(self) -> None:
        async with self.bus.log.follow(after=0) as batches:
            async for batch in batches:
                self.seen.extend(batch.records)
                self._changed.set()
                self._changed = anyio.Event()

    async def more(self) -> None:
        """Wait until something else has come."""
        await self._changed.wait()

    async def until(self, enough: Callable[[], bool], *, within_s: float = 120) -> None:
        """Wait until ``enough()``, which is asked again whenever an event has arrived."""
        try:
            with anyio.fail_after(within_s):
                while not enough():
                    await self._changed.wait()
        except TimeoutError:
            newest = {r.event.subject: r for r in self.seen if r.event.type.startswith("flow-run.")}
            told = "\n".join(map(_line, self.seen[-60:]))
            runs = "\n".join(map(_line, newest.values()))
            raise AssertionError(
                f"not seen within {within_s} s; runs stand at:\n{runs}\nthe last events were:\n{told}"
            ) from None

    def events(self, type_: str, **data: object) -> list[Event]:
        """Return the events of a type whose dotted data paths (``__`` for a dot) have these values."""
        return [
            r.event for r in self.seen
            if r.event.type == type_ and all(at(r.event, path) == value for path, value in data.items())
        ]  # fmt: skip


def _line(recorded: Recorded) -> str:
    event = recorded.event
    return f"{recorded.seq} {recorded.recorded_at:%H:%M:%S.%f} {event.type} {event.subject}"


def at(event: Event, path: str) -> object:
    """Return what stands at a path of an event's data, words joined by two underscores."""
    value: object = event.data
    for word in path.split("__"):
        value = value.get(word) if isinstance(value, dict) else None
    return value


@asynccontextmanager
async def watching(home: Path) -> AsyncIterator[Watch]:
    """Watch the log of the service that lives in ``home``."""
    address = locate_broker(Settings(home=home))
    assert address is not None
    async with Bus(address, BusConfig(), name="watch") as bus, anyio.create_task_group() as group:
        watch = Watch(bus)
        group.start_soon(watch.follow)
        try:
            yield watch
        finally:
            group.cancel_scope.cancel()
