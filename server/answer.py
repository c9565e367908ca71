"""Answers as JSON, and the small things every route reads from its request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from ..bus.event import parse_time
from ..duration import parse_duration
from ..errors import DefinitionError, EventInvalid

if TYPE_CHECKING:
    from ..storage import Page
    from .paging import Asked

__all__ = ["answer", "listing", "moment", "page"]


def _default(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    raise TypeError(f"{type(value).__name__} is no JSON")


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return ``value`` (JSON, dataclasses and moments allowed) as a response."""
    body = orjson.dumps(value, default=_default, option=orjson.OPT_UTC_Z)
    return Response(body, status_code=status, media_type="application/json", headers=dict(headers or {}))


def listing(items: Sequence[Any], asked: Asked, *, name: Callable[[Any], Any] | None = None) -> Response:
    """Return the page of a whole list that is asked for; ``name`` tells items apart, by their key, id or name else."""
    return page(asked.page(items, name or _name_of))


def _name_of(item: Mapping[str, Any]) -> Any:
    return next(item[word] for word in ("key", "id", "name") if word in item)


def page(found: Page[Any], items: Iterable[Any] | None = None) -> Response:
    """Return one page of a listing."""
    shown = list(items) if items is not None else list(found.items)
    return answer({"items": shown, "next_cursor": found.next_cursor})


def moment(text: str | None, *, name: str) -> datetime | None:
    """Return the moment meant by ``text``: RFC 3339, or how long ago (``10m``, ``7d``).

    Raises:
        DefinitionError: neither.
    """
    if text is None:
        return None
    try:
        return parse_time(text)
    except EventInvalid:
        pass
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except ValueError as exc:
        raise DefinitionError(
            f"{name}={text!r} is neither a time nor how long ago",
            hint="such as 2026-01-01T00:00:00Z, 10m or 7d",
        ) from exc
