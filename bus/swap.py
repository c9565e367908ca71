"""The last step of a restore into a home: what was made beside it takes the place of what is there, or nothing does.

Everything new is made in ``<home>/restoring``. Then a note, ``restore.json``, is written, and from then on the restore has
happened: whoever opens the home next finishes what the note says. What was there before is moved to the folder the note
names; nothing is deleted.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import orjson

from ..errors import DataError

__all__ = ["begin_swap", "commit_swap", "finish_swap", "staging"]

log = logging.getLogger(__name__)

_NOTE = "restore.json"
_READ_MODEL = ("hark.sqlite", "hark.sqlite-wal", "hark.sqlite-shm")


def staging(home: Path) -> Path:
    """Return the folder in which a restore makes the new home."""
    return home / "restoring"


def begin_swap(home: Path) -> Path:
    """Return the empty folder for the new home; what a killed restore had made there is removed."""
    folder = staging(home)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def commit_swap(home: Path, *, kept: str) -> None:
    """Say that what is in the staging folder is whole, and is to be the home. ``kept``: where the old goes, a folder's name."""
    # The broker has written what it was given; now the disk has it, before the note says so.
    os.sync()
    temporary = home / f".{_NOTE}"
    with temporary.open("wb") as file:
        file.write(orjson.dumps({"kept": kept}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(home / _NOTE)
    os.sync()


def finish_swap(home: Path) -> Path | None:
    """Carry out a committed swap, also the rest of one; return where the old is, None if there was none to carry out.

    For whoever holds the home's lock. Each step can be the last before a crash.
    """
    note = home / _NOTE
    try:
        name = str(orjson.loads(note.read_bytes())["kept"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise DataError(
            f"{note} cannot be read", hint=f"see what is in {staging(home)}, then remove {note}"
        ) from exc
    kept, new = home / name, staging(home)
    kept.mkdir(mode=0o700, exist_ok=True)
    for old in _READ_MODEL:
        # Folded from another log; it is folded anew.
        _move(home / old, kept / old)
    for item in ("nats", "secret.key"):
        if (new / item).exists():
            # While the new one is still there, what is in its place is the old one.
            _move(home / item, kept / item)
            (new / item).rename(home / item)
    os.sync()
    note.unlink()
    shutil.rmtree(new, ignore_errors=True)
    log.info("restore.finished", extra={"home": str(home), "before": str(kept)})
    return kept


def _move(old: Path, new: Path) -> None:
    if old.exists() and not new.exists():
        old.rename(new)
