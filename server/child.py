"""A real ``hark up`` as a child process: for the demo, for acceptance tests, for benchmarks that look from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import orjson

from ..errors import UnavailableError

__all__ = ["HarkProcess"]

_START_DEADLINE_S = 90.0
_STOP_DEADLINE_S = 60.0


class HarkProcess:
    """One ``hark up``, in its own process group. Entered means ready to serve; left means gone, children too.

    Args:
        folder: where it runs; a ``hark.yaml`` there is its configuration.
        home: its home; give the same one again to start where a killed process left off.
        role: one role, or None for everything in one process.
        environment: added to this process's own.
        arguments: more words for the command line.

    Attributes:
        url: where the API answers (roles that serve HTTP; otherwise empty).
        ready_s: seconds from the start of the process until it was ready.
    """

    def __init__(
        self,
        folder: Path,
        home: Path,
        *,
        role: str | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._folder, self.home, self.role = folder, home, role
        self._environment = {
            **os.environ,  # env: the child's own, with what the caller adds
            **(environment or {}),
        }
        self._arguments = arguments
        self._child: subprocess.Popen[bytes] | None = None
        self.log_path = home.parent / f"{home.name}-{role or 'all'}.log"
        self.url = ""
        self.ready_s = 0.0

    @property
    def pid(self) -> int:
        """The process id. Raises ``UnavailableError`` when it is not running."""
        if self._child is None:
            raise UnavailableError("hark up is not running")
        return self._child.pid

    def log(self) -> str:
        """Return what it has printed so far, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> Self:
        """Start it and wait until it is ready. Raises ``UnavailableError`` with the end of its log."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        role = ["--role", self.role] if self.role else []
        serves = self.role in (None, "server", "all")
        port = ["--port", "0"] if serves and "--port" not in self._arguments else []
        began = time.monotonic()
        with self.log_path.open("ab") as out:
            offset = out.tell()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "hark.cli.main", "up", "--home", str(self.home), *role, *port, *self._arguments],
                cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        while time.monotonic() - began < _START_DEADLINE_S and self._child.poll() is None:
            if self._is_ready(serves, offset):
                self.ready_s = time.monotonic() - began
                return self
            time.sleep(0.01)
        self.kill()
        raise UnavailableError(
            f"hark up was not ready within {_START_DEADLINE_S:.0f} s:\n{self.log()[-3000:]}"
        )

    def _is_ready(self, serves: bool, offset: int) -> bool:
        if not serves:
            # A role without HTTP says so in its log.
            with self.log_path.open("rb") as log:
                log.seek(offset)
                return b"hark.ready" in log.read()
        try:
            note = orjson.loads((self.home / "api.json").read_bytes())
            if note["pid"] != self.pid:
                return False
            self.url = str(note["url"])
            return httpx.get(f"{self.url}/health/ready", timeout=1).status_code == 200
        except (OSError, ValueError, KeyError, httpx.TransportError):
            return False

    def stop(self) -> int:
        """Ask it to end, as Ctrl-C does, and return its exit code; after a deadline it is killed."""
        child = self._child
        if child is None:
            return 0
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._child = None
        return child.returncode

    def kill(self) -> None:
        """End the process the hard way (``kill -9``), leaving its children to find out by themselves."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
