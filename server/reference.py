"""References between things of a configuration: a rule that runs a deployment, a deployment of a pool, and so on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

from ..vocabulary import JsonValue
from .fault import Fault, did_you_mean
from .routing import address_faults, is_address, receiver_faults
from .shape import dotted
from .yaml_source import Node

__all__ = ["Names", "actions_in", "reference_faults", "short_form"]

Names: TypeAlias = Mapping[str, Collection[str]]
"""Names that exist, by bucket."""

_TARGET = {
    "deployment": "deployments", "schedule": "schedules", "pool": "pools", "automation": "automations",
    "webhook": "webhooks",
}  # fmt: skip
_BRANCHES = ("do", "on_resolve", "yes", "no", "otherwise")


def reference_faults(
    values: Mapping[tuple[str, str], JsonValue],
    nodes: Mapping[tuple[str, str], Node],
    *,
    live: Names,
    broken: Mapping[str, Collection[str]],
) -> Iterator[Fault]:
    """Yield a fault for each name that is referred to and does not exist.

    Args:
        nodes: where each record stood, in the words of the file.
        live: names that exist besides the configuration; broken: those defined in it, wrongly.
    """
    known: dict[str, set[str]] = {}
    for bucket, key in values:
        known.setdefault(bucket, set()).add(key)
    for names in (live, broken):
        for bucket, keys in names.items():
            known.setdefault(bucket, set()).update(keys)
    known.setdefault("pools", set()).add("default")  # exists always, without limits

    def look(kind: str, bucket: str, node: Node | None, path: tuple[str | int, ...]) -> Iterator[Fault]:
        if node is None or not isinstance(node.value, str) or "{{" in node.value:
            return
        have = known.get(bucket, set())
        if node.value not in have:
            hint = did_you_mean(node.value, have)
            if not hint:
                shown = ", ".join(sorted(have)[:10])
                hint = f"defined are {shown}" if have else f"define it under `{bucket}:`"
            yield Fault(node.at, f"there is no {kind} named {node.value!r}", dotted(path), hint)

    for (bucket, key), node in nodes.items():
        if bucket == "deployments":
            yield from look("pool", "pools", node.children.get("pool"), (bucket, key, "pool"))
            pool, queue = node.children.get("pool"), node.children.get("queue")
            name = pool.value if pool else "default"
            defined = nodes.get(("pools", str(name)))
            queues = defined.children.get("queues") if defined else None
            if (
                queue
                and queues
                and isinstance(queue.value, str)
                and queue.value not in (*queues.children, "default")
            ):
                have = [str(q) for q in queues.children]
                hint = did_you_mean(queue.value, have) or f"its queues are {', '.join(have)}"
                message = f"the pool {name!r} has no queue {queue.value!r}"
                yield Fault(queue.at, message, f"deployments.{key}.queue", hint)
        elif bucket == "notifications":
            yield from receiver_faults(node, known.get("channels", set()))
        elif bucket == "automations":
            for path, action in actions_in(node, (bucket, key)):
                yield from look(
                    "deployment", "deployments", short_form(action, "run", "deployment"), (*path, "run")
                )
                for word in ("notify", "approve"):
                    for i, one in _each(short_form(action, word, "to")):
                        below = (*path, word) if i is None else (*path, word, i)
                        if is_address(one.value, known.get("channels", ())):
                            yield from address_faults(one, below)
                        elif one.value != "routes":
                            yield from look("channel", "channels", one, below)
                for verb in ("pause", "resume"):
                    target = action.children.get(verb)
                    for kind, place in target.children.items() if target else ():
                        if kind in _TARGET:
                            yield from look(str(kind), _TARGET[str(kind)], place, (*path, verb, kind))


def short_form(action: Node, word: str, main: str) -> Node | None:
    """Return the node of an action's object in either form: ``run: x`` or ``run: {deployment: x}``."""
    given = action.children.get(word)
    return given.children.get(main) if given is not None and isinstance(given.value, dict) else given


def _each(node: Node | None) -> Iterator[tuple[int | None, Node]]:
    if node is None:
        return
    if isinstance(node.value, list):
        for i, child in node.children.items():
            yield int(i), child
    else:
        yield None, node


def actions_in(node: Node, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    """Yield every action of a rule, those in branches of actions included."""
    for branch in _BRANCHES:
        actions = node.children.get(branch)
        if actions is None:
            continue
        for i, action in _each(actions):
            below = (*path, branch) if i is None else (*path, branch, i)
            if isinstance(action.value, dict):
                yield below, action
                yield from actions_in(action, below)
