"""Artifacts as objects: ``MarkdownArtifact(key="report", markdown="…").create()``, ``MarkdownArtifact.get("report")``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from ..bus.event import readable
from ..bus.subject import filters_for
from ..vocabulary import JsonValue
from .artifacts import image_content, link_content, progress_content, store_artifact, table_content
from .sync_async.either import Either

if TYPE_CHECKING:
    from ..bus.session import Session

__all__ = [
    "Artifact", "ImageArtifact", "LinkArtifact", "MarkdownArtifact", "ProgressArtifact", "StoredArtifact", "TableArtifact",
    "read_artifacts",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """An artifact as the log has it.

    Attributes:
        content: what is shown: a text, rows, a percentage, or a link's address and text.
        updated: when it was made or last moved on.
    """

    id: str
    key: str | None
    type: str
    description: str | None
    content: Any
    flow_run_id: str | None = None
    task_run_id: str | None = None
    updated: datetime | None = field(default=None, compare=False)

    @property
    def data(self) -> Any:
        """The content as Prefect has it: of a table its JSON, of a link its Markdown."""
        return as_data(self.content)


def as_data(content: Any) -> Any:
    """Return the content of an artifact in Prefect's form, which knows texts and numbers only."""
    if isinstance(content, dict) and content.keys() == {"href", "text"}:
        return f"[{content['text']}]({content['href']})"
    return content if content is None or isinstance(content, str | int | float) else json.dumps(content)


class Artifact(BaseModel):
    """Something a run shows people. The kinds below say what of it is the content; this one takes it as ``data``."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    kind: ClassVar[str | None] = None

    type: str | None = None
    key: str | None = None
    description: str | None = None
    data: Any = None

    def model_post_init(self, context: Any, /) -> None:
        if self.type is None:
            self.type = self.kind or "markdown"

    def content(self) -> Any:
        """Return what is kept: JSON."""
        return self.data

    def format(self) -> Any:
        """Return the content as Prefect has it: of a table its JSON, of a link its Markdown."""
        return as_data(self.content())

    async def aformat(self) -> Any:
        """Do what ``format`` does, in async code."""
        return self.format()

    def create(self) -> Any:
        """Show it; return it as stored, awaited in async code."""
        return _create(self)

    async def acreate(self) -> StoredArtifact:
        """Do what ``create`` does, in async code."""
        return await _create.aio(self)

    @classmethod
    def get(cls, key: str) -> Any:
        """Return what is shown under a key now, or None; awaited in async code. Reads all artifacts the log still has."""
        return _get(key)

    @classmethod
    async def aget(cls, key: str) -> StoredArtifact | None:
        """Do what ``get`` does, in async code."""
        return await _get.aio(key)

    @classmethod
    def get_or_create(cls, key: str, description: str | None = None, data: Any = None, **fields: Any) -> Any:
        """Return (what is shown under the key, whether it was made now); awaited in async code."""
        return _get_or_create(cls, key, description, data, fields)

    @classmethod
    async def aget_or_create(
        cls, key: str, description: str | None = None, data: Any = None, **fields: Any
    ) -> tuple[StoredArtifact, bool]:
        """Do what ``get_or_create`` does, in async code."""
        return await _get_or_create.aio(cls, key, description, data, fields)

    @classmethod
    def _with(cls, key: str, description: str | None, data: Any, fields: Mapping[str, Any]) -> Self:
        return cls(key=key, description=description, data=data, **fields)


class MarkdownArtifact(Artifact):
    """A text in Markdown."""

    kind = "markdown"
    markdown: str

    def content(self) -> str:
        return self.markdown


class LinkArtifact(Artifact):
    """A link; without a text it is shown by its address."""

    kind = "link"
    link: str
    link_text: str | None = None

    def content(self) -> Any:
        return link_content(self.link, self.link_text)


class TableArtifact(Artifact):
    """A table: a list of rows, or a mapping of columns."""

    kind = "table"
    table: Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]] | Mapping[str, Sequence[Any]]

    def content(self) -> Any:
        return table_content(self.table)


class ProgressArtifact(Artifact):
    """How far something is, in percent; what is beyond 0 or 100 is shown as that."""

    kind = "progress"
    progress: float

    def content(self) -> float:
        return progress_content(self.progress)


class ImageArtifact(Artifact):
    """An image, by its address."""

    kind = "image"
    image_url: str | bytes

    def content(self) -> str:
        return image_content(self.image_url)


@Either
async def _create(session: Session, artifact: Artifact) -> StoredArtifact:
    data = artifact.content()
    return await _stored(session, artifact, data)


async def _stored(session: Session, artifact: Artifact, data: JsonValue) -> StoredArtifact:
    from .context import FlowRunContext, TaskRunContext

    kind = str(artifact.type)
    id_ = await store_artifact(session, kind, data, artifact.key, artifact.description)
    flow, task = FlowRunContext.get(), TaskRunContext.here()
    return StoredArtifact(
        id_, artifact.key, kind, artifact.description, data, flow.flow_run.id if flow is not None else None,
        task.task_run.id if task is not None else None, datetime.now(UTC),
    )  # fmt: skip


@Either
async def _get(session: Session, key: str) -> StoredArtifact | None:
    return await _found(session, key)


async def _found(session: Session, key: str) -> StoredArtifact | None:
    found = await read_artifacts(session, subject=f"artifact/{key}")
    return found[-1] if found else None


async def read_artifacts(session: Session, *, subject: str | None = None) -> list[StoredArtifact]:
    """Return the artifacts that the log still has, each as often as it was moved on, in the order in which that was."""
    await session.bus.publisher.barrier()
    found = []
    async with session.bus.log.read(filters_for("artifact.*")) as batches:
        async for batch in batches:
            found += [
                _of_event(recorded.event.data, recorded.event.time)
                for recorded in readable(batch.records)
                if isinstance(recorded.event.data, dict) and subject in (None, recorded.event.subject)
            ]
    return found


def _of_event(data: dict[str, Any], at: datetime) -> StoredArtifact:
    shown, flow, task = data["artifact"], data.get("flow_run") or {}, data.get("task_run") or {}
    return StoredArtifact(
        shown["id"], shown["key"], shown["type"], shown["description"], shown["data"], flow.get("id"), task.get("id"), at,
    )  # fmt: skip


@Either
async def _get_or_create(
    session: Session,
    cls: type[Artifact],
    key: str,
    description: str | None,
    data: Any,
    fields: Mapping[str, Any],
) -> tuple[StoredArtifact, bool]:
    found = await _found(session, key)
    if found is not None:
        return found, False
    made = cls._with(key, description, data, fields)
    return await _stored(session, made, made.content()), True
