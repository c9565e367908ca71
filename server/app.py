"""The HTTP application behind the door: every route, with its reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from .known_query import refuse_unknown_query
from .openapi import describe
from .problem import HANDLERS, not_valid
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
    judging,
    kept,
    limits,
    pages,
    runs,
    silences,
    system,
    values,
    webhook_requests,
    workers,
)

if TYPE_CHECKING:
    from .context import ServerContext

__all__ = ["make_app"]


def make_app(context: ServerContext) -> FastAPI:
    """Return the application that serves ``context``."""
    app = FastAPI(
        title="Hark", description="Events, runs, rules: everything the command line can do.", docs_url=None,
        redoc_url=None, openapi_url="/openapi.json", exception_handlers=HANDLERS,
        dependencies=[Depends(refuse_unknown_query)],
    )  # fmt: skip
    app.state.hark = context

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, exc: RequestValidationError) -> Response:
        return not_valid(
            [{"at": ".".join(str(p) for p in e["loc"]), "message": e["msg"]} for e in exc.errors()[:50]]
        )

    modules = (
        alerts,
        approvals,
        judging,
        silences,
        events,
        runs,
        deployments,
        workers,
        backfills,
        automations,
        webhook_requests,
        exchange,
        values,
        limits,
        kept,
        dlq,
        config,
        pages,
        system,
    )
    for module in modules:
        app.include_router(module.router)
    routes = [route for module in modules for route in module.router.routes if isinstance(route, APIRoute)]
    app.openapi = lambda: describe(app, routes)  # type: ignore[method-assign]
    return app
