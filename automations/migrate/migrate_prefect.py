"""Prefect automations (as exported: one, a list, or under ``automations:``) as rules. Pure.

Events about flow runs keep their meaning under Hark's names; templates are rewritten where they read what Hark has too.
What is known to Prefect by an id only (a deployment, a block) needs a name that a person puts in.

Source: Prefect 3 documentation, "Automations", "Event triggers", "Automation actions"; its schemas of triggers and actions.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any

from ...duration import format_duration
from ..problem import Loc
from .migration import Converted, NotConverted, Sections, slug

__all__ = ["convert_prefect", "event_pattern", "read_automation", "read_trigger"]

_RUN_WORDS = {
    "Scheduled": "scheduled", "Late": "late", "Pending": "pending", "Running": "running", "Retrying": "retrying",
    "AwaitingRetry": "awaiting-retry", "AwaitingConcurrencySlot": "awaiting-concurrency-slot", "Paused": "paused",
    "Suspended": "suspended", "Resuming": "resuming", "Cancelling": "cancelling", "Completed": "completed",
    "Cached": "cached", "Failed": "failed", "TimedOut": "timed-out", "Cancelled": "cancelled", "Crashed": "crashed",
}  # fmt: skip
_ASSETS = frozenset(
    {
        "prefect.asset.materialization.succeeded",
        "prefect.asset.materialization.failed",
        "prefect.asset.referenced",
    }
)
_ROLES = {
    "flow": "data.flow.name", "deployment": "data.deployment.name", "work-pool": "data.pool", "work-queue": "data.queue",
    "tag": "data.tags", "flow-run": "data.run.name",
}  # fmt: skip
_NAMED = re.compile(r"(?P<not>!?)prefect\.(?P<kind>flow|deployment|work-pool|work-queue)\.(?P<name>.+)")
"""A resource by its id, which Hark has for a name."""
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-")
_NAMES = {
    "flow.name": "event.data.flow.name", "flow_run.name": "event.data.run.name", "flow_run.id": "event.data.run.id",
    "flow_run.state.name": "event.data.state.name", "flow_run.state.type": "event.data.state.type",
    "flow_run.state.message": "event.data.state.message", "flow_run.parameters": "event.data.parameters",
    "flow_run.tags": "event.data.tags", "deployment.name": "event.data.deployment.name",
    "deployment.id": "event.data.deployment.name", "work_pool.name": "event.data.pool", "work_queue.name": "event.data.queue",
    "event.payload": "event.data", "event.event": "event.type", "event.occurred": "event.time",
    "event.resource.id": "event.subject", "event.id": "event.id", "automation.name": "automation.name",
    "automation.id": "automation.name",
}  # fmt: skip
_NAMES_OF_FIGURE = {
    "event.payload": "metric", "event.event": "'automation.resolved'", "event.occurred": "firing.at", "event.id": "firing.id",
    "event.resource.id": "automation.name", "automation.name": "automation.name", "automation.id": "automation.name",
}  # fmt: skip
"""What a template may read when a figure has come back: no event and no run says so."""
_READ = re.compile(
    r"\b(?:flow_run|flow|deployment|work_pool|work_queue|event|automation|variables)(?:\.\w+)+"
)
_METRICS = {
    "successes": ("success_rate", 100.0),
    "duration": ("avg_duration", 1.0),
    "lateness": ("lateness", 1.0),
}
_TARGETS = {
    "deployment": "deployment", "work-pool": "pool", "work-queue": "queue", "automation": "automation",
}  # fmt: skip


def convert_prefect(value: object, sections: Sections | None = None) -> Converted:
    """Return the automations of an export as rules, with a note for each thing that has no equivalent.

    Args:
        sections: what was converted of other files, to which this is added under names of its own.
    """
    out = Converted({} if sections is None else sections)
    base: Loc | None
    if isinstance(value, Mapping) and "automations" in value:
        items, base = value["automations"], ("automations",)
    elif isinstance(value, list):
        items, base = value, ()
    else:
        items, base = [value], None
    if not isinstance(items, list):
        out.lost(base or (), "`automations` is not a list")
        return out
    for i, item in enumerate(items):
        loc: Loc = () if base is None else (*base, i)
        if not isinstance(item, Mapping) or not isinstance(item.get("trigger"), Mapping):
            out.lost(loc, "this is no automation: it has no `trigger`")
            continue
        name = slug(str(item.get("name") or ""), default=f"automation-{i + 1}")
        try:
            _Rule(out, loc).convert(name, item)
        except NotConverted as exc:
            out.notes.append(exc.note)
    return out


def read_trigger(
    out: Converted, trigger: Mapping[str, Any], parameters: Any = None
) -> tuple[dict[str, Any], Any]:
    """Return the matching of a rule, and the parameters of what it runs, for a trigger; ``out`` takes notes.

    It is one that was written for Hark, where the id of a flow or a deployment is its name.

    Raises:
        NotConverted: it has no equivalent.
    """
    rule = _Rule(out, (), ids_are_names=True)
    return rule.trigger(trigger, ()), rule.values(parameters, ("parameters",))


def read_automation(out: Converted, written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the rule that an automation written for Hark becomes; ``out`` takes notes.

    Raises:
        NotConverted: something in it has no equivalent.
    """
    return _given(_Rule(out, (), ids_are_names=True).fields(written))


def event_pattern(written: object, loc: Loc) -> str:
    """Return the pattern of types for a type as Prefect has it.

    Raises:
        NotConverted: there is none.
    """
    text = str(written)
    kind, _, word = text.removeprefix("prefect.").partition(".")
    if text.startswith("prefect."):
        if kind in ("flow-run", "task-run"):
            if word in ("*", ""):
                return f"{kind}.*"
            if word in _RUN_WORDS:
                return f"{kind}.{_RUN_WORDS[word]}"
        if text in _ASSETS:
            return text.removeprefix("prefect.")
        raise NotConverted(loc, f"Hark has no event like {text!r}")
    words = [re.sub(r"[^a-z0-9*-]+", "-", part.lower()).strip("-") for part in text.split(".")]
    made = ".".join(word for word in words if word)
    if text.endswith("*") and not made.endswith(".*") and made != "*":
        raise NotConverted(loc, f"{text!r}: a pattern of types stands for whole words; write it by hand")
    return made[:-1] + ">" if made.endswith("*") else made


class _Rule:
    def __init__(self, out: Converted, loc: Loc, *, ids_are_names: bool = False) -> None:
        self._out, self._loc, self._ids_are_names = out, loc, ids_are_names
        self._has_event = True  # that the actions are about

    def convert(self, name: str, item: Mapping[str, Any]) -> None:
        self._out.rule(name, self.fields(item), self._loc)

    def fields(self, item: Mapping[str, Any]) -> dict[str, Any]:
        rule: dict[str, Any] = {"description": item.get("description") or None}
        if item.get("enabled") is False:
            rule["paused"] = True
        rule |= self.trigger(item["trigger"], (*self._loc, "trigger"))
        actions = [*self.actions(item, "actions"), *self.actions(item, "actions_on_trigger")]
        rule["do"] = actions
        self._has_event = "metric" not in rule
        on_resolve = self.actions(item, "actions_on_resolve")
        if on_resolve and "metric" in rule:
            rule["on_resolve"] = on_resolve
        elif on_resolve:
            self._out.look(
                (*self._loc, "actions_on_resolve"),
                "write `resolve:` (when it is over) to have `on_resolve` here",
            )
        return rule

    # --- triggers -------------------------------------------------------------------------------------

    def trigger(self, trigger: Mapping[str, Any], loc: Loc) -> dict[str, Any]:
        kind = str(trigger.get("type") or "event")
        if kind == "event":
            return self.event(trigger, loc)
        if kind == "metric":
            return self.metric(trigger, loc)
        if kind not in ("compound", "sequence"):
            raise NotConverted(loc, f"there is no trigger of type {kind!r} in Hark")
        within = _seconds(trigger.get("within"), (*loc, "within"))
        inner = [
            self.branch(_mapping(one), (*loc, "triggers", i), is_step=kind == "sequence")
            for i, one in enumerate(_items(trigger.get("triggers"), (*loc, "triggers")))
        ]
        if kind == "sequence":
            made: dict[str, Any] = {"sequence": inner}
        else:
            require = trigger.get("require", "all")
            if require == "all":
                made = {"all_of": inner}
            else:
                made = {"any_of": {"need": 1 if require == "any" else require, "of": inner}}
        if within is None:
            self._out.look(loc, "it has no `within`, which Hark needs; 1d was put in")
        return {**made, "within": _text(within) if within else "1d"}

    def branch(self, trigger: Mapping[str, Any], loc: Loc, *, is_step: bool) -> dict[str, Any]:
        made = self.trigger(trigger, loc)
        kept = {"on", "where", "count", "any_of", "all_of"}
        if is_step and "count" in made:
            kept.add("within")
        if set(made) - kept:
            extra = ", ".join(sorted(set(made) - kept))
            if set(made) & {"expect", "sequence", "metric"}:
                raise NotConverted(loc, f"a trigger inside another cannot be one of {extra}")
            self._out.look(
                loc, f"`{extra}` of a trigger inside another was left out; the outer `within` counts"
            )
        return {key: one for key, one in made.items() if key in kept}

    def event(self, trigger: Mapping[str, Any], loc: Loc) -> dict[str, Any]:
        expect = [
            event_pattern(one, (*loc, "expect", i))
            for i, one in enumerate(_items(trigger.get("expect"), (*loc, "expect")))
        ]
        after = [
            event_pattern(one, (*loc, "after", i))
            for i, one in enumerate(_items(trigger.get("after"), (*loc, "after")))
        ]
        where = self.where(trigger, loc)
        if not expect:
            resource = str(_first(_mapping(trigger.get("match")).get("prefect.resource.id")))
            expect = ["flow-run.*"] if resource.startswith("prefect.flow-run.") else [">"]
        made: dict[str, Any] = {"for_each": self.for_each(trigger, loc)}
        within = _seconds(trigger.get("within"), (*loc, "within"))
        threshold = int(_number(trigger.get("threshold") or 1, (*loc, "threshold")))
        if str(trigger.get("posture", "Reactive")) == "Proactive":
            if threshold > 1:
                raise NotConverted(
                    (*loc, "threshold"), "the absence of several events has no equivalent; expect one"
                )
            side = {"on": _one(expect), "where": where} if where else _one(expect)
            made |= {"expect": side, "within": _text(within or 10)}
            if after:
                made["after"] = {"on": _one(after), "where": where} if where else _one(after)
            return _given(made)
        if after:
            first: dict[str, Any] = {"on": _one(after), "where": where}
            then: dict[str, Any] = {
                "on": _one(expect),
                "where": where,
                "count": threshold if threshold > 1 else None,
            }
            if not within:
                self._out.look(loc, "`after` without `within`: 1d was put in")
            made |= {"sequence": [_given(first), _given(then)], "within": _text(within) if within else "1d"}
            return _given(made)
        made |= {"on": _one(expect), "where": where}
        if threshold > 1:
            made |= {"count": threshold, "within": _text(within) if within else "1d"}
            if not within:
                self._out.look(loc, "`threshold` without `within`: 1d was put in")
        elif within:
            # Reactive and a threshold of one: fires at once, then not again until the time has passed.
            made["cooldown"] = _text(within)
        return _given(made)

    def metric(self, trigger: Mapping[str, Any], loc: Loc) -> dict[str, Any]:
        query = _mapping(trigger.get("metric"))
        name, operator = str(query.get("name")), str(query.get("operator"))
        if name not in _METRICS or operator not in ("<", "<=", ">", ">="):
            raise NotConverted((*loc, "metric"), f"there is no metric {name!r} with {operator!r} in Hark")
        measure, scale = _METRICS[name]
        threshold = _number(query.get("threshold") or 0, (*loc, "metric", "threshold"))
        if measure == "success_rate":
            # Both are in use there; a rule about less than one run in a hundred would be none.
            limit = f"{threshold if threshold > 1 else threshold * scale:g}%"
        else:
            limit = _text(threshold)
        where = self.where(trigger, loc)
        metric = {
            "measure": measure,
            "over": _text(_seconds(query.get("range"), (*loc, "metric", "range")) or 300),
            "where": where or None,
        }
        made = {
            "metric": _given(metric),
            "is": f"{operator} {limit}",
            "for": _text(_seconds(query.get("firing_for"), (*loc, "metric", "firing_for")) or 300),
        }
        if name == "successes":
            self._out.look(
                (*loc, "metric"),
                f"the threshold of `successes` was read as {limit} of finished runs: percent, or from 0 to 1 a share",
            )
        return made

    def where(self, trigger: Mapping[str, Any], loc: Loc) -> dict[str, Any] | None:
        conditions: list[dict[str, Any]] = []
        for label, wanted in _mapping(trigger.get("match")).items():
            conditions += self.label(str(label), wanted, (*loc, "match", str(label)))
        related = trigger.get("match_related") or []
        listed = [related] if isinstance(related, Mapping) else _items(related, (*loc, "match_related"))
        for i, one in enumerate(listed):
            where_it_is = (
                (*loc, "match_related") if isinstance(related, Mapping) else (*loc, "match_related", i)
            )
            conditions += self.related(_mapping(one), where_it_is)
        merged: dict[str, Any] = {}
        for condition in conditions:
            if merged.keys() & condition.keys():
                return {"all": conditions}
            merged |= condition
        return merged or None

    def label(self, label: str, wanted: Any, loc: Loc) -> list[dict[str, Any]]:
        items = wanted if isinstance(wanted, list) else [wanted]
        if label == "prefect.resource.id":
            made = []
            for item in (str(one) for one in items):
                if re.fullmatch(r"prefect\.[a-z-]+\.\*|\*", item):
                    return []  # every one of a kind: the type says so
                made.append(re.sub(r"^(!?)prefect\.([a-z-]+)\.", r"\1\2/", item))
            return [{"subject": _values(made)}]
        if label == "prefect.resource.name":
            return [{"data.run.name": _values(items)}]
        if label in (
            "prefect.run-count",
            "prefect.state-name",
            "prefect.state-type",
            "prefect.state-message",
        ):
            path = {
                "prefect.run-count": "data.run.attempt", "prefect.state-name": "data.state.name",
                "prefect.state-type": "data.state.type", "prefect.state-message": "data.state.message",
            }[label]  # fmt: skip
            made_of = [int(i) if label.endswith("count") and str(i).isdigit() else i for i in items]
            return [{path: _values(made_of)}]
        if label.startswith("prefect."):
            raise NotConverted(loc, f"the label {label!r} has no equivalent")
        self._out.look(loc, f"the label {label!r} is looked for where emit_event() puts it: data.resource")
        return [{f'data.resource["{label}"]': _values(items)}]

    def related(self, match: Mapping[str, Any], loc: Loc) -> list[dict[str, Any]]:
        ids = match.get("prefect.resource.id")
        items = [str(i) for i in (ids if isinstance(ids, list) else [ids] if ids is not None else [])]
        tags = [i for i in items if re.match(r"!?prefect\.tag\.", i)]
        if tags and len(tags) == len(items):
            return [{"data.tags": _values([i.replace("prefect.tag.", "", 1) for i in tags])}]
        role, names = match.get("prefect.resource.role"), match.get("prefect.resource.name")
        if isinstance(role, str) and role in _ROLES and names is not None:
            return [{_ROLES[role]: _values(names if isinstance(names, list) else [names])}]
        named = [at for i in items if (at := _NAMED.fullmatch(i)) and not _UUID.search(at["name"])]
        if self._ids_are_names and len(named) == len(items) and len({at["kind"] for at in named}) == 1:
            return [{_ROLES[named[0]["kind"]]: _values([at["not"] + at["name"] for at in named])}]
        is_others = not any(re.match(r"!?prefect\.", item) for item in items) and role not in _ROLES
        if match and is_others and not isinstance(role, list):
            self._out.look(loc, "it is looked for where emit_event() puts related resources: data.related")
            wanted = {str(label): one if isinstance(one, list) else [one] for label, one in match.items()}
            return [
                {"data.related": {"any": {f'["{label}"]': _values(one) for label, one in wanted.items()}}}
            ]
        if items:
            kinds = sorted({i.lstrip("!").split(".")[1] for i in items if i.count(".") > 1})
            raise NotConverted(
                loc,
                f"it names a {', '.join(kinds) or 'resource'} by id ({items[0]}); put its name in, under prefect.resource.name",
            )
        raise NotConverted(loc, "this match of related resources has no equivalent")

    def for_each(self, trigger: Mapping[str, Any], loc: Loc) -> Any:
        paths = []
        for i, label in enumerate(_items(trigger.get("for_each"), (*loc, "for_each"))):
            match = re.fullmatch(r"related:([a-z-]+):prefect\.resource\.(?:id|name)", str(label))
            if label == "prefect.resource.id":
                paths.append("subject")
            elif match and match[1] in _ROLES:
                paths.append(_ROLES[match[1]])
            elif re.fullmatch(r"(?!prefect\.|related:)[\w.-]+", str(label)):
                paths.append(f'data.resource["{label}"]')
            else:
                raise NotConverted((*loc, "for_each", i), f"the label {label!r} has no equivalent")
        return _one(paths) if paths else None

    # --- actions --------------------------------------------------------------------------------------

    def actions(self, item: Mapping[str, Any], word: str) -> list[dict[str, Any]]:
        made = []
        for i, action in enumerate(_items(item.get(word), (*self._loc, word))):
            loc = (*self._loc, word, i)
            try:
                one = self.action(_mapping(action), loc)
            except NotConverted as exc:
                if self._ids_are_names:
                    raise
                self._out.notes.append(exc.note)
                continue
            if one is not None:
                made.append(one)
        return made

    def action(self, action: Mapping[str, Any], loc: Loc) -> dict[str, Any] | None:
        kind, is_selected = str(action.get("type")), action.get("source", "selected") == "selected"
        if kind == "do-nothing":
            return None
        if kind == "run-deployment":
            made: dict[str, Any] = {"run": self.named("deployment", action, is_selected, loc)}
            if action.get("parameters"):
                made["parameters"] = self.values(action["parameters"], (*loc, "parameters"))
            if action.get("job_variables"):
                self._out.lost(
                    (*loc, "job_variables"), "job variables have no equivalent; set them on the pool"
                )
            if delay := _seconds(action.get("schedule_after"), (*loc, "schedule_after")):
                made["delay"] = _text(delay)
            return made
        if kind.endswith("-flow-run") or kind == "change-flow-run-state":
            self.needs_event("flow run", loc)
        if kind in ("cancel-flow-run", "suspend-flow-run"):
            return {kind.partition("-")[0]: {}}
        if kind == "resume-flow-run":
            return {"resume": {"flow_run": "{{ run.id }}"}}
        if kind == "change-flow-run-state":
            return _given({
                "set_state": str(action.get("state")), "name": action.get("name"),
                "message": self.template(action.get("message"), (*loc, "message")),
            })  # fmt: skip
        verb, _, target = kind.partition("-")
        if verb in ("pause", "resume") and target in _TARGETS:
            key = target.replace("-", "_")
            return {verb: {_TARGETS[target]: self.named(key, action, is_selected, loc)}}
        if kind == "send-notification":
            block = str(action.get("block_document_id"))
            name = action.get("block_name") or f"prefect-block-{block[:8]}"
            self._out.look(
                loc,
                f"define the channel {name!r}: it is what the block {block} was",
            )
            return _given({
                "notify": name, "title": self.template(action.get("subject"), (*loc, "subject")),
                "body": self.template(action.get("body"), (*loc, "body")),
            })  # fmt: skip
        if kind == "call-webhook":
            block = str(action.get("block_document_id"))
            secret = f"webhook_{str(action.get('block_name') or block[:8]).replace('-', '_')}"
            self._out.look(
                loc,
                f"put the address of the webhook block {block} in: `hark secrets set {secret}`",
            )
            return _given({
                "call": "{{ secrets." + secret + " }}",
                "body": self.template(action.get("payload"), (*loc, "payload")),
            })  # fmt: skip
        raise NotConverted(loc, f"the action {kind!r} has no equivalent")

    def needs_event(self, kind: str, loc: Loc) -> None:
        if not self._has_event:
            raise NotConverted(loc, f"a figure that comes back is about no {kind} of its own; name one")

    def named(self, kind: str, action: Mapping[str, Any], is_selected: bool, loc: Loc) -> str:
        if not is_selected:
            self.needs_event(kind.replace("_", " "), loc)
            return {
                "deployment": "{{ event.data.deployment.name }}", "work_pool": "{{ event.data.pool }}",
                "work_queue": "{{ event.data.pool }}/{{ event.data.queue }}", "automation": "{{ event.data.automation.name }}",
            }[kind]  # fmt: skip
        id_ = str(action.get(f"{kind}_id") or action.get("deployment_name") or "")
        if self._ids_are_names:
            return id_ if kind == "work_queue" else id_.rpartition("/")[2]
        name = str(action.get("deployment_name") or f"{kind.replace('_', '-')}-{id_[:8]}")
        if "deployment_name" not in action:
            self._out.look(
                loc, f"put the name of the {kind.replace('_', ' ')} {id_} in the place of {name!r}"
            )
        return name.rpartition("/")[2]

    def values(self, value: Any, loc: Loc) -> Any:
        if isinstance(value, Mapping):
            kind = value.get("__prefect_kind")
            if kind == "jinja":
                return self.template(value.get("template"), loc)
            if kind == "json":
                made = self.values(value.get("value"), (*loc, "value"))
                return (
                    made.replace("| tojson", "").replace("|tojson", "").replace("  ", " ")
                    if isinstance(made, str)
                    else made
                )
            if kind == "workspace_variable":
                return "{{ variables." + str(value.get("variable_name")) + " }}"
            return {str(key): self.values(one, (*loc, str(key))) for key, one in value.items()}
        if isinstance(value, list):
            return [self.values(one, (*loc, i)) for i, one in enumerate(value)]
        return self.template(value, loc) if isinstance(value, str) else value

    def template(self, text: Any, loc: Loc) -> Any:
        """Return a template that reads the same from Hark's event; a note where it cannot."""
        if not isinstance(text, str) or "{" not in text:
            return text

        def renamed(match: re.Match[str]) -> str:
            read = match[0]
            if not self._has_event and not read.startswith("variables."):
                if read not in _NAMES_OF_FIGURE:
                    self._out.look(
                        loc,
                        f"the template reads {read!r}, which a figure that comes back does not have: it will read '-'; "
                        "`metric.shown` and `resolved.duration_s` are there",
                    )
                return _NAMES_OF_FIGURE.get(read, "'-'")
            for known in sorted(_NAMES, key=len, reverse=True):
                if read == known or read.startswith(known + "."):
                    return _NAMES[known] + read[len(known) :]
            if not read.startswith("variables."):
                self._out.look(loc, f"the template reads {read!r}, which Hark's events do not have")
            return read

        made = re.sub(r"\{[{%].*?[}%]\}", lambda block: _READ.sub(renamed, block[0]), text, flags=re.DOTALL)
        if "ui_url" in made or "ui_resource_events_url" in made:
            self._out.look(loc, "links to Prefect's pages were taken out of the template")
            made = re.sub(r"\{\{[^}]*\|\s*ui_(?:resource_events_)?url[^}]*\}\}", "", made)
        return made


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _one(items: list[str]) -> Any:
    return items[0] if len(items) == 1 else items


def _given(value: dict[str, Any]) -> dict[str, Any]:
    return {key: one for key, one in value.items() if one is not None}


def _items(value: Any, loc: Loc) -> list[Any]:
    """Return a list as it is written; of nothing an empty one."""
    if value is None:
        return []
    if not isinstance(value, list | tuple | set | frozenset):
        raise NotConverted(loc, f"a list is expected, got {value!r:.80}")
    return [*value]


def _number(value: Any, loc: Loc) -> float:
    if isinstance(value, int | float | str):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
            if 0 <= number < math.inf:
                return number
    raise NotConverted(loc, f"a number from 0 on is expected, got {value!r:.80}")


def _seconds(value: Any, loc: Loc) -> float | None:
    """Return seconds of a number, ``P1DT2H3M4S`` or ``1:30:00``; None where nothing or none is written."""
    if value in (None, ""):
        return None
    text = str(value)
    if iso := re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", text):
        days, hours, minutes, seconds = (float(part or 0) for part in iso.groups())
        return days * 86400 + hours * 3600 + minutes * 60 + seconds or None
    if clock := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text):
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) or None
    return _number(value, loc) or None


def _text(seconds: float) -> str:
    return format_duration(seconds)


def _values(items: list[Any]) -> Any:
    """Return what is wanted of a label's value: names, `!name` for another, `*` at the end for any that begin so."""
    wanted: list[Any] = []
    barred: list[Any] = []
    for item in items:
        text = item if isinstance(item, str) else None
        plain = text.removeprefix("!") if text is not None else item
        made: Any = {"prefix": plain[:-1]} if isinstance(plain, str) and plain.endswith("*") else plain
        (barred if text is not None and text.startswith("!") else wanted).append(made)
    if barred:
        wanted.append({"not": _one(barred)})
    return _one(wanted)
