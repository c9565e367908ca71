"""Making what is live what a configuration says, and remembering what came from one.

The ledger (bucket ``checkpoints``, key ``config``) lists what came from a configuration, so that pruning removes
nothing that somebody made otherwise. It is widened before anything is written and narrowed after everything was
removed: a crash in between leaves too much in it, never too little.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson

from ..errors import GuardFailed, RefusedError
from ..vocabulary import JsonObject, JsonValue
from .manifest import BUCKETS, Manifest, model_of, stored_form
from .plan import Change, Plan, make_plan

if TYPE_CHECKING:
    from ..bus import Bus
    from .reference import Names

__all__ = ["apply_manifest", "names_besides_config", "plan_manifest"]

log = logging.getLogger("hark.config")

LEDGER_BUCKET, LEDGER_KEY = "checkpoints", "config"


async def _live(bus: Bus) -> dict[tuple[str, str], JsonValue]:
    found: dict[tuple[str, str], JsonValue] = {}
    for bucket in BUCKETS:
        for entry in await bus.bucket(bucket).entries():
            found[bucket, entry.key] = _normal(bucket, entry.value)
    return found


def _normal(bucket: str, raw: bytes) -> JsonValue:
    """Return a stored value as this version would store it, so that only what people wrote can differ."""
    try:
        value: JsonValue = orjson.loads(raw)
        model = model_of(bucket)
        return value if model is None else stored_form(model.model_validate(value))
    except orjson.JSONDecodeError:
        return None  # unreadable: whatever is desired differs from it
    except ValueError:
        return value


async def _ledger(bus: Bus) -> tuple[dict[tuple[str, str], frozenset[str]], int]:
    entry = await bus.bucket(LEDGER_BUCKET).get(LEDGER_KEY)
    if entry is None:
        return {}, 0
    value = orjson.loads(entry.value)
    return {
        (b, k): frozenset(words) for b, keys in value.items() for k, words in keys.items()
    }, entry.revision


async def _write_ledger(bus: Bus, owned: Mapping[tuple[str, str], frozenset[str]], revision: int) -> int:
    value: JsonObject = {}
    for (bucket, key), words in sorted(owned.items()):
        section = value.setdefault(bucket, {})
        assert isinstance(section, dict)
        section[key] = [*sorted(words)]
    bucket_ = bus.bucket(LEDGER_BUCKET)
    try:
        return await bucket_.update(LEDGER_KEY, orjson.dumps(value), revision=revision)
    except GuardFailed as exc:
        raise RefusedError("another apply is going on", hint="plan and apply again") from exc


async def names_besides_config(bus: Bus) -> Names:
    """Return the names that are live and did not come from a configuration, by bucket."""
    owned, _ = await _ledger(bus)
    names: dict[str, set[str]] = {}
    for bucket in BUCKETS:
        names[bucket] = {k for k in await bus.bucket(bucket).keys() if (bucket, k) not in owned}
    return names


async def plan_manifest(bus: Bus, manifest: Manifest, *, prune: bool = False) -> Plan:
    """Return what applying would do; nothing is changed."""
    owned, _ = await _ledger(bus)
    plan = make_plan(
        {w: r.value for w, r in manifest.records.items()},
        await _live(bus),
        owned=owned,
        written={w: r.written for w, r in manifest.records.items()},
        prune=prune,
    )
    return replace(
        plan, warnings=(*await _missing_secrets(bus, manifest), *await _missing_targets(bus, plan))
    )


async def _missing_targets(bus: Bus, plan: Plan) -> tuple[str, ...]:
    """Return what rules, those made elsewhere too, will need and not find when the plan is carried out."""
    from ..automations.analysis.target import missing_targets
    from ..automations.model import Automation

    values = await _live(bus)
    for step in plan.changes:
        if step.change is Change.DELETE:
            values.pop((step.bucket, step.key), None)
        else:
            values[step.bucket, step.key] = step.value
    names: dict[str, set[str]] = {bucket: set() for bucket in BUCKETS}
    for bucket, key in values:
        names[bucket].add(key)
    told: list[str] = []
    for (bucket, key), value in sorted(values.items()):
        if bucket == "automations":
            try:
                rule = Automation.model_validate(value)
            except ValueError:
                continue  # it is listed with its error
            told += [f"rule {key!r}: {problem}" for problem in missing_targets(rule, names)]
    return tuple(told)


async def _missing_secrets(bus: Bus, manifest: Manifest) -> tuple[str, ...]:
    have = set(await bus.bucket("secrets").keys())
    return tuple(
        f"the secret {name!r} is not set; what reads it fails until `hark secrets set {name}`"
        for name in sorted(manifest.secrets())
        if name not in have
    )


async def apply_manifest(bus: Bus, manifest: Manifest, *, prune: bool = False) -> Plan:
    """Make it so and return what was done.

    Raises:
        RefusedError: somebody else applied at the same moment.
    """
    plan = await plan_manifest(bus, manifest, prune=prune)
    owned, revision = await _ledger(bus)
    wider = {**owned, **{w: r.written for w, r in manifest.records.items()}}
    if wider != owned:
        revision = await _write_ledger(bus, wider, revision)
    for step in plan.changes:
        bucket = bus.bucket(step.bucket)
        if step.change is Change.DELETE:
            await bucket.delete(step.key)
        else:
            await bucket.put(step.key, orjson.dumps(step.value))
    # What was pruned, or removed by hand since, is no longer ours.
    live = await _live(bus)
    narrower = {w: words for w, words in wider.items() if w in live}
    if narrower != wider:
        await _write_ledger(bus, narrower, revision)
    log.info("config.applied", extra={"summary": plan.summary()})
    return plan
