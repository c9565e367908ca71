"""``/api/limits``: named limits, who holds their slots and who waits. A name may hold ``/``, as tags do."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from pydantic import ValidationError

from ...automations.problem import problems_of
from ...bus.bucket import Entry
from ...engine.limits.limit import BUCKET, Limit, key_of, name_of
from ...engine.limits.slots import delete_limit, put_limit, reset, standing
from ...errors import DefinitionError, RefusedError, UnknownName
from ..answer import answer, page
from ..bodies import LimitBody
from ..context import ServerContext, context_of
from ..openapi import REFUSED
from ..paging import Paging
from ..taken import Taken

router = APIRouter(tags=["limits"])

Asked = Annotated[LimitBody, Depends(Taken(LimitBody))]


def _key(name: str) -> str:
    try:
        return key_of(name)
    except ValueError as exc:
        raise DefinitionError(str(exc)) from exc


async def _shown(context: ServerContext, entry: Entry, *, whole: bool = False) -> dict[str, Any]:
    name = name_of(entry.key)
    shown: dict[str, Any] = {"name": name, "changed_at": entry.created_at}
    try:
        limit = Limit.model_validate_json(entry.value)
    except ValidationError as exc:
        return {**shown, "error": str(exc)}
    shown |= orjson.loads(limit.model_dump_json())
    if limit.pace is not None:
        return shown
    line = await standing(context.bus, name, limit)
    shown["occupied"] = sum(one.occupy for one in line if one.holds)
    shown["waiting"] = sum(not one.holds for one in line)
    if whole:
        shown["line"] = line
    return shown


async def _entry(context: ServerContext, name: str) -> Entry:
    bucket = context.bus.bucket(BUCKET)
    entry = await bucket.get(_key(name))
    if entry is None:
        raise UnknownName("limit", name, known=[name_of(key) for key in await bucket.keys()])
    return entry


@router.get("/api/limits")
async def list_limits(request: Request, paging: Paging) -> Response:
    """List limits with how many of their slots are taken."""
    context = context_of(request)
    found = paging.page(await context.bus.bucket(BUCKET).entries(), lambda entry: entry.key)
    return page(found, [await _shown(context, entry) for entry in found.items])


@router.get("/api/limits/{name:path}")
async def show_limit(request: Request, name: str) -> Response:
    """Show one limit: who holds its slots and who waits, in order."""
    context = context_of(request)
    return answer(await _shown(context, await _entry(context, name), whole=True))


@router.post("/api/limits/{name:path}/reset")
async def reset_limit(request: Request, name: str) -> Response:
    """Take every slot of a limit from whoever has it; who waits asks again."""
    context = context_of(request)
    await _entry(context, name)
    return answer({"name": name, "removed": await reset(context.bus, name)})


@router.post("/api/limits/{name:path}", status_code=201, responses=REFUSED)
async def create_limit(request: Request, name: str, body: Asked) -> Response:
    """Make a limit: `{"slots": 4}` or `{"rate": "100/m"}`, with `slot_decay_per_second`, `active`; 409 if there is one."""
    context = context_of(request)
    if await context.bus.bucket(BUCKET).get(_key(name)) is not None:
        raise RefusedError(f"limit {name!r} exists", hint="PUT changes it, as `hark limits set` does")
    return await _put(request, name, body, 201)


@router.put("/api/limits/{name:path}")
async def set_limit(request: Request, name: str, body: Asked) -> Response:
    """Make a limit, or change it; whoever waits for it hears of it at once."""
    return await _put(request, name, body, 200)


async def _put(request: Request, name: str, body: LimitBody, status: int) -> Response:
    context = context_of(request)
    _key(name)
    try:
        limit = Limit.model_validate(body.model_dump())
    except ValidationError as exc:
        why = "; ".join(str(problem) for problem in problems_of(exc))
        raise DefinitionError(
            f"limit {name!r} is wrong: {why}", hint='such as {"slots": 4} or {"rate": "100/m"}'
        ) from exc
    await put_limit(context.bus, name, limit)
    return answer(await _shown(context, await _entry(context, name)), status)


@router.delete("/api/limits/{name:path}", status_code=204)
async def remove_limit(request: Request, name: str) -> Response:
    """Remove a limit; nobody waits for it any more."""
    context = context_of(request)
    await _entry(context, name)
    await delete_limit(context.bus, name)
    return Response(status_code=204)
