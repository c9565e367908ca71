"""Results as they are recorded: inline in the event when small, in the object store when large, or in a storage.

By the serializer the author chose; else JSON when a value survives the journey unchanged (a tuple does not: it would come back a list), cloudpickle otherwise.
A value that cannot be pickled either is recorded as missing, with the reason; that is an error only when a resumed run
needs it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from ..errors import HarkError, ResultMissing
from ..vocabulary import JsonObject
from .states import StoredResult
from .writing import pickled, serializer_that_reads, unpickled

if TYPE_CHECKING:
    from ..bus.session import Session
    from .persistence.result_store import ResultRecord, ResultRecordMetadata, ResultStore, get_result_store
    from .serializers import Serializer

__all__ = [
    "NOT_KEPT", "InlineResult", "LargeResult", "RecordedResult", "ResultOfRun", "ResultRecord", "ResultRecordMetadata",
    "ResultStore", "decode_bytes", "decode_inline", "encode_bytes", "encode_result", "get_result_store", "is_lossless",
    "missing", "read_result", "reference_to",
]  # fmt: skip

Format: TypeAlias = str
"""The ``format`` of the serializer that wrote it."""

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


def encode_bytes(value: Any, serializer: Serializer | None = None) -> tuple[bytes, Format]:
    """Return the bytes of a value and their format. Raises whatever the serializer raises for what it cannot hold."""
    if serializer is not None:
        return serializer.dumps(value), serializer.format
    if is_lossless(value):
        try:
            return orjson.dumps(value), "json"
        except TypeError:
            pass  # a string with half a surrogate pair, say
    return pickled(value), "pickle"


def encode_result(
    value: Any, *, inline_bytes: int, serializer: Serializer | None = None
) -> InlineResult | LargeResult:
    """Return how a result is recorded.

    Args:
        inline_bytes: the largest encoding that travels in the event itself.
        serializer: the author's; None: JSON where the value survives that, else cloudpickle.
    """
    if serializer is None:
        if value is None:
            return '{"inline":null,"format":"json"}'
        kind = type(value)
        if kind is bool or (kind is int and -(1 << 63) <= value < 1 << 63):
            return f'{{"inline":{"true" if value is True else "false" if value is False else value},"format":"json"}}'
        if is_lossless(value):
            try:
                encoded = orjson.dumps(value)
            except TypeError:
                pass  # a string with half a surrogate pair, say
            else:
                if len(encoded) <= inline_bytes:
                    return f'{{"inline":{encoded.decode()},"format":"json"}}'
                return LargeResult(encoded, "json")
    try:
        data, format_ = (pickled(value), "pickle") if serializer is None else encode_bytes(value, serializer)
    except Exception as exc:  # anything at all may be raised by what cannot be written
        how = "pickled" if serializer is None else f"written as {serializer.format}"
        return missing(f"a {type(value).__qualname__} cannot be {how}: {type(exc).__name__}: {exc}")
    if len(data) <= inline_bytes:
        # "bytes" and not "inline", so that JSON by a serializer of one's own is not taken for ours.
        word = "inline" if format_ == "pickle" else "bytes"
        return f'{{"{word}":"{base64.b64encode(data).decode()}","format":{orjson.dumps(format_).decode()}}}'
    return LargeResult(data, format_)


def missing(why: str) -> InlineResult:
    """Return what is recorded of a result that could not be: an error only for who needs it."""
    return orjson.dumps({"format": "none", "missing": why[:500]}).decode()


def reference_to(storage: str | None, key: str) -> InlineResult:
    """Return what is recorded of a result that is kept under ``key`` in a storage (None: the task knows which)."""
    return orjson.dumps({"stored": key, "storage": storage, "format": "stored"}).decode()


def decode_bytes(
    data: bytes, format_: object, *, run_id: str, key: str, serializer: Serializer | None = None
) -> Any:
    """Return the value that ``encode_bytes`` was given.

    Args:
        serializer: used if it is of that format, because it may know more than its name says.
    Raises:
        ResultMissing: the bytes cannot be read, or nobody here knows the format.
    """
    try:
        if serializer is not None and serializer.format == format_:
            return serializer.loads(data)
        if format_ == "pickle":
            return unpickled(data)
        return serializer_that_reads(str(format_)).loads(data)
    except Exception as exc:  # unpickling runs whatever the value's class says
        raise ResultMissing(run_id, key, why=f"{type(exc).__name__}: {exc}") from exc


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
    if "bytes" in result:
        return decode_bytes(base64.b64decode(str(result["bytes"])), format_, run_id=run_id, key=key)
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
    if "object" not in result:
        return decode_inline(result, run_id=run_id, key=key)
    name = str(result["object"])
    try:
        data = await get(name)
    except HarkError as exc:
        raise ResultMissing(run_id, key, why=f"object {name!r}: {exc}") from exc
    if sha256(data).hexdigest() != result.get("sha256"):
        raise ResultMissing(run_id, key, why=f"object {name!r} is not what was stored (its SHA-256 differs)")
    return decode_bytes(data, result.get("format"), run_id=run_id, key=key)


class RecordedResult(StoredResult):
    """A result in the log or the object store, read when asked for."""

    __slots__ = ("_key", "_result", "_run_id", "_session", "_transaction")

    def __init__(
        self,
        session: Session,
        result: JsonObject,
        *,
        run_id: str,
        key: str,
        transaction: JsonObject | None = None,
    ) -> None:
        self._session = session
        self._transaction = transaction
        self._result = result
        self._run_id = run_id
        self._key = key

    @property
    def is_inline(self) -> bool:
        """Whether reading needs no broker."""
        return "object" not in self._result and "stored" not in self._result

    @property
    def is_kept(self) -> bool:
        """Whether there is anything to read; False where ``persist_result=False`` said so."""
        return self._result.get("format") != "none" or "persist_result" not in str(
            self._result.get("missing")
        )

    def transaction_values(self) -> dict[str, Any]:
        """Return what the run had set in its transaction. Raises ``ResultMissing`` if that cannot be read."""
        if not self._transaction:
            return {}  # it is part of none, or had set nothing
        values = decode_inline(self._transaction, run_id=self._run_id, key=f"transaction of {self._key}")
        return values if isinstance(values, dict) else {}

    def read(self) -> Any:
        if self.is_inline:
            return decode_inline(self._result, run_id=self._run_id, key=self._key)
        if "stored" in self._result:
            return stored_result(self._result, run_id=self._run_id, key=self._key).read()
        return self._session.call(self._fetch)

    async def aread(self) -> Any:
        if self.is_inline:
            return decode_inline(self._result, run_id=self._run_id, key=self._key)
        if "stored" in self._result:
            return await stored_result(self._result, run_id=self._run_id, key=self._key).aread()
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
        if "stored" in self._result:
            return stored_result(self._result, run_id=self._run_id, key="flow result").read()
        if "object" not in self._result:
            return decode_inline(self._result, run_id=self._run_id, key="flow result")
        from .sync_async.either import blocking_session

        return self._recorded(blocking_session("reading a result")).read()

    async def aread(self) -> Any:
        if "stored" in self._result:
            return await stored_result(self._result, run_id=self._run_id, key="flow result").aread()
        from .sync_async.either import session_here

        return await self._recorded(session_here("reading a result")).aread()

    def _recorded(self, session: Session) -> RecordedResult:
        return RecordedResult(session, self._result, run_id=self._run_id, key="flow result")


class StoredInStorage(StoredResult):
    """A result under its key in a storage; errors name the run it is of."""

    __slots__ = ("_key", "_run_id", "_storage", "_stored")

    def __init__(self, storage: object, stored: str, *, run_id: str, key: str) -> None:
        self._storage, self._stored, self._run_id, self._key = storage, stored, run_id, key

    def read(self) -> Any:
        from .persistence.result_store import ResultStore

        try:
            return ResultStore(self._storage).read(self._stored).result
        except HarkError as exc:
            raise self._missing(exc) from exc

    async def aread(self) -> Any:
        from .persistence.result_store import ResultStore

        try:
            return (await ResultStore(self._storage).aread(self._stored)).result
        except HarkError as exc:
            raise self._missing(exc) from exc

    def _missing(self, exc: HarkError) -> ResultMissing:
        where = self._storage if isinstance(self._storage, str) else repr(self._storage)[:200]
        return ResultMissing(self._run_id, self._key, why=f"{self._stored!r} at {where}: {exc}")


def stored_result(result: JsonObject, *, run_id: str, key: str) -> StoredInStorage:
    """Return the result that ``reference_to`` made a reference of."""
    storage = result.get("storage")
    if storage is None:
        raise ResultMissing(
            run_id, key, why=f"{result['stored']!r} is in a storage that has no URL; save it as a block"
        )
    return StoredInStorage(storage, str(result["stored"]), run_id=run_id, key=key)


_ELSEWHERE = ("ResultRecord", "ResultRecordMetadata", "ResultStore", "get_result_store")


def __getattr__(name: str) -> object:
    # Found here by who looks where Prefect has them; loaded by who needs them.
    if name in _ELSEWHERE:
        from .persistence import result_store

        return getattr(result_store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
