"""What a rule's actions are about, and which of it is not there: seen before a rule fires, not when it has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ...vocabulary import JsonValue
from ..model import Automation
from ..problem import Loc, Problem, did_you_mean

__all__ = ["channels_of", "missing_targets"]

_BUCKETS = {
    "deployment": "deployments", "schedule": "schedules", "automation": "automations", "webhook": "webhooks",
    "channel": "channels",
}  # fmt: skip
_BRANCHES = ("yes", "no", "otherwise")


def missing_targets(automation: Automation, known: Mapping[str, Collection[str]]) -> list[Problem]:
    """Return the names a rule's actions need and that do not exist; templates are left to the moment they are rendered.

    Args:
        known: names that exist, by bucket; a bucket that is not given is not checked.
    """
    written = automation.to_json()
    found: list[Problem] = []
    for branch in ("do", "on_resolve"):
        for loc, kind, name in _targets(written.get(branch), (branch,)):
            have = known.get(_BUCKETS[kind])
            if have is not None and name not in have:
                hint = did_you_mean(name, have)
                if kind == "channel" and any(sign in name for sign in "/@"):
                    hint = "; an address begins with its scheme, such as mailto://"
                found.append(Problem(loc, f"there is no {kind} named {name!r}{hint}"))
    return found


def channels_of(automation: Automation) -> list[tuple[Loc, str]]:
    """Return the channels a rule's actions name, each with its place."""
    written = automation.to_json()
    return [
        (loc, name)
        for branch in ("do", "on_resolve")
        for loc, kind, name in _targets(written.get(branch), (branch,))
        if kind == "channel"
    ]


def _targets(actions: JsonValue, loc: Loc) -> Iterator[tuple[Loc, str, str]]:
    """Yield (place, kind, name) of everything that actions name, those of branches included."""
    for i, action in enumerate(actions if isinstance(actions, list) else []):
        if not isinstance(action, dict):
            continue
        at = (*loc, i)
        run = action.get("run")
        if isinstance(run, str) and "{{" not in run:
            yield (*at, "run"), "deployment", run
        for word in ("notify", "approve"):
            to = action.get(word)
            for name in to if isinstance(to, list) else []:
                if (
                    isinstance(name, str)
                    and not any(sign in name for sign in ("{{", "://"))
                    and name != "routes"
                ):
                    yield (*at, word), "channel", name
        for word in ("pause", "resume"):
            about = action.get(word)
            for kind, name in about.items() if isinstance(about, dict) else ():
                if kind in _BUCKETS and isinstance(name, str) and "{{" not in name:
                    yield (*at, word, kind), kind, name
        for branch in _BRANCHES:
            yield from _targets(action.get(branch), (*at, branch))
