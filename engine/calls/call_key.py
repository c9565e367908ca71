"""Resume keys: which recorded result belongs to which call, when a run is taken up again.

A call is known by the task's name, a hash of its inputs, and a number that counts the calls with the same name and
inputs in the same place (the flow, or the task run that makes the call). Counting only *equal* calls makes the number
independent of the order in which concurrent calls begin.

A future among the inputs counts as the key of the call that makes it, since its value is not known yet when the call
is made; which is as good, because equal keys mean equal recorded results.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

from ..writing import pickled

__all__ = ["INNER", "OPTIONS", "CallCounter", "canonical", "inputs_hash"]

INNER = "~"
"""What the key of a call ends in that is made in a task run."""

OPTIONS = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_NON_STR_KEYS
    | orjson.OPT_SERIALIZE_NUMPY
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def inputs_hash(inputs: Mapping[str, Any], *, scope: bytes = b"") -> str:
    """Return 16 hex digits that stand for the inputs of a call, the same in every process.

    Values that are neither JSON nor built of fields nor picklable count by the name of their type only.

    Args:
        scope: what else tells calls apart: the key of the task run that makes the call.
    """
    return blake2b(_encoded(inputs), digest_size=8, key=scope[:64]).hexdigest()


def _encoded(inputs: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(inputs, default=canonical, option=OPTIONS)
    except (TypeError, RecursionError):
        return _slow(inputs)


class CallCounter:
    """Gives each call made in one place its key: ``<name>-<index>-<inputs hash>``, the hash being ``inputs_hash``.

    The key of a call that a task run makes ends in ``~``.
    """

    __slots__ = ("_end", "_keyed", "_lock", "_scope", "_seen")

    def __init__(self, scope: str = "") -> None:
        # A hash, because blake2b takes keys of 64 bytes at most.
        self._scope = blake2b(scope.encode(), digest_size=16).digest() if scope else b""
        self._end = INNER if scope else ""
        self._keyed: dict[bytes, blake2b] = {}  # by salt: taking in the key is half of the work
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()

    def key(self, name: str, inputs: Mapping[str, Any], *, salt: bytes = b"") -> tuple[str, int]:
        """Return the key of the next call of ``name`` with these inputs, and its index among equal calls.

        Args:
            salt: tells apart what has the same name; at most 16 bytes.
        """
        keyed = self._keyed.get(salt)
        if keyed is None:
            keyed = self._keyed[salt] = blake2b(digest_size=8, key=self._scope + salt)
        hashed = keyed.copy()
        hashed.update(_encoded(inputs))
        digest = hashed.hexdigest()
        what = name + digest
        with self._lock:
            index = self._seen.get(what, 0)
            self._seen[what] = index + 1
        return f"{name}-{index}-{digest}{self._end}", index


def _slow(inputs: Mapping[str, Any]) -> bytes:
    """Encode value by value, so that one which cannot be encoded does not hide the others."""
    parts: list[bytes] = []
    for name in sorted(inputs):
        try:
            part = orjson.dumps(inputs[name], default=canonical, option=OPTIONS)
        except (TypeError, RecursionError):
            part = _pickled(inputs[name]).encode()
        parts.append(name.encode() + b"=" + part)
    return b"&".join(parts)


def canonical(value: Any) -> Any:
    """Return something JSON that stands for ``value``; called for what JSON does not know."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    key = getattr(value, "__call_key__", None)
    if isinstance(key, str):
        return ["!call", key]
    if isinstance(value, set | frozenset):
        # The order of a set of strings differs from process to process.
        items = sorted(orjson.dumps(item, default=canonical, option=OPTIONS) for item in value)
        return [name, [item.decode() for item in items]]
    if isinstance(value, bytes | bytearray | memoryview):
        return [name, blake2b(bytes(value), digest_size=16).hexdigest()]
    if isinstance(value, str):
        return [name, str.__str__(value)]
    if isinstance(value, int):
        return [name, hex(value)]
    if isinstance(value, dict):
        return [name, dict(value)]
    if isinstance(value, list | tuple):
        return [name, list(value)]
    if isinstance(value, type) or callable(value):
        return ["!named", getattr(value, "__module__", ""), getattr(value, "__qualname__", name)]
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return [name, dump()]
    plain = getattr(value, "__dict__", None)
    if (
        isinstance(plain, dict)
        and getattr(kind, "__reduce__", None) is _PLAIN_REDUCE
        and kind.__module__ not in _BY_PICKLE
    ):
        return [name, plain]
    return [name, _pickled(value)]


_PLAIN_REDUCE: Any = object.__reduce__
_BY_PICKLE = frozenset({"decimal", "fractions", "datetime", "pathlib"})


def _pickled(value: Any) -> str:
    try:
        data = pickled(value)
    except Exception:  # anything at all may be raised while pickling what cannot be pickled
        return f"!opaque {type(value).__module__}.{type(value).__qualname__}"
    return blake2b(data, digest_size=16).hexdigest()
