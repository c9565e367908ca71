"""Results as they are recorded: inline in the event when small, in the object store when large.

JSON when a value survives the journey unchanged (a tuple does not: it would come back a list), cloudpickle otherwise.
A value that cannot be pickled either is recorded as missing, with the reason; that is an error only when a resumed run
needs it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson

from ..errors import ResultMissing
from ..vocabulary import JsonObject
from .serializers import pickled, unpickled
from .states import StoredResult

if TYPE_CHECKING:
    from ..bus.session import Session

__all__ = [
    "NOT_KEPT", "InlineResult", "LargeResult", "RecordedResult", "ResultOfRun", "decode_inline", "encode_result", "is_lossless",
    "read_result",
]  # fmt: skip

Format: TypeAlias = Literal["json", "pickle"]

InlineResult: TypeAlias = str
"""The text of the JSON object that stands as ``result`` in the event."""

NOT_KEPT: InlineResult = '{"format":"none","missing":"the task says persist_result=False"}'

_PLAIN = frozenset({str, bool, type(None)})


@dataclass(frozen=True, slots=True)
class LargeResult:
    """A result for the object store: its bytes, and what the event will say of them."""

    data: bytes
    format: Format

    def reference(self, name: str) -> InlineResult:
        """Return what stands in the event once the bytes are stored under ``name``."""
        return orjson.dumps(
            {
                "object": name,
                "sha256": sha256(self.data).hexdigest(),
                "size": len(self.data),
                "format": self.format,
            }
        ).decode()


def is_lossless(value: Any, depth: int = 0) -> bool:
    """Return whether ``value`` written as JSON and read back is equal to itself, types included."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is int:
        return bool(-(1 << 63) <= value < 1 << 64)
    if kind is float:
        return math.isfinite(value)
    if depth > 100:
        return False
    if kind is list:
        kinds = set(map(type, value))
        return kinds <= _PLAIN or all(is_lossless(item, depth + 1) for item in value)
    if kind is dict:
        return all(type(key) is str for key in value) and all(
            is_lossless(item, depth + 1) for item in value.values()
        )
    return False


def encode_result(value: Any, *, inline_bytes: int) -> InlineResult | LargeResult:
    """Return how a result is recorded.

    Args:
        inline_bytes: the largest encoding that travels in the event itself.
    """
    if value is None:
        return '{"inline":null,"format":"json"}'
    encoded: bytes | None = None
    if is_lossless(value):
        try:
            encoded = orjson.dumps(value)
        except TypeError:
            encoded = None  # a string with half a surrogate pair, say
    if encoded is not None:
        if len(encoded) <= inline_bytes:
            return f'{{"inline":{encoded.decode()},"format":"json"}}'
        return LargeResult(encoded, "json")
    try:
        data = pickled(value)
    except Exception as exc:  # anything at all may be raised while pickling what cannot be pickled
        why = f"a {type(value).__qualname__} cannot be pickled: {type(exc).__name__}: {exc}"[:500]
        return orjson.dumps({"format": "none", "missing": why}).decode()
    if len(data) <= inline_bytes:
        return f'{{"inline":"{base64.b64encode(data).decode()}","format":"pickle"}}'
    return LargeResult(data, "pickle")


def _decode(data: bytes, format_: object) -> Any:
    if format_ == "json":
        return orjson.loads(data)
    return unpickled(data)


def decode_inline(result: JsonObject, *, run_id: str, key: str) -> Any:
    """Return the value of a result that travelled in its event.

    Raises:
        ResultMissing: it was not kept, or its class can no longer be found.
    """
    format_ = result.get("format")
    if "missing" in result:
        raise ResultMissing(run_id, key, why=str(result["missing"]))
    if format_ == "json":
        return result.get("inline")
    try:
        return _decode(base64.b64decode(str(result["inline"])), format_)
    except Exception as exc:  # unpickling runs whatever the value's class says
        raise ResultMissing(run_id, key, why=f"{type(exc).__name__}: {exc}") from exc


async def read_result(
    get: Callable[[str], Coroutine[Any, Any, bytes]], result: JsonObject, *, run_id: str, key: str
) -> Any:
    """Return the value of any recorded result, fetching it with ``get(object name)`` if it is not inline.

    Raises:
        ResultMissing: not kept, gone, corrupt, or of a class that can no longer be found.
    """
    from ..errors import HarkError

    if "object" not in result:
        return decode_inline(result, run_id=run_id, key=key)
    name = str(result["object"])
    try:
        data = await get(name)
    except HarkError as exc:
        raise ResultMissing(run_id, key, why=f"object {name!r}: {exc}") from exc
    if sha256(data).hexdigest() != result.get("sha256"):
        raise ResultMissing(run_id, key, why=f"object {name!r} is not what was stored (its SHA-256 differs)")
    try:
        return _decode(data, result.get("format"))
    except Exception as exc:  # unpickling runs whatever the value's class says
        raise ResultMissing(run_id, key, why=f"{type(exc).__name__}: {exc}") from exc


class RecordedResult(StoredResult):
    """A result in the log or the object store, read when asked for."""

    __slots__ = ("_key", "_result", "_run_id", "_session")

    def __init__(self, session: Session, result: JsonObject, *, run_id: str, key: str) -> None:
        self._session = session
        self._result = result
        self._run_id = run_id
        self._key = key

    @property
    def is_inline(self) -> bool:
        """Whether reading needs no broker."""
        return "object" not in self._result

    @property
    def is_kept(self) -> bool:
        """Whether there is anything to read; False where ``persist_result=False`` said so."""
        return self._result.get("format") != "none" or "persist_result" not in str(
            self._result.get("missing")
        )

    def read(self) -> Any:
        if self.is_inline:
            return decode_inline(self._result, run_id=self._run_id, key=self._key)
        return self._session.call(self._fetch)

    async def aread(self) -> Any:
        if self.is_inline:
            return decode_inline(self._result, run_id=self._run_id, key=self._key)
        return await self._session.acall(self._fetch)

    async def _fetch(self) -> Any:
        return await read_result(
            self._session.bus.objects.get, self._result, run_id=self._run_id, key=self._key
        )


class ResultOfRun(StoredResult):
    """What a run of anywhere returned, read through the session that is there when it is asked for."""

    __slots__ = ("_result", "_run_id")

    def __init__(self, result: JsonObject, *, run_id: str) -> None:
        self._result, self._run_id = result, run_id

    def read(self) -> Any:
        if "object" not in self._result:
            return decode_inline(self._result, run_id=self._run_id, key="flow result")
        from .either import blocking_session

        return self._recorded(blocking_session("reading a result")).read()

    async def aread(self) -> Any:
        from .either import session_here

        return await self._recorded(session_here("reading a result")).aread()

    def _recorded(self, session: Session) -> RecordedResult:
        return RecordedResult(session, self._result, run_id=self._run_id, key="flow result")
