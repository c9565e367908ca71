"""``/api/automations/backtest`` and ``/explain``: what rules would have done, and why they did what they did."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from ...automations.model import Automation, parse_automation
from ...bus import Recorded
from ...bus.event import format_time
from ...errors import DefinitionError, UnknownName
from ...storage import EventRow
from ...vocabulary import JsonObject
from ..answer import answer, moment
from ..bodies import BacktestBody, ExplainBody
from ..body import read_object
from ..context import ServerContext, context_of
from ..definition import all_defined, one_defined
from ..openapi import REFUSED, RULE, UNKNOWN
from ..taken import Taken

router = APIRouter(tags=["automations"])

_MAX_BYTES = 4 << 20
_LONGEST_S = 300.0


async def _rules(context: ServerContext, body: BacktestBody | ExplainBody) -> list[Automation]:
    """Return the rules a request names, or brings along under ``rules`` (by name, as they are written)."""
    if body.rules is not None:
        return [parse_automation(rule, name=name) for name, rule in body.rules.items()]
    name = body.automation
    if name is None:
        return []
    found = await one_defined(context.bus, "automations", name)
    if found.error:
        raise DefinitionError(f"the automation {name!r} does not load: {found.error}")
    rule: Automation = found.model
    return [rule]


def _fold_config(context: ServerContext) -> Any:
    from ...automations.folding.fold import FoldConfig

    config = context.settings.automations
    return FoldConfig(
        allowed_lateness_s=config.allowed_lateness_s, max_causal_depth=config.max_causal_depth,
        budget=config.budget_per_minute,
    )  # fmt: skip


@router.get("/api/automations/{name}/definition")
async def definition(request: Request, name: str) -> Response:
    """Return a rule as it is stored, to be written into a file or tried elsewhere."""
    found = await one_defined(context_of(request).bus, "automations", name)
    return answer({"name": name, "definition": found.fields})


@router.put("/api/automations/{name}", openapi_extra=RULE)
async def save(request: Request, name: str) -> Response:
    """Make a rule live, or change it: the body is the rule as it is written. Windows stay where matching does."""
    context = context_of(request)
    rule = parse_automation(await read_object(request, limit_bytes=_MAX_BYTES), name=name)
    revision = await context.bus.bucket("automations").put(name, rule.dumps())
    return answer({"name": name, "version": rule.version, "revision": revision, "definition": rule.to_json()})


@router.delete("/api/automations/{name}", responses=REFUSED)
async def remove(request: Request, name: str) -> Response:
    """Take a rule and its windows away. One that stands in a configuration comes back with the next apply."""
    context = context_of(request)
    found = await one_defined(context.bus, "automations", name)
    await context.bus.bucket("automations").delete(name, revision=found.revision)
    return answer({"name": name, "deleted": True})


@router.post("/api/automations/backtest", responses=UNKNOWN)
async def backtest(
    request: Request, body: Annotated[BacktestBody, Depends(Taken(BacktestBody, limit_bytes=_MAX_BYTES))]
) -> Response:
    """Return what rules would have done: `{"automation": name}` or `{"rules": {name: {…}}}`, with `since`, `until`, `limit`.

    Nothing is stored and nobody is told. `since` is a time or how long ago (7d by default).
    """
    from ...automations.analysis.backtest import KEEP, backtest_log

    context = context_of(request)
    rules = await _rules(context, body)
    if not rules:
        raise DefinitionError("say which rule: `automation` is its name, or `rules` holds rules by name")
    now = datetime.now(UTC)
    since = moment(body.since, name="since") or now - timedelta(days=7)
    made = await backtest_log(
        context.bus, rules, since=since, until=moment(body.until, name="until"), now=now,
        config=_fold_config(context), longest_s=_LONGEST_S, keep=KEEP if body.limit is None else body.limit,
    )  # fmt: skip
    return answer(made.to_json())


@router.post("/api/automations/explain", responses=UNKNOWN)
async def explain(
    request: Request, body: Annotated[ExplainBody, Depends(Taken(ExplainBody, limit_bytes=_MAX_BYTES))]
) -> Response:
    """Return why rules acted on an event or did not: `{"event": id or sequence, "automation": name}`; all rules without one.

    Each condition with the value seen, how the window of the key stood before and after, and what held a firing back. Of a
    `decision` of a rule (`automation.suppressed`, say) `led_by` is the answer for the last event it rests on.
    """
    context = context_of(request)
    wanted = body.event
    if isinstance(wanted, int) or wanted.isdecimal():
        seq = int(wanted)
    else:
        seq = (await context.queries.event(wanted)).seq
    record = await context.bus.log.get(seq)
    if record is None:
        raise UnknownName("event", str(wanted))
    rules = await _rules(context, body)
    if not rules:
        rules = [d.model for d in await all_defined(context.bus, "automations") if d.model is not None]
    return answer(await _explained(context, rules, record))


async def _explained(context: ServerContext, rules: list[Automation], record: Recorded) -> JsonObject:
    from ...automations.analysis.hindsight import decision_of, explain_moment

    decision = decision_of(record)
    # No rule reacts to its own decisions: of the one that made it, what led it there is of interest.
    others = [r for r in rules if decision is None or r.name != decision["automation"]]
    judged = await explain_moment(context.bus, others, record, config=_fold_config(context))
    event = record.event
    told = await _told(
        context, [str(a["id"]) for j in judged for a in j.actual if a["what"] == "triggered"][:20]
    )
    out: JsonObject = {
        "event": {"id": event.id, "seq": record.seq, "type": event.type, "subject": event.subject,
                  "recorded_at": format_time(record.recorded_at)},
        "rules": [j.to_json() for j in judged], "rules_looked_at": len(others), "effects": told,
    }  # fmt: skip
    if decision is not None:
        out["decision"] = decision
        refs: Any = decision["events"]
        own = [r for r in rules if r.name == decision["automation"]]
        last = await context.bus.log.get(int(refs[-1]["seq"])) if own and refs else None
        if last is not None:
            out["led_by"] = await _explained(context, own, last)
    return out


async def _told(context: ServerContext, firings: list[str]) -> JsonObject:
    """Return what became of firings, by id: their actions, their messages, and what held alerts back."""
    out: JsonObject = {}
    for firing in firings:
        try:
            found = await context.queries.firing(firing)
        except UnknownName:
            continue  # not in the read model yet, or no more
        messages = await _messages(context, firing)
        out[firing] = {
            "actions": [{"kind": a.kind, "state": a.state, "error": a.error} for a in found.actions],
            "messages": [e.type for e in messages],
            "held_back": [held for e in messages if (held := _held_back(e))],
        }  # fmt: skip
    return out


async def _messages(context: ServerContext, firing: str) -> list[EventRow]:
    """Return the `notification.` events a firing led to, oldest first: an alert's fate follows from its being raised."""
    direct = [e for e in await context.queries.led_to(firing) if e.type.startswith("notification.")]
    later = [e for raised in direct for e in await context.queries.led_to(raised.id, limit=50)]
    return sorted({e.seq: e for e in (*direct, *later)}.values(), key=lambda e: e.seq)


def _held_back(event: EventRow) -> JsonObject | None:
    """Return what silenced, inhibited or muted an alert, if that is what an event tells."""
    word, data = event.type.removeprefix("notification."), event.data
    if not isinstance(data, dict):
        return None
    by = data.get({"silenced": "silence", "inhibited": "by", "muted": "mute"}.get(word, ""))
    return {"what": word, "by": by, "dropped": data.get("dropped") is True} if by is not None else None
