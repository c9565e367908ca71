"""A rule engine and an outbox on a real broker, an HTTP receiver that does what it is told, and waiting for events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson
import pytest
from anyio.abc import SocketAttribute, SocketStream
from cryptography.fernet import Fernet
from hark.automations.acting.outbox import Outbox
from hark.automations.acting.perform import Performers
from hark.automations.folding.engine import RuleEngine
from hark.automations.folding.handover import Handover
from hark.automations.model import parse_automation
from hark.bus import Bus, Event, LateValues, Recorded, SecretStore
from hark.config import AutomationsConfig
from hark.engine.dispatching.control import Control
from hark.errors import NotificationFailed, UnknownName
from hark.notifications.message import Delivery, Message

CONFIG = AutomationsConfig(allow_private_addresses=True, checkpoint_s=0.2)


@dataclass
class Request:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Receiver:
    """A small HTTP server. ``answers`` are (status, headers) for the requests to come; then 200. -1 hangs, -2 waits for ``go``."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    connections: int = 0
    go: anyio.Event = field(default_factory=anyio.Event)
    _changed: anyio.Event = field(default_factory=anyio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def wait(self, n: int) -> list[Request]:
        """Return the requests once there are ``n``."""
        with anyio.fail_after(60):
            while len(self.requests) < n:
                await self._changed.wait()
        return self.requests

    async def handle(self, stream: SocketStream) -> None:
        self.connections += 1
        async with stream:
            buffer = b""
            while True:
                while b"\r\n\r\n" not in buffer:
                    try:
                        buffer += await stream.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
                while len(buffer) < int(headers.get("content-length", 0)):
                    buffer += await stream.receive()
                size = int(headers.get("content-length", 0))
                method, path, _ = first.split(" ")
                self.requests.append(Request(method, path, headers, buffer[:size]))
                buffer = buffer[size:]
                changed, self._changed = self._changed, anyio.Event()
                changed.set()
                status, extra = self.answers.pop(0) if self.answers else (200, "")
                if status == -2:
                    await self.go.wait()
                    status = 200
                if status < 0:
                    await anyio.sleep_forever()
                with suppress(anyio.BrokenResourceError):  # who asked may have been killed meanwhile
                    await stream.send(f"HTTP/1.1 {status} X\r\n{extra}content-length: 2\r\n\r\nok".encode())


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A running HTTP receiver."""
    made = Receiver()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    made.port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, made.handle)
        yield made
        tg.cancel_scope.cancel()


@dataclass
class People:
    """Stands where the notifier stands: keeps what is said, and can be told to fail."""

    told: list[tuple[str, Message, str]] = field(default_factory=list)
    failing: int = 0
    channels: tuple[str, ...] = ("oncall", "managers")

    async def send(self, to: str, message: Message, *, key: str, cause: Event | None) -> Sequence[Delivery]:
        if to not in self.channels and "://" not in to:
            raise UnknownName("channel", to, known=self.channels)
        if self.failing:
            self.failing -= 1
            raise NotificationFailed(to, failures=[("mailto", "the server is away")])
        self.told.append((to, message, key))
        return [Delivery(to, 0, "mailto", "sent", 1)]


class House:
    """One broker with what this room runs on it."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.people = People()
        self.secrets = SecretStore(bus, Fernet.generate_key())
        self.control = Control(bus)

    @asynccontextmanager
    async def outbox(
        self,
        config: AutomationsConfig = CONFIG,
        *,
        ack_wait_s: float = 6.0,
        handover: Handover | None = None,
    ) -> AsyncIterator[Outbox]:
        late = LateValues(self.bus, self.secrets, environ={})
        async with (
            Performers(self.bus, self.control, late, config, notifier=lambda: self.people) as performers,
            Outbox(self.bus, performers, config, ack_wait_s=ack_wait_s, handover=handover) as running,
        ):
            yield running

    def engine(self, config: AutomationsConfig = CONFIG, **more: Any) -> RuleEngine:
        return RuleEngine(self.bus, config, **more)

    @asynccontextmanager
    async def all(self, config: AutomationsConfig = CONFIG) -> AsyncIterator[RuleEngine]:
        handover = Handover()
        async with self.outbox(config, handover=handover), self.engine(config, handover=handover) as engine:
            yield engine

    async def define(self, name: str, **definition: Any) -> int:
        """Put a rule into the bucket, and wait until it is in force."""
        automation = parse_automation(definition, name=name)
        revision = await self.bus.bucket("automations").put(name, automation.dumps())
        await self.until(lambda e: e.type == "automation.adopted" and at(e, "revision") == revision)
        return revision

    async def remove(self, name: str) -> None:
        await self.bus.bucket("automations").delete(name)

    async def emit(self, type_: str, data: Any = None, **more: Any) -> Event:
        event = Event(type=type_, source="/test", data=data, **more)
        await self.bus.log.append(event)
        return event

    async def until(
        self, wanted: Callable[[Event], bool], *, count: int = 1, timeout_s: float = 60
    ) -> list[Event]:
        """Return the first ``count`` events of the log that are ``wanted``."""
        found: list[Event] = []
        with anyio.fail_after(timeout_s):
            async with self.bus.log.follow(after=0) as batches:
                async for batch in batches:
                    found += [r.event for r in batch.records if wanted(r.event)]
                    if len(found) >= count:
                        return found
        raise AssertionError("the log ended")

    async def of_type(self, *types: str, count: int = 1) -> list[Event]:
        return await self.until(lambda e: e.type in types, count=count)

    async def events(self, *types: str) -> list[Recorded]:
        """Return what the log holds now of these types (of all, without)."""
        async with self.bus.log.read() as batches:
            return [r async for b in batches for r in b.records if not types or r.event.type in types]


def at(event: Event, path: str) -> Any:
    """Return the value at a dotted path of an event's data."""
    value: Any = event.data
    for word in path.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


@pytest.fixture
async def house(bus: Bus) -> House:
    """The parts of this room on a fresh broker."""
    return House(bus)
