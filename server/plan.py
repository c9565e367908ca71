"""The difference between a configuration and what is live: pure, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from ..vocabulary import JsonObject, JsonValue

__all__ = ["Change", "FieldChange", "Plan", "Step", "differences", "make_plan"]


class Change(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"
    ORPHANED = "orphaned"
    """Came from a configuration, is gone from it, and stays because nobody asked to prune."""


_ORDER = (
    "pools", "limits", "variables", "channels", "notifications", "deployments", "schedules", "webhooks", "sources", "automations",
    "sinks",
)  # fmt: skip
"""What is referred to stands before what refers to it."""
_HIDDEN = {("channels", "urls"), ("webhooks", "verify"), ("sinks", "secret"), ("sinks", "headers")}
"""Fields that may hold a token, written out by somebody: shown as changed, never with their value."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field. ``before`` and ``after`` are None where it was or is not there."""

    path: str
    before: JsonValue
    after: JsonValue

    def to_json(self) -> JsonObject:
        return {"path": self.path, "before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, or the statement that there is nothing to do.

    Attributes:
        value: what the bucket will hold; None for a deletion.
        note: what a person should know, such as "window state is reset".
        impact: what a rule would have done lately, before and after (``impact.py``).
    """

    bucket: str
    key: str
    change: Change
    value: JsonValue = None
    fields: tuple[FieldChange, ...] = ()
    note: str = ""
    impact: JsonObject | None = None

    def to_json(self) -> JsonObject:
        return {
            "bucket": self.bucket, "key": self.key, "change": self.change.value,
            "fields": [f.to_json() for f in self.fields], "note": self.note or None,
            **({"impact": self.impact} if self.impact is not None else {}),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, in the order in which they are done."""

    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[Step, ...]:
        return tuple(s for s in self.steps if s.change in (Change.CREATE, Change.UPDATE, Change.DELETE))

    def count(self, change: Change) -> int:
        return sum(s.change is change for s in self.steps)

    def summary(self) -> str:
        """Return one line: ``2 to create, 1 to update, 0 to delete, 5 unchanged``."""
        parts = [f"{self.count(c)} to {c.value}" for c in (Change.CREATE, Change.UPDATE, Change.DELETE)]
        text = ", ".join([*parts, f"{self.count(Change.UNCHANGED)} unchanged"])
        left = self.count(Change.ORPHANED)
        return f"{text}, {left} gone from the configuration and kept (--prune removes)" if left else text

    def to_json(self) -> JsonObject:
        return {
            "steps": [s.to_json() for s in self.steps], "summary": self.summary(), "warnings": [*self.warnings],
            "changes": len(self.changes),
        }  # fmt: skip


def differences(before: JsonValue, after: JsonValue, *, path: str = "") -> Iterator[FieldChange]:
    """Yield each field that differs, mappings gone into, lists compared item by item where they are as long."""
    if before == after and type(before) is type(after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            below = f"{path}.{key}" if path else key
            yield from differences(before.get(key), after.get(key), path=below)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, path=f"{path}[{i}]")
    else:
        yield FieldChange(path, before, after)


def make_plan(
    desired: Mapping[tuple[str, str], JsonValue],
    live: Mapping[tuple[str, str], JsonValue],
    *,
    owned: Mapping[tuple[str, str], frozenset[str]],
    written: Mapping[tuple[str, str], frozenset[str]],
    prune: bool = False,
) -> Plan:
    """Return what makes ``live`` what is ``desired``.

    Args:
        owned: what came from a configuration before, with the keys that were written then: only this is pruned.
        written: the keys written now. ``paused`` belongs to people: written, it is made so; written before and not
            now, it is taken back; never written, it stays as it is.
    """
    steps: list[Step] = []
    for where in sorted(desired, key=_rank):
        bucket, key = where
        value = _kept(desired[where], live.get(where), owned.get(where), written.get(where, frozenset()))
        if where not in live:
            steps.append(Step(bucket, key, Change.CREATE, value))
            continue
        changed = tuple(_hide(bucket, f) for f in differences(live[where], value))
        change = Change.UPDATE if changed else Change.UNCHANGED
        steps.append(
            Step(bucket, key, change, value, changed, _note(bucket, live[where], value) if changed else "")
        )
    twins: dict[bytes, Step] | None = None
    gone = [w for w in owned if w not in desired and w in live]
    for bucket, key in sorted(gone, key=_rank, reverse=True):
        # A schedule or trigger is a line of its deployment: taken out there, it is gone, as any other line.
        of = key.partition("/")[0] if bucket == "schedules" else owner_of(live[bucket, key])
        within = of is not None and ("deployments", of) in desired
        change = Change.DELETE if prune or within else Change.ORPHANED
        note = ""
        if bucket == "automations" and isinstance(live[bucket, key], dict):
            twins = _twins(steps) if twins is None else twins
            note = _parted(twins.get(_matching(live[bucket, key])), change)
        steps.append(Step(bucket, key, change, note=note))
    return Plan(tuple(steps))


def _twins(steps: list[Step]) -> dict[bytes, Step]:
    """Return a rule of the configuration for each way of matching, one that is new before others."""
    rules = [s for s in steps if s.bucket == "automations" and isinstance(s.value, dict)]
    return {_matching(s.value): s for s in sorted(rules, key=lambda s: s.change is Change.CREATE)}


def _matching(value: JsonValue) -> bytes:
    from ..automations.model import MATCHING

    assert isinstance(value, dict)
    return orjson.dumps({k: value[k] for k in MATCHING if k in value}, option=orjson.OPT_SORT_KEYS)


def _parted(twin: Step | None, change: Change) -> str:
    """Return what to know of a rule that is gone from the configuration, where ``twin`` matches the same."""
    if twin is None:
        return ""
    if change is Change.ORPHANED:
        return f"it still fires, and so does {twin.key!r}, which matches the same"
    if twin.change is Change.CREATE:
        return f"{twin.key!r} matches the same and begins without its windows: a rule is known by its name"
    return ""


def owner_of(rule: JsonValue) -> str | None:
    """Return the deployment a stored rule is a trigger of; None if it is nobody's."""
    owner = rule.get("owner") if isinstance(rule, dict) else None
    return owner.removeprefix("deployment/") if isinstance(owner, str) else None


def _rank(where: tuple[str, str]) -> tuple[int, str]:
    return (_ORDER.index(where[0]) if where[0] in _ORDER else len(_ORDER), where[1])


def _kept(
    desired: JsonValue, live: JsonValue, before: frozenset[str] | None, written: frozenset[str]
) -> JsonValue:
    if not isinstance(desired, dict) or not isinstance(live, dict) or "paused" in written:
        return desired
    if before is not None and "paused" in before:
        return desired
    return {**desired, "paused": live["paused"]} if live.get("paused") else desired


def _hide(bucket: str, change: FieldChange) -> FieldChange:
    first = change.path.partition(".")[0].partition("[")[0]
    if (bucket, first) in _HIDDEN:
        return FieldChange(change.path, _unless_template(change.before), _unless_template(change.after))
    return change


def _unless_template(value: JsonValue) -> JsonValue:
    # A template tells the name of a secret and not what it is.
    whole = isinstance(value, str) and value.startswith("{{") and value.endswith("}}")
    return value if value is None or whole else "(hidden)"


def _note(bucket: str, before: JsonValue, after: JsonValue) -> str:
    if bucket != "automations":
        return ""
    from ..automations.model import Automation

    try:
        old: Any = Automation.model_validate(before)
    except ValueError:
        return "the live one does not load; it is replaced"
    if old.matching_version != Automation.model_validate(after).matching_version:
        return "matching changes: its window state is reset"
    return "window state is kept"
