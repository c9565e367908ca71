"""A process of a ``ProcessPoolTaskRunner``: runs one try after the other in its main thread, and says how each ended.

Log lines go to the process that submitted the task, where logging is set up. When that process is gone, so is this one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from typing import Any

from ...bus import Bus
from ...bus.session import Session, SessionThread, use_session
from ...config import BusConfig
from ..logging import run_loggers
from ..writing import pickled, unpickled
from .frame import ORPHANED, Channel
from .remote_try import run_try
from .shipment import Shipment

__all__ = ["BEGUN", "DONE", "LOGGED", "WAITS", "Hello", "packed_record", "task_child_main"]

BEGUN, LOGGED, WAITS, DONE = b"b", b"l", b"w", b"d"
"""First byte of what a child says: the try begins now; a log line; what it waits for, nothing where it goes on; the outcome."""

Hello = dict[str, Any]
"""What a child is told first: ``path`` (of imports), ``cwd``, and what to call before anything else (``first``, pickled)."""


def task_child_main(sock: socket.socket) -> int:
    """Serve the process at the other end of ``sock``; return the exit code."""
    channel = Channel(sock)
    greeting = channel.receive_bytes()
    if greeting is None:
        return ORPHANED
    hello: Hello = unpickled(greeting)
    sys.path[:] = hello["path"]
    os.chdir(hello["cwd"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hello["first"] is not None:
        function, args = unpickled(hello["first"])
        function(*args)
    lines = _forward_logs(channel)
    with ExitStack() as stack:
        connection = _Connection(stack)
        while (data := channel.receive_bytes()) is not None:
            shipment: Shipment = unpickled(data)
            session = connection.for_(shipment)
            logging.getLogger("hark.task_runs").setLevel(shipment.log_level)
            logging.getLogger("hark.flow_runs").setLevel(shipment.log_level)
            outcome = run_try(
                shipment, session, lambda: lines.send(BEGUN),
                tell=lambda waits: lines.send(WAITS + pickled(tuple(waits))),
            )  # fmt: skip
            sys.stdout.flush()
            lines.send(DONE + outcome)
    return 0


class _Connection:
    """This process's session with the broker, opened for the first task that belongs to a tracked run."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._session: Session | None = None

    def for_(self, shipment: Shipment) -> Session | None:
        address = shipment.address
        if self._session is None and address is not None:
            config = BusConfig.model_validate(shipment.bus)
            name = f"hark task process {os.getpid()}"
            thread = SessionThread(lambda: Bus(address, config, name=name, manage=False))
            self._session = thread.start()
            self._stack.callback(thread.stop)
            self._stack.enter_context(use_session(self._session))
        return self._session


class _Lines(logging.Handler):
    """Sends log records up the channel, between whole messages."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._sending = threading.Lock()

    def send(self, data: bytes) -> None:
        with self._sending:
            self._channel.send_bytes(data)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.send(LOGGED + packed_record(record))
        except Exception:
            self.handleError(record)


def packed_record(record: logging.LogRecord) -> bytes:
    """Return a log record as it travels: what of it cannot be pickled is told by its ``repr``."""
    facts = dict(vars(record))
    facts.pop("hark_session", None)
    facts.update(msg=record.getMessage(), args=None)
    if record.exc_info:
        facts.update(exc_text=logging.Formatter().formatException(record.exc_info), exc_info=None)
    try:
        return pickled(facts)
    except Exception:
        plain = (str, int, float, bool, type(None))
        return pickled({k: v if isinstance(v, plain) else repr(v) for k, v in facts.items()})


def _forward_logs(channel: Channel) -> _Lines:
    lines = _Lines(channel)
    for logger in run_loggers():
        logger.handlers[:] = [lines]
        logger.propagate = False
    return lines
