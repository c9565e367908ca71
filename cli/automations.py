"""``hark automations``: rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ago, ask, group, pairs, plain, show, table, when

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..vocabulary import JsonObject

automations = group("Rules: when this pattern of events, do these actions: ls, show, pause, resume, delete.")

_Name = Annotated[str, typer.Argument(help="The rule.")]


def _about(rule: JsonObject) -> str:
    """Return what a rule listens to, or the word of its form."""
    if rule.get("debounce"):
        return f"debounce {_types(rule.get('on'))}"
    expect = rule.get("expect")
    if isinstance(expect, dict):
        return f"expect {_types(expect.get('on'))}"
    on = rule.get("on")
    if on:
        return _types(on)
    metric = rule.get("metric")
    if isinstance(metric, dict):
        return f"{metric.get('measure')} {plain(rule.get('is'))}"
    return next((word for word in ("sequence", "any_of", "all_of") if rule.get(word)), "-")


def _types(on: object) -> str:
    return plain(", ".join(map(str, on)) if isinstance(on, list) else on)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


@automations.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List rules with how often they fired."""
    items = ask(lambda h: h.automations())
    rows = [
        [
            a["name"],
            _about(a),
            a.get("fired", 0),
            ago(a.get("last_fired_at")),
            "paused" if a.get("paused") else a.get("mode", "live"),
            a.get("error") or "; ".join(map(str, _list(a.get("problems")))),
        ]
        for a in items
    ]
    head = ["NAME", "ON", "FIRED", "LAST", "MODE", "PROBLEM"]
    show(items, table(head, rows, empty="no rules; write some into hark.yaml"), as_json=as_json)


@automations.command("show")
def show_one(name: _Name, as_json: AsJson = False) -> None:
    """Show one rule and its latest firings."""
    item = ask(lambda h: h.automation(name))
    text = pairs({k: v for k, v in item.items() if k != "firings"})
    firings = item.get("firings")
    if isinstance(firings, list) and firings:
        rows = [
            [
                f.get("triggered_at"),
                _decided(f),
                f.get("key"),
                f.get("count"),
                _done(f.get("actions")),
                f.get("id"),
            ]
            for f in firings
            if isinstance(f, dict)
        ]
        text += "\n\n" + table(["AT", "DECISION", "KEY", "COUNT", "ACTIONS", "ID"], rows)
    show(item, text, as_json=as_json)


def _decided(firing: Mapping[str, object]) -> str:
    """Return what was decided and, where it was held back, by what: ``suppressed (budget)``, ``triggered (shadow)``."""
    reason = firing.get("reason") or ("shadow" if firing.get("shadow") else "")
    return f"{firing.get('decision')} ({reason})" if reason else str(firing.get("decision"))


def _done(actions: object) -> str:
    """Return what became of a firing's actions: ``notify executed, call waiting (due in 9m)``."""
    return ", ".join(
        f"{a.get('kind')} {a.get('state')}" + (f" (due {when(a['due_at'])})" if a.get("due_at") else "")
        for a in (actions if isinstance(actions, list) else [])
        if isinstance(a, dict)
    )


@automations.command("pause")
def pause(name: _Name, as_json: AsJson = False) -> None:
    """Stop a rule from firing; its windows are kept."""
    show(ask(lambda h: h.pause("automation", name)), f"{name} is paused", as_json=as_json)


@automations.command("resume")
def resume(name: _Name, as_json: AsJson = False) -> None:
    """Let a rule fire again."""
    show(ask(lambda h: h.resume("automation", name)), f"{name} goes on", as_json=as_json)


@automations.command("delete")
def delete(name: _Name, as_json: AsJson = False) -> None:
    """Take a rule and its windows away; one that stands in a configuration comes back with the next apply."""
    show(ask(lambda h: h.delete_automation(name)), f"{name} is gone", as_json=as_json)
