"""Paths of files as people write them: the working folder for a while, and which are here."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

__all__ = ["filename", "is_local_path", "relative_path_to_current_platform", "tmpchdir", "to_display_path"]

_one_folder = threading.Lock()


@contextmanager
def tmpchdir(path: str | Path) -> Generator[str]:
    """Work in another folder inside the block; of a file, in the one it stands in. One block at a time in a process."""
    folder = Path(path).resolve()
    if folder.is_file() or not (folder.exists() or str(path).endswith("/")):
        folder = folder.parent
    with _one_folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            yield str(folder)
        finally:
            os.chdir(before)


def filename(path: str) -> str:
    """Return the last part of a path or an address."""
    return path.rpartition("\\" if "\\" in path and "/" not in path else "/")[2]


def is_local_path(path: str | Path) -> bool:
    """Return whether a path is one of this machine, not an address."""
    kind, slashes, _ = str(path).partition("://")
    return not slashes or kind in ("file", "local")


def to_display_path(path: str | Path, relative_to: str | Path | None = None) -> str:
    """Return a path as seen from a folder (default: the working one), or in full where that is shorter.

    Raises:
        ValueError: it is not below that folder.
    """
    whole = Path(path).resolve()
    return min(str(whole), str(whole.relative_to(Path(relative_to or ".").resolve())), key=len)


def relative_path_to_current_platform(path_str: str) -> Path:
    """Return a path that was written on any system, with either slash, as one of this."""
    return Path(PureWindowsPath(path_str).as_posix())
