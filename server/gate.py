"""What answers first: the guard every request passes, and the few routes that have to be fast or early.

Storing events, webhooks and health need nothing of the framework that describes the rest, whose import and routes are a
third of a start. They are answered from the first moment; the rest is loaded once everything runs, or when it is first
asked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.routing import Mount, Route

from ..errors import AccessDenied, HarkError, UnavailableError
from .access import cross_site, host_allowed, token_of
from .audit import audit_event, changes_something
from .health import live, ready
from .intake import store_events
from .problem import HANDLERS, problem, problem_of
from .routes import hooks

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .context import ServerContext

__all__ = ["Gate"]

log = logging.getLogger(__name__)

_OPEN_PATHS = ("/health/", "/hooks/", "/ack/", "/approve/")
"""Health says nothing worth hiding; every webhook verifies its own senders; a link to acknowledge is its own key."""


class _Guard:
    """Refuses requests that other web pages make a browser send, and callers without a key where keys are needed."""

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                self._context.metrics.answered(status)
                if status < 400 and caller is not None and changes_something(scope["method"], scope["path"]):
                    self._keep(scope, caller, status)
            await send(message)

        caller: str | None = None
        if not scope["path"].startswith(_OPEN_PATHS):
            checked = self._check(scope)
            if not isinstance(checked, str):
                await checked(scope, receive, counted)
                return
            caller = checked
        await self._app(scope, receive, counted)

    def _keep(self, scope: Scope, caller: str, status: int) -> None:
        """Put into the log who did what. It is done by now, so a log that is away for the moment is no reason to say it is not."""
        client = scope.get("client")
        event = audit_event(
            caller, f"{scope['method']} {scope['path']}", client=client[0] if client else None, status=status
        )
        try:
            # Stored with what else there is to store; sent again until it is.
            self._context.bus.publisher.publish_nowait(event)
        except HarkError as exc:
            log.error("audit.not_kept", extra={"by": caller, "what": scope["path"], "error": str(exc)})

    def _check(self, scope: Scope) -> Response | str:
        """Return the name of the caller, or the answer that refuses."""
        headers = Headers(scope=scope)
        context = self._context
        # Where keys are asked for, a page of another site has none, and proxies may use any name.
        allowed = context.settings.server.allowed_hosts
        if (context.keys.is_open or allowed) and not host_allowed(
            headers.get("host", ""), extra=frozenset(allowed)
        ):
            detail = f"the Host header {headers.get('host', '')!r} is not a name of this server"
            hint = "add it to HARK_SERVER__ALLOWED_HOSTS if it is"
            return problem(
                421, "Misdirected request", detail=detail, kind="host-refused", extra={"hint": hint}
            )
        if cross_site(scope["method"], headers):
            return problem(
                403, "Refused", detail="the request comes from a page of another site", kind="cross-site"
            )
        try:
            return context.keys.check(token_of(headers))
        except AccessDenied as exc:
            return problem_of(exc)


class Gate:
    """The application that serves ``context``."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._rest: ASGIApp | None = None
        self._loading = anyio.Lock()
        first = Starlette(
            routes=[
                Route("/api/events", store_events, methods=["POST"]),
                # Any method, no parsing by a framework: the raw body is what senders sign.
                Route("/hooks/{name}", hooks.receive, methods=hooks.METHODS),
                Route("/health/live", live),
                Route("/health/ready", ready),
                Mount("/", self._others),
            ],
            exception_handlers=HANDLERS,
        )
        first.state.hark = context
        self._first: ASGIApp = _Guard(first, context)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._first(scope, receive, send)

    async def load(self) -> None:
        """Load what is not loaded yet; in a thread, so that events and webhooks are taken meanwhile.

        Raises:
            UnavailableError: its files cannot be read now.
        """
        async with self._loading:
            if self._rest is None:
                try:
                    self._rest = await to_thread.run_sync(_make_rest, self._context)
                except OSError as exc:
                    raise UnavailableError(f"the API cannot be loaded now: {exc}") from exc

    async def _others(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._rest is None:
            await self.load()
        assert self._rest is not None
        await self._rest(scope, receive, send)


def _make_rest(context: ServerContext) -> ASGIApp:
    from .app import make_app

    return make_app(context)
