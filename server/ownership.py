"""What belongs to a deployment made in code: its schedules and triggers, which come and go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import orjson

from ..errors import DefinitionError
from .plan import owner_of

if TYPE_CHECKING:
    from ..automations.model import Automation
    from ..bus import Bus, Entry
    from ..triggers.schedule import StoredSchedule

__all__ = ["check_triggers", "delete_deployment", "rules_of", "store_schedules", "store_triggers"]

SCHEDULES, AUTOMATIONS = "schedules", "automations"


async def rules_of(bus: Bus, deployment: str) -> dict[str, Entry]:
    """Return the stored rules that are triggers of a deployment, by name."""
    return {
        entry.key: entry for entry in await bus.bucket(AUTOMATIONS).entries() if _owner(entry) == deployment
    }


def _owner(entry: Entry) -> str | None:
    # Most rules are nobody's: only those that speak of an owner are parsed.
    if b'"owner"' not in entry.value:
        return None
    try:
        return owner_of(orjson.loads(entry.value))
    except orjson.JSONDecodeError:
        return None


async def store_schedules(bus: Bus, deployment: str, schedules: Sequence[StoredSchedule]) -> None:
    """Make these the schedules of a deployment; an unchanged one keeps its place in time."""
    bucket = bus.bucket(SCHEDULES)
    wanted = {
        one.key: one.model_dump_json(exclude_defaults=True, by_alias=True).encode() for one in schedules
    }
    there = {key: entry for key in wanted if (entry := await bucket.get(key)) is not None}
    await _store(bus, SCHEDULES, wanted, there)
    for key in await bucket.keys(f"{deployment}/"):
        if key not in wanted:
            await bucket.delete(key)


async def check_triggers(bus: Bus, deployment: str, rules: Sequence[Automation]) -> None:
    """Raise ``DefinitionError`` if a rule of these names is there already and not this deployment's."""
    for rule in rules:
        entry = await bus.bucket(AUTOMATIONS).get(rule.name)
        if entry is not None and _owner(entry) != deployment:
            raise DefinitionError(
                f"deployment {deployment!r}: there is a rule named {rule.name!r} that is not its own",
                hint="give the trigger another `name`",
            )


async def store_triggers(bus: Bus, deployment: str, rules: Sequence[Automation]) -> None:
    """Make these the triggers of a deployment; an unchanged one is not written, one that was paused stays paused."""
    there = await rules_of(bus, deployment)
    wanted: dict[str, bytes] = {}
    for rule in rules:
        old = there.get(rule.name)
        before = orjson.loads(old.value) if old is not None else {}
        new = {**rule.to_json(), **({"paused": True} if before.get("paused") is True else {})}
        # Whoever pauses or applies writes the keys in an order of their own.
        wanted[rule.name] = old.value if old is not None and new == before else orjson.dumps(new)
    await _store(bus, AUTOMATIONS, wanted, there)
    for key in there.keys() - wanted.keys():
        await bus.bucket(AUTOMATIONS).delete(key)


async def _store(bus: Bus, bucket: str, wanted: Mapping[str, bytes], there: Mapping[str, Entry]) -> None:
    for key, raw in wanted.items():
        if key not in there or there[key].value != raw:
            await bus.bucket(bucket).put(key, raw)


async def delete_deployment(bus: Bus, name: str, *, revision: int) -> list[str]:
    """Take a deployment away with its schedules and triggers; return the triggers that went with it.

    What would start runs of it goes first, so that a crash in between leaves a deployment that nothing starts.

    Raises:
        GuardFailed: the deployment has changed since ``revision``.
    """
    triggers = sorted(await rules_of(bus, name))
    for key in triggers:
        await bus.bucket(AUTOMATIONS).delete(key)
    for key in await bus.bucket(SCHEDULES).keys(f"{name}/"):
        await bus.bucket(SCHEDULES).delete(key)
    await bus.bucket("deployments").delete(name, revision=revision)
    return triggers
