"""``hark limits``: named limits, who holds their slots and who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .call import AsJson, ago, ask, group, pairs, show, table

if TYPE_CHECKING:
    from ..vocabulary import JsonObject

limits = group("So many at once, or so many per time: ls, show, create, set, rm, reset.")

_Name = Annotated[str, typer.Argument(help="The limit; `tag:NAME` holds back tasks with that tag.")]
_Slots = Annotated[int | None, typer.Option(help="How many at once; 0: none.")]
_Rate = Annotated[str | None, typer.Option(help="How many per time, such as 100/m.")]
_Decay = Annotated[
    float | None, typer.Option(help="With --slots: so many become free by themselves each second.")
]
_Active = Annotated[
    bool | None, typer.Option("--active/--inactive", help="Inactive: as if it were not there.")
]


def _asked(slots: int | None, rate: str | None, decay: float | None, active: bool | None) -> JsonObject:
    found: dict[str, Any] = {"slots": slots, "rate": rate, "slot_decay_per_second": decay, "active": active}
    return {name: value for name, value in found.items() if value is not None}


def _line(limit: JsonObject) -> list[Any]:
    decay = limit.get("slot_decay_per_second")
    rate = limit.get("rate") or (f"{decay:g}/s" if isinstance(decay, float) and decay else None)
    return [
        limit["name"],
        limit.get("slots"),
        rate,
        limit.get("occupied"),
        limit.get("waiting"),
        limit.get("error") or limit.get("active"),
    ]


@limits.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List limits and how full they are."""
    items = ask(lambda h: h.limits())
    head = ["NAME", "SLOTS", "RATE", "OCCUPIED", "WAITING", "ACTIVE"]
    show(items, table(head, map(_line, items), empty="no limits"), as_json=as_json)


@limits.command("show")
def show_one(name: _Name, as_json: AsJson = False) -> None:
    """Show one limit: who holds its slots and who waits, in order."""
    found = ask(lambda h: h.limit(name))
    line = found.get("line")
    rows = []
    for one in line if isinstance(line, list) else []:
        assert isinstance(one, dict)
        process = one.get("process")
        where = f"{process['host']}:{process['pid']}" if isinstance(process, dict) and process else "-"
        state = "holds" if one["holds"] else "waits"
        rows.append([state, one["occupy"], one["holder"] or "-", where, ago(one["since"])])
    text = pairs({k: v for k, v in found.items() if k != "line"})
    if rows:
        text += "\n\n" + table(["", "SLOTS", "RUN", "PROCESS", "SINCE"], rows)
    show(found, text, as_json=as_json)


@limits.command("create")
def create(
    name: _Name,
    slots: _Slots = None,
    rate: _Rate = None,
    decay: _Decay = None,
    active: _Active = None,
    as_json: AsJson = False,
) -> None:
    """Make a limit, of slots or per time."""
    made = ask(lambda h: h.create_limit(name, **_asked(slots, rate, decay, active)))
    show(made, f"{name} is made", as_json=as_json)


@limits.command("set")
def change(
    name: _Name,
    slots: _Slots = None,
    rate: _Rate = None,
    decay: _Decay = None,
    active: _Active = None,
    as_json: AsJson = False,
) -> None:
    """Make a limit, or change what is said of it; who waits hears of it at once."""
    from ..server.client import ApiError, Hark

    async def merge(hark: Hark) -> JsonObject:
        asked = _asked(slots, rate, decay, active)
        try:
            now = await hark.limit(name)
        except ApiError as exc:
            if exc.status != 404:
                raise
            now = {}
        kept = {k: v for k in ("slots", "rate", "slot_decay_per_second", "active") if (v := now.get(k))}
        if now.get("active") is False:
            kept["active"] = False
        # A limit is of one kind, so saying one of them takes the other away.
        for said, other in (("slots", ("rate",)), ("rate", ("slots", "slot_decay_per_second"))):
            if said in asked:
                kept = {k: v for k, v in kept.items() if k not in other}
        if "slots" not in asked and "rate" not in asked and now.get("slots") == 0:
            kept["slots"] = 0
        return await hark.set_limit(name, **{**kept, **asked})

    show(ask(merge), f"{name} is set", as_json=as_json)


@limits.command("rm")
def rm(name: _Name) -> None:
    """Remove a limit; nobody waits for it any more."""
    ask(lambda h: h.remove_limit(name))
    typer.echo(f"{name} is removed")


@limits.command("reset")
def reset(name: _Name, as_json: AsJson = False) -> None:
    """Take every slot from whoever has it; who waits asks again."""
    found = ask(lambda h: h.reset_limit(name))
    show(found, f"{found['removed']} slots or places in the line were taken away", as_json=as_json)
