"""Parameters that a configuration gives to flows, held against what the flows' functions take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..engine.calls.schema_check import problem_with
from ..vocabulary import JsonObject, JsonValue
from .entrypoint import FlowSource
from .fault import Fault, Position
from .plan import owner_of
from .reference import actions_in, short_form
from .shape import dotted
from .yaml_source import Node

__all__ = ["parameter_faults"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Somebody who asks for runs of a deployment: with which parameters, and where that is written."""

    deployment: str
    who: str
    given: JsonValue
    node: Node | None
    at: Position
    path: tuple[str | int, ...]


def parameter_faults(
    values: Mapping[tuple[str, str], JsonValue],
    nodes: Mapping[tuple[str, str], Node],
    flows: Mapping[str, FlowSource],
) -> Iterator[Fault]:
    """Yield what would keep runs from starting: parameters no flow takes, wrong ones, and those that nobody gives.

    Templates are left to the moment they are rendered, and flows whose text does not tell what they take to the run.

    Args:
        values: records as they are stored; nodes: where they stood; flows: of the deployments among them.
    """
    # Of a deployment that is wrong itself, the rest is told when it is right.
    flows = {key: flow for key, flow in flows.items() if ("deployments", key) in values}
    for key, flow in flows.items():
        node = nodes.get(("deployments", key))
        given = node.children.get("parameters") if node else None
        yield from _wrong(flow, given, ("deployments", key, "parameters"))
    for asked in _asking(values, nodes):
        of = flows.get(asked.deployment)
        if of is None:
            continue
        yield from _wrong(of, asked.node, asked.path)
        own = values.get(("deployments", asked.deployment))
        brought = _names(own.get("parameters") if isinstance(own, dict) else None)
        passed = _names(asked.given)
        if brought is None or passed is None:
            continue
        missing = sorted(of.required - brought - passed)
        if missing:
            names = ", ".join(repr(one) for one in missing)
            message = f"the flow needs {names}, which neither {asked.who} nor the deployment gives"
            hint = f"add parameters: {{{missing[0]}: …}}"
            yield Fault(asked.node.at if asked.node else asked.at, message, dotted(asked.path), hint)


def _names(given: JsonValue) -> frozenset[str] | None:
    """Return which parameters are given; None if a template says that."""
    if given is None:
        return frozenset()
    if not isinstance(given, dict) or any("{{" in key for key in given):
        return None
    return frozenset(given)


def _asking(
    values: Mapping[tuple[str, str], JsonValue], nodes: Mapping[tuple[str, str], Node]
) -> Iterator[_Asked]:
    for (bucket, key), value in values.items():
        node = nodes.get((bucket, key))
        if node is None or not isinstance(value, dict):
            continue
        if bucket == "schedules":
            deployment, _, name = key.partition("/")
            if value.get("paused"):  # it starts nothing; backfills of its slots bring their own
                continue
            schedule = value.get("schedule")
            given = schedule.get("parameters") if isinstance(schedule, dict) else None
            place = int(name) if name.isdecimal() else name
            yield _of(
                deployment, "the schedule", given, node, ("deployments", deployment, "schedules", place)
            )
        elif bucket == "automations":
            owner = owner_of(value)
            if owner is not None:
                placed = node.children.get("parameters")
                where = ("deployments", owner, "triggers", key)
                yield _of(owner, "the trigger", placed.value if placed else None, node, where)
            for path, action in actions_in(node, (bucket, key)):
                target = short_form(action, "run", "deployment")
                if target is None or not isinstance(target.value, str):
                    continue
                run = action.children["run"]
                inner = run if "parameters" in run.children else action
                placed = inner.children.get("parameters")
                yield _of(target.value, "the action", placed.value if placed else None, inner, path)


def _of(deployment: str, who: str, given: JsonValue, node: Node, path: tuple[str | int, ...]) -> _Asked:
    return _Asked(deployment, who, given, node.children.get("parameters"), node.at, (*path, "parameters"))


def _wrong(flow: FlowSource, given: Node | None, path: tuple[str | int, ...]) -> Iterator[Fault]:
    """Yield the parameters that the flow does not take, and those of a wrong kind."""
    if given is None or not isinstance(given.value, dict) or flow.parameters is None:
        return
    properties: JsonObject = flow.properties
    for name, value in given.value.items():
        if "{{" in name:
            continue
        wrong = flow.problem_with({name: value})
        if wrong:
            message, _, tail = wrong.partition("; ")
            yield Fault(given.keys.get(name, given.at), message, dotted(path), tail)
        elif not (isinstance(value, str) and "{{" in value) and (
            said := problem_with(name, value, properties)
        ):
            child = given.children.get(name)
            yield Fault(child.at if child else given.at, said, dotted((*path, name)))
