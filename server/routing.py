"""The section ``notifications:`` held against the language its conditions are written in, and against the channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import model_validator

from ..automations.matching.condition import parse_where
from ..automations.matching.path import parse_path
from ..automations.problem import Problem, refuse
from ..errors import DefinitionError
from ..notifications.routing import EACH, RouteSpec, Routing
from .fault import Fault, did_you_mean
from .shape import dotted
from .yaml_source import Node

__all__ = ["CheckedRouting", "address_faults", "is_address", "receiver_faults"]


class CheckedRouting(Routing):
    """A section whose conditions and paths stand, each fault named at its place."""

    @model_validator(mode="after")
    def _conditions(self) -> CheckedRouting:
        problems = list(_route_problems(self, ()))
        for i, rule in enumerate(self.inhibit):
            problems += _where_problems(rule.source, ("inhibit", i, "source"))
            problems += _where_problems(rule.target, ("inhibit", i, "target"))
            problems += _path_problems(rule.equal, ("inhibit", i, "equal"))
        if problems:
            refuse("notifications", problems)
        return self


def _route_problems(route: RouteSpec, at: tuple[str | int, ...]) -> Iterator[Problem]:
    if route.match:
        yield from _where_problems(route.match, (*at, "match"))
    yield from _path_problems([p for p in route.group_by or () if p != EACH], (*at, "group_by"))
    for i, child in enumerate(route.routes):
        yield from _route_problems(child, (*at, "routes", i))


def _where_problems(written: Any, at: tuple[str | int, ...]) -> Iterator[Problem]:
    _, problems = parse_where(dict(written))
    for problem in problems:
        yield problem.under(*at)


def _path_problems(paths: Collection[str], at: tuple[str | int, ...]) -> Iterator[Problem]:
    for i, path in enumerate(paths):
        try:
            parse_path(path)
        except ValueError as exc:
            yield Problem((*at, i), str(exc))


def receiver_faults(
    node: Node, known: Collection[str], path: tuple[str | int, ...] = ("notifications",)
) -> Iterator[Fault]:
    """Yield a warning for each channel a section sends to that does not exist.

    Not an error: what cannot be delivered is tried again and said, and a channel may be defined by somebody else.
    """
    yield from _receivers(node.children.get("to"), known, (*path, "to"))
    steps = node.children.get("escalate")
    for i, step in (steps.children if steps is not None else {}).items():
        yield from _receivers(step.children.get("to"), known, (*path, "escalate", i, "to"))
    routes = node.children.get("routes")
    for i, route in (routes.children if routes is not None else {}).items():
        yield from receiver_faults(route, known, (*path, "routes", i))


def _receivers(node: Node | None, known: Collection[str], path: tuple[str | int, ...]) -> Iterator[Fault]:
    if node is None:
        return
    if isinstance(node.value, list):
        for i, child in node.children.items():
            yield from _receivers(child, known, (*path, i))
    elif not isinstance(node.value, str):
        return
    elif is_address(node.value, known):
        yield from address_faults(node, path)
    elif "{{" not in node.value and node.value not in known:
        hint = (
            did_you_mean(node.value, known) or "define it under `channels:`; until then what goes there fails"
        )
        yield Fault(node.at, f"there is no channel named {node.value!r}", dotted(path), hint, is_warning=True)


def is_address(value: object, known: Collection[str]) -> bool:
    """Return whether what is written where people are told is meant as an address, also one that lacks its scheme.

    Args:
        known: names of channels.
    """
    if not isinstance(value, str) or value in known:
        return False
    return ":" in value or ("{{" not in value and any(sign in value for sign in "/@"))


def address_faults(node: Node, path: tuple[str | int, ...]) -> Iterator[Fault]:
    """Yield a fault for an Apprise URL, written out where people are told, that no service can be reached by."""
    from ..notifications.channel import check_url

    try:
        check_url(str(node.value))
    except DefinitionError as exc:
        yield Fault(node.at, f"{exc} ({exc.hint})" if exc.hint else str(exc), dotted(path))
