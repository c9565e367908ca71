"""The fork server (``process_main.py``) as code without an event loop sees it: fork, kill, learn how a process ended.

One for each open task runner. Whoever starts it holds the other end of its socket: when that is closed, or its holder
dies, the server kills its children and goes, so no process outlives the program it works for.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading

import orjson

from ...errors import UnavailableError
from .frame import Channel
from .process_main import server_command

__all__ = ["ForkServer", "how_it_ended"]

_START_S = 30.0
"""Longest time for the server to import everything, or to answer; then it is taken for stuck."""
_END_S = 5.0


class ForkServer:
    """Started by the first ``fork``; ``close`` leaves no process behind. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._channel: Channel | None = None
        self._codes: dict[int, int] = {}
        self._closed = False

    def fork(self) -> tuple[int, Channel]:
        """Return the id of a new process that serves tasks, and the channel to it.

        Raises:
            UnavailableError: no process could be made, or this is closed.
        """
        with self._lock:
            if self._closed:
                raise UnavailableError("the processes of this task runner have been closed")
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    control, channel = self._running()
                    socket.send_fds(control, [b'{"do":"fork","main":"tasks"}\n'], [theirs.fileno()])
                    pid = self._read_until(channel, "forked")
                except (OSError, TimeoutError) as exc:
                    ours.close()
                    self._lose()
                    raise UnavailableError(
                        f"no process could be forked for a task: {str(exc) or 'no answer'}"
                    ) from exc
            return pid, Channel(ours)

    def kill(self, pid: int) -> None:
        """Kill a process of ours; nothing happens if it has ended."""
        with self._lock:
            if self._control is not None and pid not in self._codes:
                # It has gone, and its processes with it.
                with contextlib.suppress(OSError):
                    self._control.send(orjson.dumps({"do": "kill", "pid": pid}) + b"\n")

    def code_of(self, pid: int) -> int | None:
        """Return the exit code of a process that has closed its channel, waiting a moment for it; None if unknown."""
        with self._lock:
            if self._channel is not None and pid not in self._codes:
                # A server that has gone, or is silent, leaves the code unknown, which whoever asks is told.
                with contextlib.suppress(OSError, TimeoutError):
                    self._channel.wait_at_most(_END_S)
                    self._read_until(self._channel, "exited", pid)
            return self._codes.pop(pid, None)

    def close(self) -> None:
        """Kill what is left of our processes, and wait until the server has gone."""
        with self._lock:
            self._closed = True
            process = self._process
            self._lose()
        if process is not None:
            process.wait()

    def _running(self) -> tuple[socket.socket, Channel]:
        if self._control is not None and self._channel is not None:
            self._channel.wait_at_most(_START_S)
            return self._control, self._channel
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                server_command(theirs.fileno()), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._control, self._channel = ours, Channel(ours)
        self._channel.wait_at_most(_START_S)
        self._read_until(self._channel, "ready")
        return self._control, self._channel

    def _read_until(self, channel: Channel, word: str, pid: int | None = None) -> int:
        """Read what the server says until it says ``word`` (of ``pid``), and return its number; note exits on the way."""
        while (message := channel.receive()) is not None:
            number = message.get(word)
            exited, code = message.get("exited"), message.get("code")
            if isinstance(exited, int) and isinstance(code, int):
                self._codes[exited] = code
            if isinstance(number, int) and pid in (None, number):
                return number
        raise OSError("the fork server ended; its own error output says why")

    def _lose(self) -> None:
        control, self._control, self._channel = self._control, None, None
        if control is not None:
            control.close()
        process = self._process
        if process is not None and not self._closed:
            process.kill()
            process.wait()
        self._process = None


def how_it_ended(pid: int, code: int | None) -> str:
    """Return in words how a process ended."""
    if code is None:
        return f"its process {pid} closed the connection"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"its process {pid} was killed by {name}"
    return f"its process {pid} ended by itself with exit code {code}"
