"""A real ``hark up`` in a temporary home, for benchmarks that measure it from outside; and the middle of some values."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hark.server.child import HarkProcess


@contextmanager
def hark_up(
    config: str = "", *, files: dict[str, str] | None = None, environment: dict[str, str] | None = None
) -> Iterator[HarkProcess]:
    """Run ``hark up`` with ``config`` as its hark.yaml while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="hark-bench-") as room:
        folder = Path(room) / "project"
        folder.mkdir()
        for name, text in {**({"hark.yaml": config} if config else {}), **(files or {})}.items():
            (folder / name).write_text(text)
        with HarkProcess(folder, Path(room) / "home", environment=environment) as running:
            yield running


def median(values: list[float]) -> float:
    """Return the middle value."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def quantile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` (0..1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
