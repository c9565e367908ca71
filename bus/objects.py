"""Large values by name, with their SHA-256 checked at every read. The layout is that of NATS object stores."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import anyio
import orjson

from ..config import BusConfig
from ..errors import ObjectCorrupt, UnknownName
from ..vocabulary import new_id
from .connection import ApiError, Connection
from .feed import Feed
from .streams import OBJECTS_BUCKET, OBJECTS_STREAM

__all__ = ["ObjectInfo", "Objects"]

_CHUNK_BYTES = 128 << 10
"""Size of a stored piece: the object stores of NATS use it, and it is below every broker's limit."""
_WINDOW = 16
"""Pieces on their way at once."""
_NO_MESSAGE = 10037
_PAUSE_S, _BEHIND_S = 0.1, 5.0
"""How long a copy of the objects may take to have what the others have."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A stored object. ``sha256`` is the hash of its bytes, in hex."""

    name: str
    size: int
    sha256: str
    chunks: int
    nuid: str


class Objects:
    """The object store. Every method raises ``BusUnavailable`` when the broker does not answer in time."""

    def __init__(self, connection: Connection, config: BusConfig, *, message_ttl: bool = True) -> None:
        self._connection = connection
        self._config = config
        self._message_ttl = message_ttl

    async def put(self, name: str, data: bytes, *, keep: bool = False) -> ObjectInfo:
        """Store ``data`` under ``name``, in place of what was there. Readers see the old or the new, never a mix.

        A put that is cut short leaves the old object; its pieces are removed.

        Args:
            keep: until it is replaced or deleted. Otherwise it leaves at the age at which events leave the log.
        Raises:
            StreamFull: ``config.objects_max_bytes`` are stored.
        """
        headers = {"Nats-TTL": "never"} if keep and self._message_ttl else {}
        before = await self._info(name)
        nuid = new_id().replace("-", "")
        pieces = [data[at : at + _CHUNK_BYTES] for at in range(0, len(data), _CHUNK_BYTES)]
        info = ObjectInfo(name, len(data), hashlib.sha256(data).hexdigest(), len(pieces), nuid)
        stored = False
        try:
            # One after the other in groups: the order of the pieces is the order in the stream.
            for at in range(0, len(pieces), _WINDOW):
                await self._put_pieces(nuid, pieces[at : at + _WINDOW], at, headers)
            await self._connection.insist(
                _meta_subject(name),
                _encode(info),
                headers={**headers, "Nats-Rollup": "sub", "Nats-Msg-Id": f"{nuid}-meta"},
            )
            stored = True
        finally:
            if not stored:
                with anyio.move_on_after(1.0, shield=True):
                    await self._purge(nuid)
        if before is not None:
            await self._purge(before.nuid)
        return info

    async def get(self, name: str) -> bytes:
        """Return what is stored under ``name``.

        Raises:
            UnknownName: nothing is. ObjectCorrupt: it is incomplete, or not what was stored.
        """
        info = await self._info(name)
        until = anyio.current_time() + (_BEHIND_S if self._config.replicas > 1 else 0.0)
        while info is not None:
            data = await self._read(info)
            if len(data) == info.size and hashlib.sha256(data).hexdigest() == info.sha256:
                return data
            # Between reading the description and the pieces, a put may have replaced both: then read again.
            again = await self._info(name)
            if again is not None and again.nuid == info.nuid:
                if anyio.current_time() < until:
                    # Of several copies one may be behind, the more so right after a restore; the reader may have met that.
                    await anyio.sleep(_PAUSE_S)
                    continue
                if len(data) != info.size:
                    raise ObjectCorrupt(name, why=f"{len(data)} of {info.size} bytes are there")
                raise ObjectCorrupt(name, why=f"its SHA-256 is not {info.sha256}")
            info = again
        raise UnknownName("object", name)

    async def info(self, name: str) -> ObjectInfo:
        """Return the size and hash of ``name``.

        Raises:
            UnknownName: nothing is stored there.
        """
        found = await self._info(name)
        if found is None:
            raise UnknownName("object", name)
        return found

    async def exists(self, name: str) -> bool:
        """Return whether something is stored under ``name``."""
        return await self._info(name) is not None

    async def delete(self, name: str) -> None:
        """Remove ``name``; nothing happens if it does not exist."""
        info = await self._info(name)
        if info is None:
            return
        await self._connection.api(f"STREAM.PURGE.{OBJECTS_STREAM}", {"filter": _meta_subject(name)})
        await self._purge(info.nuid)

    async def sweep(self, *, older_s: float) -> int:
        """Remove the pieces of puts that were killed before they were whole; return of how many objects.

        Args:
            older_s: pieces that were begun later than that stay: their put may be at work.
        """
        began_before_ms = time.time() * 1000 - older_s * 1000
        # The pieces first: what has been put wholly since is named by a description we have yet to read.
        old = [
            nuid for nuid in await self._nuids_of_pieces()
            if (at_ms := _began_ms(nuid)) is not None and at_ms <= began_before_ms
        ]  # fmt: skip
        if not old:
            return 0
        named = await self._nuids_named()
        orphans = [nuid for nuid in old if nuid not in named]
        for nuid in orphans:
            await self._purge(nuid)
        return len(orphans)

    async def _nuids_of_pieces(self) -> list[str]:
        found: list[str] = []
        prefix = _pieces_subject("")
        while True:
            answer = await self._connection.api(
                f"STREAM.INFO.{OBJECTS_STREAM}", {"subjects_filter": f"{prefix}>", "offset": len(found)}
            )
            state = answer["state"]
            assert isinstance(state, dict)
            subjects = state.get("subjects") or {}
            assert isinstance(subjects, dict)
            found += [subject.removeprefix(prefix) for subject in subjects]
            if not subjects or len(found) >= int(str(answer.get("total") or 0)):
                return found

    async def _nuids_named(self) -> set[str]:
        """Return the pieces that descriptions name. Raises ``ObjectCorrupt`` when one cannot be read: better sweep nothing."""
        feed = Feed(
            self._connection, self._config, stream=OBJECTS_STREAM, filters=[_meta_subject("") + ">"], after=0, since=None,
            batch=500, live=False,
        )  # fmt: skip
        found: set[str] = set()
        try:
            await feed.start()
            async for batch in feed:
                found.update(_nuid_in(record.subject, record.raw) for record in batch.records)
        finally:
            await feed.close()
        return found

    # --- doing ----------------------------------------------------------------------------------------

    async def _put_pieces(
        self, nuid: str, pieces: list[bytes], first: int, headers: Mapping[str, str]
    ) -> None:
        """Store a group of pieces, each with the number it must have."""
        subject = _pieces_subject(nuid)

        async def one(number: int, piece: bytes) -> None:
            await self._connection.insist(
                subject, piece, headers={**headers, "Nats-Msg-Id": f"{nuid}-{number}", _NUMBER: str(number)}
            )

        try:
            async with anyio.create_task_group() as tg:
                for number, piece in enumerate(pieces, first):
                    tg.start_soon(one, number, piece)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _read(self, info: ObjectInfo) -> bytes:
        """Return the pieces joined, as far as they are there."""
        pieces: dict[int, bytes] = {}
        feed = Feed(
            self._connection,
            self._config,
            stream=OBJECTS_STREAM,
            filters=[_pieces_subject(info.nuid)],
            after=0,
            since=None,
            batch=64,
            live=False,
        )
        try:
            await feed.start()
            async for batch in feed:
                for record in batch.records:
                    pieces[int(record.headers.get(_NUMBER, len(pieces)))] = record.raw
        finally:
            await feed.close()
        return b"".join(piece for _, piece in sorted(pieces.items()))

    async def _info(self, name: str) -> ObjectInfo | None:
        try:
            answer = await self._connection.api(
                f"STREAM.MSG.GET.{OBJECTS_STREAM}", {"last_by_subj": _meta_subject(name)}
            )
        except ApiError as exc:
            if exc.err_code == _NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        assert isinstance(message, dict)
        return _decode(name, base64.b64decode(str(message.get("data", ""))))

    async def _purge(self, nuid: str) -> None:
        await self._connection.api(f"STREAM.PURGE.{OBJECTS_STREAM}", {"filter": _pieces_subject(nuid)})


_NUMBER = "Hark-Piece"


def _meta_subject(name: str) -> str:
    return f"$O.{OBJECTS_BUCKET}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _pieces_subject(nuid: str) -> str:
    return f"$O.{OBJECTS_BUCKET}.C.{nuid}"


def _began_ms(nuid: str) -> float | None:
    """Return when a put of ours drew its number, in milliseconds since 1970; None for those of other NATS clients."""
    try:
        number = uuid.UUID(hex=nuid) if len(nuid) == 32 else None
    except ValueError:
        return None
    return float(number.int >> 80) if number is not None and number.version == 7 else None


def _nuid_in(subject: str, raw: bytes) -> str:
    """Return what a description names, of whatever kind: other NATS clients describe links and deleted objects, too."""
    try:
        return str(orjson.loads(raw)["nuid"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ObjectCorrupt(subject, why=f"its description cannot be read: {exc}") from exc


def _encode(info: ObjectInfo) -> bytes:
    digest = base64.urlsafe_b64encode(bytes.fromhex(info.sha256)).decode()
    return orjson.dumps(
        {
            "name": info.name,
            "bucket": OBJECTS_BUCKET,
            "nuid": info.nuid,
            "size": info.size,
            "chunks": info.chunks,
            "digest": f"SHA-256={digest}",
            "options": {"max_chunk_size": _CHUNK_BYTES},
        }
    )


def _decode(name: str, raw: bytes) -> ObjectInfo | None:
    """Return the description, or None for the mark another NATS client leaves of a deleted object."""
    try:
        value = orjson.loads(raw)
        if value.get("deleted"):
            return None
        digest = base64.urlsafe_b64decode(str(value["digest"]).removeprefix("SHA-256="))
        return ObjectInfo(name, int(value["size"]), digest.hex(), int(value["chunks"]), str(value["nuid"]))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ObjectCorrupt(name, why=f"its description cannot be read: {exc}") from exc
