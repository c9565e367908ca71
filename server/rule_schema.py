"""The keys of a rule as JSON Schema: what each means, and which go together.

Which form a rule has, the keys it has to have and those that say nothing there are ``oneOf`` its forms. What stands below
a key (conditions, actions, steps) is told by docs/rules.md and by the error of a rule that is not right.
"""

from __future__ import annotations

from typing import Any

from ..automations.model import Automation
from ..vocabulary import JsonObject

__all__ = ["rule_schema"]

_TIME: JsonObject = {"type": ["string", "number"], "examples": ["10m"]}
_LIST: JsonObject = {"type": ["array", "object"]}
_MEANS: dict[str, JsonObject] = {
    "description": {"type": "string", "description": "for people"},
    "paused": {"type": "boolean", "description": "it does not fire; its windows go on"},
    "mode": {"enum": ["live", "shadow"], "description": "`shadow`: it decides and says so, and does nothing"},
    "on": {"type": ["string", "array"], "description": "types of events, such as `order.paid` or `flow-run.*`"},
    "pattern": {"type": "object", "description": "a pattern of EventBridge, in place of `where` (and `on`)"},
    "where": {"type": ["object", "array"], "description": "conditions: a path of the event to what it has to be"},
    "if": {"type": "string", "description": "a CEL expression, for what `where` cannot say"},
    "for_each": {"type": ["string", "array"], "description": "a path, or up to 8: a window of its own for each value"},
    "count": {"type": "integer", "minimum": 1, "description": "so many events of `on`; more than one need `within`"},
    "within": _TIME | {"description": "the time in which they have to come; how long to wait for `expect`"},
    "after": {"description": "what opens a wait for `expect`; without it a heartbeat is watched"},
    "expect": {"description": "what has to come `within` a time"},
    "sequence": {"type": "array", "description": "steps, one after the other, `within` a time"},
    "any_of": _LIST | {"description": "patterns of which some have to come: a list, or `{need, of}`"},
    "all_of": {"type": "array", "description": "patterns all of which have to come, in any order"},
    "debounce": {"type": "object", "description": "fire once it has been quiet: `{quiet, max_wait, max_events}`"},
    "metric": {"type": "object", "description": "a figure over a window: `{measure, over, …}`"},
    "is": {"type": "string", "description": "what the figure is compared with", "examples": ["> 10m", "< 95%"]},
    "for": _TIME | {"description": "how long it has to be so without a break"},
    "resolve": {"type": ["object", "string"], "description": "when it is over: `{on, where, if}`, or `{after: 10m}`"},
    "cooldown": _TIME | {"description": "after firing, hold further firings of the key back for so long"},
    "allowed_lateness": _TIME | {"description": "how late an event may be for its window"},
    "budget": {"type": "string", "description": "firings of the whole rule per time", "examples": ["100/m"]},
    "do": _LIST | {"description": "actions, one or a list of up to 50"},
    "on_resolve": _LIST | {"description": "actions when it is over; without `metric` it needs `resolve`"},
    "tests": {"type": "array", "description": "tests in virtual time"},
}  # fmt: skip

_FORMS = ("expect", "sequence", "any_of", "all_of", "metric")
_OF_EVENTS: JsonObject = {"anyOf": [{"required": ["on"]}, {"required": ["pattern"]}]}


def _without(*words: str) -> JsonObject:
    return {"not": {"anyOf": [{"required": [word]} for word in words]}}


def _form(title: str, *needed: str, no: tuple[str, ...], **more: Any) -> JsonObject:
    """Return one form: the keys it needs, and those that say nothing there."""
    schema: JsonObject = {"title": title, "allOf": [_without(*no)], **more}
    if needed:
        schema["required"] = [*needed]
    return schema


def _others(*mine: str) -> tuple[str, ...]:
    return tuple(word for word in _FORMS if word not in mine)


_FIGURE = ("is", "for")
_NEEDS_RESOLVE = {"on_resolve": ["resolve"]}
_WITHOUT_ON = ("on", "pattern", "after", "debounce", "count")


def _one_of() -> list[JsonObject]:
    events = _form(
        "Events", no=(*_FORMS, "after", "debounce", *_FIGURE), **_OF_EVENTS,
        dependentRequired={"within": ["count"], **_NEEDS_RESOLVE},
        **{"if": {"required": ["count"], "properties": {"count": {"minimum": 2}}}, "then": {"required": ["within"]}},
    )  # fmt: skip
    quiet = _form(
        "Quiet after events", "debounce", no=(*_FORMS, "after", "count", "within", *_FIGURE), **_OF_EVENTS,
        dependentRequired=_NEEDS_RESOLVE,
    )  # fmt: skip
    absence = _form(
        "Absence", "expect", "within", dependentRequired=_NEEDS_RESOLVE,
        no=(*_others("expect"), "on", "pattern", "debounce", "count", *_FIGURE),
    )  # fmt: skip
    sequence = _form(
        "Sequence", "sequence", "within", no=(*_others("sequence"), *_WITHOUT_ON, *_FIGURE), dependentRequired=_NEEDS_RESOLVE
    )  # fmt: skip
    some = _form(
        "Some of several", "any_of", no=(*_others("any_of"), *_WITHOUT_ON, *_FIGURE), dependentRequired=_NEEDS_RESOLVE,
        description="It needs `within`, but where one event of several kinds is enough.",
    )  # fmt: skip
    every = _form(
        "All of several", "all_of", "within", no=(*_others("all_of"), *_WITHOUT_ON, *_FIGURE),
        dependentRequired=_NEEDS_RESOLVE,
    )  # fmt: skip
    figure = _form("Figure", "metric", "is", no=(*_others("metric"), *_WITHOUT_ON, "within"))
    return [events, quiet, absence, sequence, some, every, figure]


def rule_schema() -> JsonObject:
    """Return the schema of a rule as it is written under ``automations:``, without its name."""
    known: JsonObject = {}
    for name, field in Automation.model_fields.items():
        word = field.alias or name
        if word != "name":
            known[word] = {"description": field.description} if field.description else _MEANS[word]
    return {
        "title": "Rule", "description": "A rule as it is written under `automations:`; each has one of the forms.",
        "type": "object", "properties": {**known, "pattern": _MEANS["pattern"]}, "additionalProperties": False,
        "oneOf": [*_one_of()],
        "examples": [
            {"on": "order.paid", "count": 3, "within": "10m", "do": [{"emit": {"type": "orders.many"}}]},
            {"after": "order.paid", "expect": "order.shipped", "for_each": "subject", "within": "2d", "do": [{"notify": "oncall"}]},
            {"metric": {"measure": "p95_duration", "flow": "etl", "over": "1h"}, "is": "> 10m", "do": [{"notify": "oncall"}]},
        ],
    }  # fmt: skip
