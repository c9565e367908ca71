"""Query parameters that nobody reads are refused: a mistyped filter would otherwise give everything, and look like an answer."""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from ..errors import DefinitionError
from .fault import did_you_mean

__all__ = ["refuse_unknown_query"]


async def refuse_unknown_query(request: Request) -> None:
    """Refuse what a reading route of the API does not take.

    Raises:
        DefinitionError: it names what was not known, and what is.
    """
    route = request.scope.get("route")
    if request.method != "GET" or not request.url.path.startswith("/api/") or not isinstance(route, APIRoute):
        return
    if not request.query_params:
        return
    known = _names(route.dependant)
    for name in request.query_params:
        if name not in known:
            near = did_you_mean(name, known)
            all_ = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise DefinitionError(
                f"{request.url.path} takes no query parameter {name!r}", hint=f"{near} {all_}".lstrip()
            )


def _names(dependant: Dependant) -> set[str]:
    """Return what a route, and all that it depends on, reads from the query."""
    names = {field.alias for field in dependant.query_params}
    return names.union(*(_names(one) for one in dependant.dependencies))
