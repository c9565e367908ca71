"""``/api/silences``: for a while, alerts that match are told to nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import ValidationError

from ...automations.matching.condition import parse_where
from ...automations.problem import RuleInvalid
from ...bus.event import parse_time
from ...duration import parse_duration
from ...errors import DefinitionError, EventInvalid, GuardFailed, SecretUnreadable, UnknownName
from ...notifications.alert import COMMON_FACTS
from ...notifications.checkpoint import read_state
from ...notifications.group import Group
from ...notifications.router import ROUTES_BUCKET
from ...notifications.silence import KEEP_S, Silence, matchers, silence_of
from ...vocabulary import JsonValue, new_id
from ..answer import answer, listing
from ..bodies import SilenceBody
from ..context import ServerContext, context_of
from ..fault import did_you_mean
from ..paging import Paging
from ..taken import Taken

router = APIRouter(tags=["notifications"])

_LABEL = re.compile(r"[\w-]+")
_LONGEST_S = 366 * 86_400.0


@router.get("/api/silences")
async def list_silences(
    request: Request, paging: Paging, expired: Annotated[bool, Query()] = False
) -> Response:
    """List silences, those that end first at the top; those that are over for five days more, if asked for."""
    context = context_of(request)
    now = context.clock.now()
    found: list[Silence] = []
    for entry in await context.bus.bucket("silences").entries():
        try:
            found.append(silence_of(entry.value))
        except ValueError:
            continue  # the router says what does not load
    found.sort(key=lambda s: s.ends_at)
    return listing([s.shown(now) for s in found if expired or s.state(now) != "expired"], paging)


@router.get("/api/silences/{silence_id}")
async def show_silence(request: Request, silence_id: str) -> Response:
    """Show one silence."""
    context = context_of(request)
    silence, _ = await _one(context, silence_id)
    return answer(silence.shown(context.clock.now()))


@router.post("/api/silences", status_code=201)
async def add_silence(
    request: Request, body: Annotated[SilenceBody, Depends(Taken(SilenceBody))]
) -> Response:
    """Make a silence: `match` (a condition) or `matchers` (`["automation=etl"]`), and `for` or `ends_at`."""
    context = context_of(request)
    now = context.clock.now()
    silence = _made(body, now)
    notes = await _notes(context, silence) if body.matchers else []
    ttl_s = (silence.ends_at - now).total_seconds() + KEEP_S
    await context.bus.bucket("silences").create(silence.id, silence.to_bytes(), ttl_s=ttl_s)
    return answer({**silence.shown(now), "notes": notes}, 201)


@router.post("/api/silences/{silence_id}/expire")
async def expire_silence(request: Request, silence_id: str) -> Response:
    """End a silence now; what it held back and is still open is told."""
    context = context_of(request)
    while True:
        now = context.clock.now()
        silence, revision = await _one(context, silence_id)
        if silence.state(now) == "expired":
            return answer(silence.shown(now))
        ended = silence.model_copy(update={"ends_at": now, "starts_at": min(silence.starts_at, now)})
        try:
            await context.bus.bucket("silences").update(
                silence.id, ended.to_bytes(), revision=revision, ttl_s=KEEP_S
            )
        except GuardFailed:
            continue  # somebody else changed it at this moment
        return answer(ended.shown(now))


async def _notes(context: ServerContext, silence: Silence) -> list[JsonValue]:
    """Return what is said of labels that nothing has; labels are free, so it is no mistake for certain.

    Only of a silence made of matchers, each of which names one label or path; paths have been checked as such.
    """
    asked = [path for path in silence.match if _LABEL.fullmatch(path) and path not in COMMON_FACTS]
    if not asked:
        return []
    known: set[str] = set()
    with suppress(SecretUnreadable):  # of a router with another key: a silence is made all the same
        state = await read_state(context.bus, context.secrets)
        groups: Any = state.fold["groups"] if state is not None else []
        for group in groups:
            for member in Group.from_json(group).members.values():
                known |= member.alert.facts.keys()
    for bucket in ("automations", ROUTES_BUCKET):
        for entry in await context.bus.bucket(bucket).entries():
            with suppress(ValueError):
                known |= _labels_in(orjson.loads(entry.value))
    notes: list[JsonValue] = []
    for label in asked:
        if label not in known:
            near = did_you_mean(label, known | COMMON_FACTS)
            notes.append(f"no open alert, rule or route has a label {label!r}{'; ' if near else ''}{near}")
    return notes


def _labels_in(value: Any) -> set[str]:
    """Return the labels that a definition writes or asks for, wherever in it."""
    if isinstance(value, list):
        return {label for one in value for label in _labels_in(one)}
    if not isinstance(value, dict):
        return set()
    found = {label for word in ("labels", "match", "source", "target") for label in _keys(value.get(word))}
    return found.union(*map(_labels_in, value.values()))


def _keys(value: Any) -> Iterable[str]:
    return value.keys() if isinstance(value, dict) else ()


async def _one(context: ServerContext, silence_id: str) -> tuple[Silence, int]:
    bucket = context.bus.bucket("silences")
    keys = await bucket.keys()
    # The beginning of an id is enough, as people copy them from a listing.
    matching = [k for k in keys if k.startswith(silence_id)] if len(silence_id) >= 4 else []
    entry = await bucket.get(matching[0]) if len(matching) == 1 else None
    if entry is None:
        if len(matching) > 1:
            raise DefinitionError(
                f"{len(matching)} silences begin with {silence_id!r}", hint="write more of the id"
            )
        raise UnknownName("silence", silence_id, known=keys)
    return silence_of(entry.value), entry.revision


def _made(body: SilenceBody, now: datetime) -> Silence:
    match, words = body.match, body.matchers
    if (match is None) == (words is None):
        raise DefinitionError(
            "say what to silence", hint='either "match": {…} or "matchers": ["automation=etl"]'
        )
    if words is not None:
        match = matchers(words)
    if not match:
        raise DefinitionError(
            "an empty condition silences nothing", hint='such as "match": {"automation": "etl"}'
        )
    _, problems = parse_where(match)
    if problems:
        raise RuleInvalid(problems)
    starts_at = _moment(body.starts_at, "starts_at") or now
    ends_at = _moment(body.ends_at, "ends_at")
    lasting = body.for_
    if (lasting is None) == (ends_at is None):
        raise DefinitionError("say how long", hint='either "for": "2h" or "ends_at": a time')
    if lasting is not None:
        try:
            ends_at = starts_at + timedelta(seconds=parse_duration(lasting))
        except ValueError as exc:
            raise DefinitionError(str(exc)) from exc
    assert ends_at is not None
    if ends_at <= now:
        raise DefinitionError("this silence would be over already", hint="let it end later")
    if (ends_at - now).total_seconds() > _LONGEST_S:
        raise DefinitionError("a silence lasts a year at most", hint="change the route instead")
    try:
        return Silence(
            id=new_id(), match=match, starts_at=starts_at, ends_at=ends_at, created_by=_text(body.created_by),
            comment=_text(body.comment),
        )  # fmt: skip
    except ValidationError as exc:
        raise DefinitionError(exc.errors()[0]["msg"].removeprefix("Value error, ")) from exc


def _text(value: object) -> str:
    return str(value)[:1000] if value is not None else ""


def _moment(value: str | None, name: str) -> datetime | None:
    if value is None:
        return None
    try:
        return parse_time(value, field=name)
    except EventInvalid as exc:
        raise DefinitionError(str(exc)) from exc
