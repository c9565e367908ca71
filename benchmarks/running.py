"""A real ``hark up`` in a temporary home, for benchmarks that measure it from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Running:
    """A service that is up. ``ready_s``: from the start of the process to the first 200 of /health/ready."""

    url: str
    home: Path
    pid: int
    ready_s: float


@contextmanager
def hark_up(
    config: str = "", *, files: dict[str, str] | None = None, environment: dict[str, str] | None = None
) -> Iterator[Running]:
    """Start ``hark up`` with ``config`` as its hark.yaml; stop it at the end. Raises ``RuntimeError`` with its log."""
    with tempfile.TemporaryDirectory(prefix="hark-bench-") as room:
        folder, home = Path(room) / "project", Path(room) / "home"
        folder.mkdir()
        for name, text in {**({"hark.yaml": config} if config else {}), **(files or {})}.items():
            (folder / name).write_text(text)
        log = Path(room) / "log"
        began = time.perf_counter()
        with log.open("wb") as out:
            child = subprocess.Popen(
                [sys.executable, "-m", "hark.cli.main", "up", "--home", str(home), "--port", "0"],
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )
        try:
            url = _ready(home, child, log)
            yield Running(url, home, child.pid, time.perf_counter() - began)
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _ready(home: Path, child: subprocess.Popen[bytes], log: Path) -> str:
    note = home / "api.json"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        if note.exists():
            url = str(json.loads(note.read_bytes())["url"])
            try:
                if httpx.get(f"{url}/health/ready", timeout=1).status_code == 200:
                    return url
            except httpx.TransportError:
                pass
        time.sleep(0.01)
    raise RuntimeError(f"hark up did not become ready:\n{log.read_text()[-3000:]}")


def median(values: list[float]) -> float:
    """Return the middle value."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def quantile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` (0..1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
