"""``/health/*``: whether the process lives, and whether it can do its work."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from .answer import answer
from .context import ServerContext, context_of
from .problem import problem

__all__ = ["live", "not_ready", "ready"]


async def live(request: Request) -> Response:
    """Answer 200 while the process runs."""
    return answer({"status": "live"})


async def ready(request: Request) -> Response:
    """Answer 200 while every part runs and the broker is reachable; 503 says what does not."""
    context = context_of(request)
    wrong = not_ready(context)
    if wrong:
        return problem(
            503, "Not ready", detail="; ".join(wrong), kind="not-ready", headers={"Retry-After": "1"}
        )
    return answer({"status": "ready"})


def not_ready(context: ServerContext) -> list[str]:
    """Return what is wrong, in words; empty when everything runs."""
    wrong = [] if context.bus.is_connected else ["the broker is not reachable"]
    if context.broker is not None and context.broker.fault:
        wrong.append(
            f"the broker cannot write to {context.settings.home_path} ({context.broker.fault}): make room, it goes on by itself then"
        )
    if context.closing.is_set():
        wrong.append("the server is stopping")
    for name, part in context.services.report().items():
        if isinstance(part, dict) and part["state"] != "running":
            wrong.append(f"{name} is {part['state']}" + (f" ({part['error']})" if part.get("error") else ""))
    return wrong
