"""``/api/variables``, ``/api/secrets``, ``/api/keys``: named values, and who may call."""

from __future__ import annotations

import re
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Request, Response

from ...errors import DefinitionError, UnknownName
from ..answer import answer, listing
from ..bodies import KeyBody, SecretBody, ValueBody
from ..context import context_of
from ..paging import Paging
from ..taken import Taken

router = APIRouter(tags=["values"])

_NAME = re.compile(r"(?=.{1,100}$)[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_MAX_BYTES = 256 << 10


def _checked(name: str, kind: str) -> str:
    if not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{name!r} is no name for a {kind}", hint="letters, digits, '_', '-' and single dots, 100 at most"
        )
    return name


@router.get("/api/variables")
async def list_variables(request: Request, paging: Paging) -> Response:
    """List variables with their values."""
    entries = await context_of(request).bus.bucket("variables").entries()
    return listing(
        [{"name": e.key, "value": orjson.loads(e.value), "changed_at": e.created_at} for e in entries], paging
    )


@router.get("/api/variables/{name}")
async def show_variable(request: Request, name: str) -> Response:
    """Show one variable."""
    bucket = context_of(request).bus.bucket("variables")
    entry = await bucket.get(_checked(name, "variable"))
    if entry is None:
        raise UnknownName("variable", name, known=await bucket.keys())
    return answer({"name": name, "value": orjson.loads(entry.value), "changed_at": entry.created_at})


@router.put("/api/variables/{name}", status_code=204)
async def set_variable(
    request: Request, name: str, body: Annotated[ValueBody, Depends(Taken(ValueBody, limit_bytes=_MAX_BYTES))]
) -> Response:
    """Set a variable: `{"value": any JSON}`."""
    bucket = context_of(request).bus.bucket("variables")
    await bucket.put(_checked(name, "variable"), orjson.dumps(body.value))
    return Response(status_code=204)


@router.delete("/api/variables/{name}", status_code=204)
async def remove_variable(request: Request, name: str) -> Response:
    """Remove a variable."""
    bucket = context_of(request).bus.bucket("variables")
    if await bucket.get(_checked(name, "variable")) is None:
        raise UnknownName("variable", name, known=await bucket.keys())
    await bucket.delete(name)
    return Response(status_code=204)


@router.get("/api/secrets")
async def list_secrets(request: Request, paging: Paging) -> Response:
    """List the names of secrets; values never leave the server."""
    return listing([{"name": name} for name in await context_of(request).secrets.names()], paging)


@router.put("/api/secrets/{name}", status_code=204)
async def set_secret(
    request: Request,
    name: str,
    body: Annotated[SecretBody, Depends(Taken(SecretBody, limit_bytes=_MAX_BYTES))],
) -> Response:
    """Set a secret: `{"value": "text"}`."""
    await context_of(request).secrets.set(_checked(name, "secret"), body.value)
    return Response(status_code=204)


@router.delete("/api/secrets/{name}", status_code=204)
async def remove_secret(request: Request, name: str) -> Response:
    """Remove a secret."""
    secrets = context_of(request).secrets
    known = await secrets.names()
    if name not in known:
        raise UnknownName("secret", name, known=known)
    await secrets.delete(name)
    return Response(status_code=204)


@router.get("/api/keys")
async def list_keys(request: Request, paging: Paging) -> Response:
    """List access keys."""
    return listing([k.to_json() for k in context_of(request).keys.all()], paging)


@router.post("/api/keys", status_code=201)
async def create_key(request: Request, body: Annotated[KeyBody, Depends(Taken(KeyBody))]) -> Response:
    """Make an access key: `{"name"}`. The answer's `token` is shown this once."""
    info, token = await context_of(request).keys.create(body.name)
    return answer({**info.to_json(), "token": token}, 201, {"Cache-Control": "no-store"})


@router.delete("/api/keys/{id_or_name}")
async def revoke_key(request: Request, id_or_name: str) -> Response:
    """Make a key worthless."""
    return answer((await context_of(request).keys.revoke(id_or_name)).to_json())
