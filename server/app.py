"""The HTTP application: routes put together, and the guard every request passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.routing import Route

from ..errors import AccessDenied
from .access import cross_site, host_allowed, token_of
from .problem import install, problem, problem_of
from .routes import (
    alerts,
    approvals,
    automations,
    backfills,
    config,
    deployments,
    dlq,
    events,
    exchange,
    hooks,
    judging,
    limits,
    runs,
    silences,
    system,
    values,
    webhook_requests,
)

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .context import ServerContext

__all__ = ["make_app"]

_OPEN_PATHS = ("/health/", "/hooks/", "/ack/", "/approve/")
"""Health says nothing worth hiding; every webhook verifies its own senders; a link to acknowledge is its own key."""


class Guard:
    """Refuses requests that other web pages make a browser send, and callers without a key where keys are needed."""

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._context.metrics.answered(message["status"])
            await send(message)

        refusal = None if scope["path"].startswith(_OPEN_PATHS) else self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    def _refusal(self, scope: Scope) -> Response | None:
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
            context.keys.check(token_of(headers))
        except AccessDenied as exc:
            return problem_of(exc)
        return None


def make_app(context: ServerContext) -> FastAPI:
    """Return the application that serves ``context``."""
    app = FastAPI(
        title="Hark", description="Events, runs, rules: everything the command line can do.", docs_url=None,
        redoc_url=None, openapi_url="/openapi.json",
    )  # fmt: skip
    app.state.hark = context
    install(app)
    # Any method, no parsing by the framework: the raw body is what senders sign.
    app.router.routes.append(
        Route("/hooks/{name}", hooks.receive, methods=hooks.METHODS, include_in_schema=False)
    )
    for module in (
        alerts,
        approvals,
        judging,
        silences,
        events,
        runs,
        deployments,
        backfills,
        automations,
        webhook_requests,
        exchange,
        values,
        limits,
        dlq,
        config,
        system,
    ):
        app.include_router(module.router)
    app.add_middleware(Guard, context=context)
    return app
