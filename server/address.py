"""Where a server of this machine answers: the file under the home by which the command line finds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from ..config import Settings

__all__ = ["announced", "config_path", "find_api"]

_FILE = "api.json"


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def find_api(settings: Settings) -> str:
    """Return the URL of the API: ``HARK_API_URL`` if set, else what a live server announced, else its port here."""
    if "api_url" in settings.model_fields_set:
        return settings.api_url
    try:
        value = orjson.loads((settings.home_path / _FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return settings.api_address
    if isinstance(value, dict) and isinstance(value.get("url"), str) and _alive(value.get("pid")):
        return str(value["url"])
    return settings.api_address


@contextmanager
def announced(home: Path, url: str) -> Iterator[None]:
    """Let the command line find ``url`` while the block runs."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / _FILE
    fresh = path.with_suffix(f".{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(orjson.dumps({"url": url, "pid": os.getpid()}))
    fresh.replace(path)
    try:
        yield
    finally:
        # A file that is gone, or no longer ours to read, names no server of ours.
        with suppress(OSError, orjson.JSONDecodeError, AttributeError):
            if orjson.loads(path.read_bytes()).get("pid") == os.getpid():
                path.unlink()


def config_path(settings: Settings, given: Path | None = None) -> Path | None:
    """Return the configuration to use: the one given, ``HARK_CONFIG``, else ``hark.yaml`` here, else None."""
    if given is not None:
        return given.expanduser()
    if settings.config is not None:
        return settings.config.expanduser()
    return next((p for p in (Path("hark.yaml"), Path("hark.yml")) if p.is_file()), None)
