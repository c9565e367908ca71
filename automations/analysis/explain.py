"""Why a rule did, or did not, take notice of an event: each condition with the value it saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...duration import format_duration
from ...vocabulary import JsonObject
from ..folding.key import key_values, keys_of, show_key
from ..matching.condition import Node
from ..matching.expression import compile_expression
from ..matching.matcher import pattern_covers
from ..matching.where import Predicate, explain
from ..model import Automation

__all__ = ["Look", "explain_event", "predicates_of"]


@dataclass(frozen=True, slots=True)
class Look:
    """How one event fared with one of the patterns of a rule.

    Attributes:
        role: ``on``, ``after``, ``expect``, the name of a step, the place of a branch.
        predicates: every condition, the type first; all have to be ok.
        keys: the keys it belongs to, in words; empty if ``for_each`` leads nowhere.
        note: why it takes no part although it matches, if so.
    """

    role: str
    predicates: tuple[Predicate, ...]
    keys: tuple[str, ...]
    note: str = ""

    @property
    def matched(self) -> bool:
        return all(p.ok for p in self.predicates)

    @property
    def takes_part(self) -> bool:
        """Whether the rule counted it."""
        return self.matched and bool(self.keys)

    @property
    def why(self) -> str:
        """The first reason against, on one line; empty when it takes part."""
        for predicate in self.predicates:
            if not predicate.ok:
                return str(predicate).removeprefix("no  ")
        return self.note

    def to_json(self) -> JsonObject:
        return {
            "role": self.role, "matched": self.matched, "predicates": [p.to_json() for p in self.predicates],
            "keys": list(self.keys), "note": self.note,
        }  # fmt: skip


def explain_event(automation: Automation, row: dict[str, Any]) -> list[Look]:
    """Return how an event (a parsed CloudEvent) fares with each pattern of a rule. Pure; windows are not looked at."""
    looks = []
    for listening in sorted(automation.listens, key=lambda one: [str(part).zfill(3) for part in one.loc]):
        role = listening.name
        predicates = predicates_of(listening.types, row, *listening.nodes, *listening.ifs)
        keys = tuple(show_key(key_values(automation, k)) for k in keys_of(automation, row))
        note = (
            ""
            if keys
            else f"for_each: {', '.join(automation.for_each or ())} leads to no value in this event"
        )
        looks.append(Look(role, tuple(predicates), keys, note))
    return looks


def predicates_of(
    types: tuple[str, ...], row: dict[str, Any], *conditions: Node | str | None
) -> list[Predicate]:
    """Return each condition of a pattern with the value seen; a text is an ``if``, anything else a ``where``."""
    type_ = str(row.get("type", ""))
    fits = any(pattern_covers(t, type_) for t in types)
    out = [Predicate("type", f"is {' or '.join(types)}", type_, True, fits)]
    for condition in conditions:
        if condition is None:
            continue
        if isinstance(condition, str):
            outcome = compile_expression(condition).decide(row)
            out.append(Predicate("", f"if {condition}", None, False, outcome.ok, outcome.note))
        else:
            out.extend(explain(condition, row))
    return out


def describe_offset(seconds: float) -> str:
    """Return an offset in time as people write it: ``1m30s``."""
    return format_duration(max(0.0, round(seconds, 3)))
