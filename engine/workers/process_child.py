"""A warm child: connected to the broker ahead of time, it waits for a run, executes it in its main thread, and reports.

The main thread executes (so that signals and timeouts reach user code), one thread holds the connection, one listens
to the worker. When the worker is gone, so is the child, at once: the run belongs to whoever takes it up next.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ...bus import Bus
from ...bus.address import BrokerAddress
from ...bus.session import Session, SessionThread, use_session
from ...config import BusConfig, EngineConfig
from ...vocabulary import JsonObject, JsonValue
from ..code.loader import Loader
from ..executors.frame import ORPHANED, Channel
from ..life.holding import HeldWait, first_end
from ..signals import Interrupted
from .execution import Job, Outcome, execute_in_process

__all__ = ["child_main", "decode_address", "encode_address"]


def encode_address(address: BrokerAddress) -> JsonObject:
    """Return an address as JSON, for the pipe: secrets must not stand in arguments or the environment."""
    return {
        "urls": list(address.urls), "user": address.user, "password": address.password, "token": address.token,
        **{
            name: str(value) if (value := getattr(address, name)) else None
            for name in ("credentials", "tls_ca", "tls_cert", "tls_key")
        },
    }  # fmt: skip


def decode_address(value: JsonObject) -> BrokerAddress:
    """Return the address that ``encode_address`` wrote."""

    def text(name: str) -> str | None:
        found = value[name]
        return None if found is None else str(found)

    def file(name: str) -> Path | None:
        found = value[name]
        return None if found is None else Path(str(found))

    urls = value["urls"]
    assert isinstance(urls, list)
    return BrokerAddress(
        urls=tuple(str(url) for url in urls), user=text("user"), password=text("password"), token=text("token"),
        credentials=file("credentials"), tls_ca=file("tls_ca"), tls_cert=file("tls_cert"), tls_key=file("tls_key"),
    )  # fmt: skip


def child_main(sock: socket.socket) -> int:
    """Serve the worker at the other end of ``sock``; return the exit code."""
    channel = Channel(sock)
    hello = channel.receive()
    if hello is None:
        return ORPHANED
    # The server's generators would otherwise be at the same place in every child.
    random.seed()
    address = hello["address"]
    assert isinstance(address, dict)
    engine = EngineConfig.model_validate(hello["engine"])
    bus_config = BusConfig.model_validate(hello["bus"])
    name = f"hark process {os.getpid()}"
    thread = SessionThread(lambda: Bus(decode_address(address), bus_config, name=name, manage=False))
    session = thread.start()
    child = _Child(channel)
    signal.signal(signal.SIGTERM, child.on_sigterm)
    threading.Thread(target=child.listen, name="hark-worker-channel", daemon=True).start()
    channel.send({"ready": os.getpid()})
    loader = Loader()
    with use_session(session):
        while (given := child.jobs.get()) is not None:
            number, job = given
            if loader.is_stale(job.path):
                channel.send({"stale": job.run.id})
                continue
            channel.send({"taken": job.run.id})
            outcome = child.execute(number, job, loader, session, engine)
            channel.send({"done": job.run.id, "outcome": outcome.kind, "detail": outcome.detail})
    thread.stop()
    return 0


class _Child:
    def __init__(self, channel: Channel) -> None:
        self.jobs: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._channel = channel
        # Jobs are told apart by number: a run that was stopped and is resumed may come to the same process again.
        self._running = 0
        self._asked = False
        self._interrupt = 0
        self._place: _Place | None = None

    def listen(self) -> None:
        """Hear the worker, in a thread of its own: what it sends while a run executes, and that it is gone."""
        while (message := self._channel.receive()) is not None:
            if "run" in message:
                self.jobs.put((_number(message["number"]), Job.from_json(message)))
            elif "interrupt" in message:
                # Noted first, so that the main thread finds it if it has not begun yet.
                self._interrupt = _number(message["interrupt"])
                if self._interrupt == self._running:
                    # To our own main thread, where user code runs; a run that has ended by now ignores it.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            elif "place" in message:
                if (place := self._place) is not None and place.number == message["number"]:
                    place.answered(_number(message["giving"]), message["place"] is True)
            elif "retire" in message:
                self.jobs.put(None)
        sys.stdout.flush()
        os._exit(ORPHANED)

    def on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        """Raise into the run, once: what it does to clean up is not interrupted again."""
        if self._running and not self._asked:
            self._asked = True
            raise Interrupted

    def execute(
        self, number: int, job: Job, loader: Loader, session: Session, engine: EngineConfig
    ) -> Outcome:
        self._asked = False
        if job.path is not None and os.path.isdir(job.path):
            os.chdir(job.path)  # a process serves one deployment's code, so this is nobody else's
        try:
            self._running = number
            if self._interrupt == number:
                return Outcome("interrupted")
            self._place = _Place(self._channel, number)
            return execute_in_process(job, loader, session, engine, self._place)
        except Interrupted:
            return Outcome("interrupted")
        finally:
            self._running = 0


class _Place:
    """The place of a run in the worker, which is asked over the channel."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel, self.number = channel, number
        self._giving: tuple[int, Callable[[bool], object]] = (0, lambda _: None)
        """Which giving was the last, and who is told of it."""

    def give(self, waits: Collection[HeldWait], answer: Callable[[bool], object]) -> None:
        self._giving = (self._giving[0] + 1, answer)
        ends_at = first_end(waits)
        self._ask("give", left_s=None if ends_at is None else ends_at - time.monotonic())

    def take(self) -> None:
        self._ask("take")

    def answered(self, giving: int, has_been: bool) -> None:
        """Hear what the worker says of a giving; nobody asks about one that another has followed."""
        last, answer = self._giving
        if giving == last:
            answer(has_been)

    def _ask(self, what: str, **facts: JsonValue) -> None:
        with suppress(OSError):  # the worker is gone, and this process about to be
            self._channel.send({"place": what, "number": self.number, "giving": self._giving[0], **facts})


def _number(value: JsonValue) -> int:
    assert isinstance(value, int)
    return value
