"""Errors as RFC 9457 problem documents: one table from Hark's error tree to status codes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from .. import errors
from ..vocabulary import JsonObject
from .fault import ManifestInvalid

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

__all__ = [
    "HANDLERS",
    "BatchTooLarge",
    "BodyStalled",
    "BodyTooLarge",
    "Lingering",
    "MalformedBody",
    "UnsupportedBody",
    "not_valid",
    "problem",
    "problem_of",
    "status_of",
]

log = logging.getLogger("hark.server")

_DISCARD_BYTES = 64 << 20
_DISCARD_S = 5.0


class BodyTooLarge(errors.LimitError):
    """A request body passed the limit while it was being read."""

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(f"the body is larger than {limit_bytes} bytes", hint="send less at a time")
        self.limit_bytes = limit_bytes


class BatchTooLarge(errors.LimitError):
    """A batch holds more events than the server takes at once. Sent again as it is, it is still too large."""

    def __init__(self, *, count: int, limit: int) -> None:
        super().__init__(
            f"{count} events are more than the {limit} of one batch", hint="send several batches"
        )
        self.count, self.limit = count, limit


class BodyStalled(errors.UnavailableError):
    """A request body stopped coming."""

    def __init__(self, *, after_s: float, got_bytes: int) -> None:
        super().__init__(
            f"the body did not come: {got_bytes} bytes in {after_s:.0f} s, then nothing more for too long",
            hint="send all of it; HARK_SERVER__READ_TIMEOUT_S and HARK_SERVER__BODY_TIMEOUT_S are how long it may take",
        )
        self.after_s, self.got_bytes = after_s, got_bytes


class MalformedBody(errors.DefinitionError):
    """A request body does not parse."""


class UnsupportedBody(errors.DefinitionError):
    """A request body is in a format that is not taken here."""


STATUS: tuple[tuple[type[Exception], int], ...] = (
    # The first class that fits decides, so the narrow ones stand before the wide.
    (BodyTooLarge, 413),
    (BatchTooLarge, 413),
    (BodyStalled, 408),
    (errors.EventTooLarge, 413),
    (MalformedBody, 400),
    (UnsupportedBody, 415),
    (errors.UnknownName, 404),
    (errors.ResultMissing, 404),
    (errors.AccessDenied, 401),
    (errors.RateLimited, 429),
    (errors.BufferFull, 503),
    (errors.StreamFull, 503),
    (errors.LimitError, 429),
    (errors.GuardFailed, 409),
    (errors.RefusedError, 409),
    (errors.DefinitionError, 422),
    (errors.UnavailableError, 503),
    (errors.RunError, 502),
)
"""What an error of the tree is in HTTP."""


class Lingering(Response):
    """An answer to a request whose body is not wanted. It is sent at once, and the connection closed a while later.

    Most senders write all of a body before they read: closed at once, the connection would break under them and the
    answer be lost. So what still comes is read into nothing, for 5 s and 64 MiB at most.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        size, more = 0, True
        # Who waits to be told to go on has been told not to.
        waits = any(name == b"expect" for name, _ in scope["headers"])
        with anyio.move_on_after(0 if waits else _DISCARD_S):
            while more and size < _DISCARD_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = bool(message.get("more_body", False))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def status_of(exc: Exception) -> int:
    """Return the status code that says what the caller can do about ``exc``; 500 for what is not in the tree."""
    return next((status for cls, status in STATUS if isinstance(exc, cls)), 500)


def _kind(exc: Exception) -> str:
    name = type(exc).__name__
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


def problem(
    status: int,
    title: str,
    *,
    detail: str = "",
    kind: str = "about:blank",
    headers: Mapping[str, str] | None = None,
    extra: JsonObject | None = None,
) -> Response:
    """Return a problem document. ``kind`` is a short name of the fault, the same for the same fault always."""
    type_ = kind if ":" in kind else f"urn:hark:problem:{kind}"
    body: JsonObject = {"type": type_, "title": title, "status": status}
    if detail:
        body["detail"] = detail
    body.update(extra or {})
    return Response(
        orjson.dumps(body, default=str),
        status_code=status,
        media_type="application/problem+json",
        headers=dict(headers or {}),
    )


def problem_of(exc: errors.HarkError) -> Response:
    """Return the problem document of an error of the tree, with its hint."""
    status = status_of(exc)
    extra: JsonObject = {"hint": exc.hint} if exc.hint else {}
    headers: dict[str, str] = {}
    if isinstance(exc, errors.RateLimited):
        headers["Retry-After"] = str(max(1, round(exc.retry_after_s + 0.5)))
    elif status == 503:
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="hark", Basic realm="hark", charset="UTF-8"'
    if isinstance(exc, errors.UnknownName) and exc.suggestion:
        extra["suggestion"] = exc.suggestion
    if isinstance(exc, ManifestInvalid):
        extra["faults"] = [f.to_json() for f in exc.faults]
    kind = _kind(exc)
    if status == 408:
        headers["Connection"] = "close"  # what else comes on it is the rest of this body
    made = problem(
        status, _TITLES.get(status, "Error"), detail=str(exc), kind=kind, headers=headers, extra=extra
    )
    if isinstance(exc, BodyTooLarge):
        return Lingering(made.body, status, {**headers}, made.media_type)
    return made


_TITLES = {
    400: "Bad request", 401: "Access denied", 403: "Refused", 404: "Not found", 405: "Method not allowed",
    409: "Refused as things stand", 413: "Too large", 415: "Unsupported format", 422: "Not valid",
    429: "Too many", 500: "Internal error", 502: "It failed", 503: "Not available now",
}  # fmt: skip


async def _of_hark(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.HarkError)
    if status_of(exc) >= 500:
        log.warning("request.failed", extra={"path": request.url.path, "error": str(exc)})
    return problem_of(exc)


async def _of_http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    title = _TITLES.get(exc.status_code, "Error")
    return problem(
        exc.status_code, title, detail=str(exc.detail), headers=exc.headers, extra={"path": request.url.path}
    )


async def _of_those_who_left(request: Request, exc: Exception) -> Response:
    log.debug("request.left", extra={"path": request.url.path})
    return Response(status_code=400)  # nobody is there to read it


async def _of_the_unforeseen(request: Request, exc: Exception) -> Response:
    log.error("request.crashed", exc_info=exc, extra={"path": request.url.path})
    # The text of an unforeseen error may hold anything, secrets included: it goes to the log alone.
    return problem(500, _TITLES[500], detail="the server's log has the details", kind="internal")


def not_valid(faults: list[JsonObject]) -> Response:
    """Return the problem document of a request whose parameters break their rules: ``{"at", "message"}`` each."""
    detail = "; ".join(f"{f['at']}: {f['message']}" for f in faults[:5])
    return problem(422, _TITLES[422], detail=detail, kind="request-not-valid", extra={"faults": list(faults)})


HANDLERS: dict[int | type[Exception], Callable[[Request, Exception], Coroutine[Any, Any, Response]]] = {
    errors.HarkError: _of_hark,
    HTTPException: _of_http,
    ClientDisconnect: _of_those_who_left,
    Exception: _of_the_unforeseen,
}
"""What makes every error an application answers with a problem document, for its ``exception_handlers``."""
