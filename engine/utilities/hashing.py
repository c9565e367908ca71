"""Hashes of texts, files and values, the same in every process, under the names that code written for Prefect uses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import HashError
from ..cache_policies import bytes_of

__all__ = ["file_hash", "hash_objects", "stable_hash"]

_md5 = partial(hashlib.md5, usedforsecurity=False)


def stable_hash(*args: str | bytes, hash_algo: Callable[[], Any] = _md5) -> str:
    """Return the hex digest of texts (as UTF-8) and bytes, one after the other; by default their MD5."""
    digest = hash_algo()
    for part in args:
        digest.update(part.encode() if isinstance(part, str) else part)
    return str(digest.hexdigest())


def file_hash(path: str | Path, hash_algo: Callable[[], Any] = _md5) -> str:
    """Return the hex digest of what is in a file. Raises ``OSError`` if it cannot be read."""
    return stable_hash(Path(path).read_bytes(), hash_algo=hash_algo)


def hash_objects(
    *args: Any, hash_algo: Callable[[], Any] = _md5, raise_on_failure: bool = False, **kwargs: Any
) -> str | None:
    """Return the hex digest of any values; None if one of them can neither be written as JSON nor pickled.

    Args:
        raise_on_failure: raise then.
    Raises:
        HashError: see above.
    """
    try:
        return stable_hash(bytes_of(args, kwargs), hash_algo=hash_algo)
    except HashError:
        if raise_on_failure:
            raise
        return None
