"""``hark backtest``, ``hark explain``: what rules would have done, and why they did what they did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .call import AsJson, ask, plain, show, table
from .ident import event_id_of

if TYPE_CHECKING:
    from ..automations.model import Automation
    from ..server.client import Hark
    from ..vocabulary import JsonObject

_Config = Annotated[
    Path | None,
    typer.Option("--config", help="hark.yaml or a folder; default: HARK_CONFIG, else hark.yaml here."),
]


def _drafted(name: str, path: Path | None) -> Automation | None:
    """Return the rule as the configuration has it, None if it is not in one."""
    from ..automations.model import Automation
    from ..config import load_settings
    from ..errors import DefinitionError
    from ..server.address import config_path
    from ..server.manifest import check_manifest

    found = config_path(load_settings(), path)
    if found is None:
        return None
    manifest, faults = check_manifest(found)
    record = manifest.records.get(("automations", name))
    if record is not None:
        return Automation.model_validate(record.value)
    own = [f for f in faults if not f.is_warning and name in str(f)]
    if own:
        raise DefinitionError(f"the rule {name!r} does not stand: {own[0]}")
    return None


def backtest(
    rule: Annotated[str, typer.Argument(help="The rule: of the configuration here, else the live one.")],
    since: Annotated[str | None, typer.Option(help="How far back: 7d, or a time.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop at this time.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            exists=True,
            dir_okay=False,
            help="Events to use, not the log: one JSON a line, or a list.",
        ),
    ] = None,
    config: _Config = None,
    live: Annotated[
        bool, typer.Option("--live", help="The live rule, also if there is one in a configuration.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="List at most so many firings.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show every firing a rule would have made, with the events that made it; nothing is stored or sent."""
    draft = None if live else _drafted(rule, config)
    if file is not None:
        made = _from_file(file, rule, draft, since=since, until=until, limit=limit)
    else:
        body: JsonObject = {"since": since, "until": until, "limit": limit}
        body |= {"automation": rule} if draft is None else {"rules": {rule: draft.to_json()}}
        made = ask(lambda h: h.backtest(body))
    made["source"] = "configuration" if draft is not None else "live"
    show(made, _backtest_text(made, rule), as_json=as_json)


def _from_file(
    file: Path, name: str, draft: Automation | None, *, since: str | None, until: str | None, limit: int
) -> JsonObject:
    from ..automations.analysis.backtest import backtest_lines
    from ..automations.model import parse_automation
    from ..server.answer import moment

    if draft is None:
        found = ask(lambda h: h.automation_definition(name))
        draft = parse_automation(found["definition"], name=name)
    with file.open("rb") as lines:
        made = backtest_lines(
            lines, [draft], since=moment(since, name="since"), until=moment(until, name="until"), keep=limit, name=file.name,
        )  # fmt: skip
    return made.to_json()


def _backtest_text(made: JsonObject, name: str) -> str:
    rules: Any = made["rules"]
    outcome: dict[str, Any] = rules[0]
    rows = []
    for d in outcome["decisions"]:
        what = "fires" if d["what"] == "triggered" else d["what"]
        what += f" ({d['reason']})" if d.get("reason") else ""
        events = d["events"]
        ids = ", ".join(
            str(e["id"] or f"no. {e['seq']}") for e in events[-3:]
        )  # of a file, where they may have none
        more = f"{len(events) - 3} more, " if len(events) > 3 else ""
        rows.append([d["at"], what, d["key"] or "-", d["count"], more + ids])
    text = table(["AT", "WHAT", "KEY", "COUNT", "EVENTS"], rows, empty="it would not have fired")
    lines = [text, ""]
    left = outcome["fired"] + outcome["suppressed"] + outcome["resolved"] - len(rows)
    if left > 0:
        lines.append(f"and {left} more (--limit)")
    span = f" from {made['begins_at']} to {made['ends_at']}" if made["begins_at"] else ""
    counts = ", ".join(
        f"{outcome[k]} {k}" for k in ("fired", "suppressed", "resolved") if outcome[k] or k == "fired"
    )
    events = f"{made['events']} event{'s' * (made['events'] != 1)}"
    lines.append(f"{name}: {counts}; {events}{span} in {made['took_s']} s")
    if not made["whole"]:
        lines.append("time ran out before the end of the log: ask for less with --since or --until")
    return "\n".join(lines)


def explain(
    event: Annotated[
        str, typer.Argument(help="An event: its id or the beginning of it, or its sequence in the log.")
    ],
    rule: Annotated[
        str | None, typer.Argument(help="One rule; default: every rule that listens to its type.")
    ] = None,
    config: _Config = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="The rule as the configuration here has it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show why rules acted on an event or did not: conditions, windows at that moment, and what held them back."""
    from ..errors import UnknownName

    body: JsonObject = {"event": event}
    if rule is not None:
        body["automation"] = rule
        if draft:
            found = _drafted(rule, config)
            if found is None:
                raise UnknownName("automation", rule, known=[])
            body["rules"] = {rule: found.to_json()}

    async def whole(hark: Hark) -> JsonObject:
        return await hark.explain(
            {**body, "event": event if event.isdigit() else await event_id_of(hark, event)}
        )

    made = ask(whole)
    show(made, explain_text(made), as_json=as_json)


def explain_text(made: JsonObject) -> str:
    about: Any = made["event"]
    lines = [f"{about['type']} {plain(about['subject'])}  (event {about['id']}, sequence {about['seq']})"]
    rules: Any = made["rules"]
    decision: Any = made.get("decision")
    if decision:
        lines.append(_decided(decision, is_explained="led_by" in made))
    elif about["type"] == "automation.due":
        lines.append(
            "a wait or a window was over at this moment; the decisions behind it in the log say whose"
        )
    elif not rules:
        lines.append(f"none of {made['rules_looked_at']} rules listens to events of this type")
    effects: Any = made.get("effects") or {}
    for rule in rules:
        lines += ["", f"{rule['automation']}: {rule['verdict']}"]
        for look in rule["looks"]:
            lines.append(f"  {look['role']}{'' if look['matched'] else '  (no match)'}")
            lines += [f"    {line}" for p in look["predicates"] for line in _predicate(p)]
            if look["note"]:
                lines.append(f"    no  {look['note']}")
        for standing in rule["standings"]:
            key = f"key {standing['key']!r}: " if standing["key"] else ""
            held = f"; cooldown until {standing['cooldown_until']}" if standing.get("cooldown_until") else ""
            lines.append(f"  {key}before {_look(standing['before'])}; after {_look(standing['after'])}{held}")
            for asked in standing.get("waits", []):
                lines.append(f"    what {asked['role']} is waited for with")
                lines += [f"      {line}" for p in asked["predicates"] for line in _predicate(p)]
        for actual in rule["actual"]:
            reason = f" ({actual['reason']})" if actual.get("reason") else ""
            old = "" if actual["version"] == rule["version"] else ", by another version of the rule"
            lines.append(
                f"  in the log: {actual['what']}{reason} at {actual['at']}, decision {actual['id']}{old}"
            )
            told = effects.get(actual["id"]) or {}
            lines += [
                f"    action {a['kind']}: {a['state']} {plain(a['error'] or '')}".rstrip()
                for a in told.get("actions", [])
            ]
            lines += [f"    {m}" for m in told.get("messages", [])]
            lines += [
                f"    held back: {held['what']} by {held['by']}{', and dropped' if held['dropped'] else ''}"
                for held in told.get("held_back", [])
            ]
    led_by: Any = made.get("led_by")
    if led_by:
        lines += ["", explain_text(led_by)]
    return "\n".join(lines)


def _decided(decision: dict[str, Any], *, is_explained: bool) -> str:
    why = [w for w in (decision["reason"], "shadow" if decision["shadow"] else "") if w]
    if decision["until"]:
        why.append(f"until {decision['until']}")
    held = f" ({', '.join(why)})" if why else ""
    key = f", key {decision['key']!r}" if decision["key"] else ""
    n = len(decision["events"])
    rests = f"it rests on {n} event{'s' * (n != 1)}" + (
        ", the last of which is explained here" if is_explained else ""
    )
    return f"a decision of {decision['automation']}: {decision['what']}{held}{key}, count {decision['count']}; {rests}"


def _predicate(p: dict[str, Any], indent: str = "") -> list[str]:
    seen = f": saw {plain(p['seen'])}" if p.get("seen") is not None else ""
    note = f" ({p['note']})" if p.get("note") else ""
    path = f"{p['path']} " if p["path"] else ""
    out = [f"{indent}{'ok' if p['ok'] else 'no'}  {path}{p['wanted']}{seen}{note}"]
    for inner in p.get("inner") or []:
        out += _predicate(inner, indent + "  ")
    return out


def _waits(waits: Any) -> str:
    """Return the waits of a sequence in words, the same ones once."""
    said: dict[str, int] = {}
    for w in waits:
        asks = f" for {plain(w['asks'])}" if w.get("asks") else ""
        text = f"step {w['step'] + 1} of {w['of']}{asks}: {w['has']} of {w['needs']}"
        said[text] = said.get(text, 0) + 1
    shown = [text + (f" ({n} times)" if n > 1 else "") for text, n in said.items()]
    return "waiting at " + ", ".join(shown) if shown else "nothing waits"


def _look(look: dict[str, Any]) -> str:
    parts = []
    for name, value in look.items():
        if name == "waits":
            parts.append(_waits(value))
        elif isinstance(value, list):
            shown = (
                ", ".join(" ".join(f"{k} {plain(v)}" for k, v in item.items()) for item in value) or "none"
            )
            parts.append(f"{name}: {shown}")
        elif value is not None:
            parts.append(f"{name.replace('_', ' ')} {plain(value)}")
    return ", ".join(parts) or "nothing"
