"""Artifacts: what a run wants people to see. Each is an event ``artifact.created`` of the run that made it.

Sync and async alike: the ``create_…`` functions return the artifact's id, awaited in async code. An artifact with a ``key``
has a history: the one made last under it is what it shows now.
"""

from __future__ import annotations

import base64
import logging
import math
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import orjson

from ..bus.emit import CauseAttrs, current_cause
from ..bus.event import Event
from ..errors import DefinitionError, InvalidNameError
from ..vocabulary import JsonObject, JsonValue, new_id
from .context import FlowRunContext, TaskRunContext
from .runs.run import SOURCE
from .sync_async.either import Either

if TYPE_CHECKING:
    from ..bus.session import Session
    from .artifact_kinds import (
        Artifact,
        ImageArtifact,
        LinkArtifact,
        MarkdownArtifact,
        ProgressArtifact,
        TableArtifact,
    )

__all__ = [
    "Artifact", "ImageArtifact", "LinkArtifact", "MarkdownArtifact", "ProgressArtifact", "TableArtifact",
    "acreate_image_artifact", "acreate_link_artifact", "acreate_markdown_artifact", "acreate_progress_artifact",
    "acreate_table_artifact", "aupdate_progress_artifact", "create_image_artifact", "create_link_artifact",
    "create_markdown_artifact", "create_progress_artifact", "create_table_artifact", "update_progress_artifact",
]  # fmt: skip

_KINDS = frozenset(
    {"Artifact", "ImageArtifact", "LinkArtifact", "MarkdownArtifact", "ProgressArtifact", "TableArtifact"}
)


def __getattr__(name: str) -> object:
    if name not in _KINDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # In a file of their own, which loads pydantic: most flows show artifacts by calling a function.
    return getattr(import_module(".artifact_kinds", __package__), name)


_KEY = re.compile(r"[a-z0-9][a-z0-9-]*")
_PROGRESS: dict[str, tuple[str | None, str | None]] = {}


@Either
async def create_markdown_artifact(
    session: Session, markdown: str, key: str | None = None, description: str | None = None
) -> str:
    """Show a text in Markdown."""
    return await store_artifact(session, "markdown", str(markdown), key, description)


@Either
async def create_table_artifact(
    session: Session,
    table: Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]] | Mapping[str, Sequence[Any]],
    key: str | None = None,
    description: str | None = None,
) -> str:
    """Show a table: a list of rows (mappings or lists), or a mapping of columns."""
    return await store_artifact(session, "table", table_content(table), key, description)


@Either
async def create_link_artifact(
    session: Session,
    link: str,
    link_text: str | None = None,
    key: str | None = None,
    description: str | None = None,
) -> str:
    """Show a link."""
    return await store_artifact(session, "link", link_content(link, link_text), key, description)


@Either
async def create_image_artifact(
    session: Session, image_url: str | bytes, key: str | None = None, description: str | None = None
) -> str:
    """Show an image: by its URL, or the bytes of a small one (PNG, JPEG, GIF, WebP)."""
    return await store_artifact(session, "image", image_content(image_url), key, description)


@Either
async def create_progress_artifact(
    session: Session, progress: float, key: str | None = None, description: str | None = None
) -> str:
    """Show how far something is, in percent; ``update_progress_artifact`` moves it on."""
    artifact_id = await store_artifact(session, "progress", progress_content(progress), key, description)
    _PROGRESS[artifact_id] = key, description
    return artifact_id


@Either
async def update_progress_artifact(
    session: Session, artifact_id: str, progress: float, description: str | None = None
) -> str:
    """Move a progress artifact to another percentage."""
    key, said = _PROGRESS.get(artifact_id, (None, None))
    return await store_artifact(
        session,
        "progress",
        progress_content(progress),
        key,
        description or said,
        artifact_id=artifact_id,
        word="updated",
    )


acreate_markdown_artifact = create_markdown_artifact.aio
acreate_table_artifact = create_table_artifact.aio
acreate_link_artifact = create_link_artifact.aio
acreate_image_artifact = create_image_artifact.aio
acreate_progress_artifact = create_progress_artifact.aio
aupdate_progress_artifact = update_progress_artifact.aio


async def store_artifact(
    session: Session,
    kind: str,
    content: JsonValue,
    key: str | None,
    description: str | None,
    *,
    artifact_id: str | None = None,
    word: str = "created",
) -> str:
    """Append the event of an artifact and return its id; with ``artifact_id``, of one that is changed."""
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidNameError(
            f"{key!r} is no key for an artifact",
            hint="lower-case letters, digits and -, beginning with one of the first",
        )
    artifact_id = artifact_id or new_id()
    flow, task = FlowRunContext.get(), TaskRunContext.here()
    data: JsonObject = {
        "artifact": {"id": artifact_id, "type": kind, "key": key, "description": description, "data": content},
        "flow_run": {"id": flow.flow_run.id, "name": flow.flow_run.name} if flow is not None else None,
        "task_run": {"id": task.task_run.id, "name": task.task_run.name} if task is not None else None,
        "flow": {"name": flow.flow_run.flow_name} if flow is not None else None,
    }  # fmt: skip
    cause = current_cause.get()
    attrs = cause if isinstance(cause, CauseAttrs) else CauseAttrs()
    await session.bus.log.append(
        Event(
            type=f"artifact.{word}", source=SOURCE, subject=f"artifact/{key or artifact_id}", data=data,
            correlationid=attrs.correlationid, causationid=attrs.causationid, causaldepth=attrs.causaldepth,
        )
    )  # fmt: skip
    return artifact_id


def table_content(table: object) -> JsonValue:
    """Return a table as JSON; what JSON has no form for is shown as text."""
    raw = orjson.dumps(table, default=_shown, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    rows: JsonValue = orjson.loads(raw)
    return rows


def link_content(link: str, text: str | None) -> JsonObject:
    """Return a link with its text, which is its address where it has none."""
    return {"href": str(link), "text": text or str(link)}


def image_content(image: str | bytes) -> str:
    """Return the address of an image; of its bytes, one that holds them."""
    return image if isinstance(image, str) else _data_url(image)


def progress_content(progress: object) -> float:
    """Return a percentage from 0 to 100; what is beyond that is taken for its end, and said."""
    if isinstance(progress, bool) or not isinstance(progress, int | float) or math.isnan(progress):
        raise DefinitionError(f"progress is a percentage from 0 to 100, got {progress!r}")
    within = float(max(0, min(progress, 100)))
    if within != progress:
        logging.getLogger("hark.artifacts").warning("progress %r is shown as %g%%", progress, within)
    return within


_IMAGES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def _data_url(image: bytes) -> str:
    kind = next((name for head, name in _IMAGES.items() if image.startswith(head)), None)
    if kind is None:
        raise DefinitionError("these bytes are no PNG, JPEG, GIF or WebP image")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _shown(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
