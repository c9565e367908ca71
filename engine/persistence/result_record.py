"""A result with what is known of it, and both as bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import orjson

from ...bus.event import format_time, parse_time
from ...errors import NotSerializable, ResultMissing
from ..writing import serializer_or_pickle, serializer_that_reads

if TYPE_CHECKING:
    from ..serializers import Serializer

__all__ = ["ResultRecord", "ResultRecordMetadata"]


@dataclass(frozen=True, slots=True)
class ResultRecordMetadata:
    """What is known of a result. ``serializer`` is the one that writes it, and may be given by its name."""

    storage_key: str
    expiration: datetime | None = None
    serializer: Serializer = field(default_factory=lambda: serializer_or_pickle(None))

    def __post_init__(self) -> None:
        object.__setattr__(self, "serializer", serializer_or_pickle(self.serializer))

    def dump_bytes(self) -> bytes:
        """Return it as one line of JSON, without an end of line."""
        until = format_time(self.expiration) if self.expiration else None
        said = {"storage_key": self.storage_key, "expiration": until, "serializer": self.serializer.format}
        return orjson.dumps(said)

    @classmethod
    def load_bytes(cls, data: bytes) -> Self:
        """Return what ``dump_bytes`` wrote. Raises ``ValueError`` if it is something else, or names no serializer there is."""
        said = orjson.loads(data)
        until = said["expiration"]
        return cls(
            said["storage_key"],
            parse_time(until) if until else None,
            serializer_that_reads(said["serializer"]),
        )


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """A result and what is known of it."""

    result: Any
    metadata: ResultRecordMetadata

    @property
    def expiration(self) -> datetime | None:
        return self.metadata.expiration

    @property
    def serializer(self) -> Serializer:
        return self.metadata.serializer

    def serialize_result(self) -> bytes:
        """Return the bytes of the result. Raises ``NotSerializable`` if its serializer cannot write it."""
        try:
            return self.serializer.dumps(self.result)
        except Exception as exc:  # anything at all may be raised by what cannot be written
            raise NotSerializable(
                f"the result {self.metadata.storage_key!r}, a {type(self.result).__name__}, cannot be written as "
                f"{self.serializer.format}: {exc}"
            ) from exc

    def serialize_metadata(self) -> bytes:
        return self.metadata.dump_bytes()

    def serialize(self) -> bytes:
        """Return all of it as bytes: a line of JSON, and those of the result."""
        return self.serialize_metadata() + b"\n" + self.serialize_result()

    @classmethod
    def deserialize(cls, data: bytes, backup_serializer: Serializer | None = None) -> Self:
        """Return what ``serialize`` wrote.

        Args:
            backup_serializer: asked if the one it was written with cannot read it.
        Raises:
            ValueError: it is something else. ResultMissing: the result cannot be read.
        """
        metadata, _, result = data.partition(b"\n")
        return cls.deserialize_from_result_and_metadata(result, metadata, backup_serializer)

    @classmethod
    def deserialize_from_result_and_metadata(
        cls, result: bytes, metadata: bytes, backup_serializer: Serializer | None = None
    ) -> Self:
        """Return what ``serialize_result`` and ``serialize_metadata`` wrote; as ``deserialize``."""
        about = ResultRecordMetadata.load_bytes(metadata)
        failed: Exception | None = None
        for serializer in (about.serializer, backup_serializer):
            if serializer is not None:
                try:
                    return cls(serializer.loads(result), about)
                except Exception as exc:  # of whatever kind the serializer, or the value's class, raises
                    failed = exc
        raise ResultMissing(
            "(no run)", about.storage_key, why=f"it cannot be read as {about.serializer.format}"
        ) from failed
