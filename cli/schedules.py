"""``hark schedules``: when deployments run by themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from .call import AsJson, ago, ask, group, show, table

schedules = group("When deployments run by themselves: ls, next, pause, resume.")

_Key = Annotated[str, typer.Argument(help="The schedule: <deployment>/<number or name>.")]


@schedules.command("ls")
def ls(
    deployment: Annotated[str | None, typer.Option(help="Only of this deployment.")] = None,
    as_json: AsJson = False,
) -> None:
    """List schedules and when each fires next."""
    items = ask(lambda h: h.schedules(deployment=deployment))
    rows = []
    for s in items:
        following = s.get("next")
        first = following[0] if isinstance(following, list) and following else None
        rows.append([s["key"], s.get("description"), first, ago(first), s.get("paused")])
    show(
        items, table(["SCHEDULE", "WHEN", "NEXT", "", "PAUSED"], rows, empty="no schedules"), as_json=as_json
    )


@schedules.command("next")
def next_(
    deployment: Annotated[str | None, typer.Argument(help="Only of this deployment.")] = None,
    count: Annotated[int, typer.Option(min=1, max=100, help="So many of each schedule.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show the next slots, soonest first, by the schedule's clock and in UTC; and why some of them do not fire."""
    items = ask(lambda h: h.next_slots(deployment=deployment, count=count))
    rows = [
        [
            _clock(i["local"]),
            i["timezone"],
            _clock(i["at"]),
            ago(i["at"]),
            i["schedule"],
            i["excluded"] or i["note"] or "",
        ]
        for i in items
    ]
    head = ["LOCAL", "", "UTC", "", "SCHEDULE", ""]
    show([*items], table(head, rows, empty="nothing will fire"), as_json=as_json)


def _clock(stamp: object) -> str:
    """Return a moment as people read it: ``Fri 2026-12-25 06:00:00``, with the offset where that is not zero."""
    from datetime import datetime

    moment = datetime.fromisoformat(str(stamp))
    offset = moment.strftime("%z") if moment.utcoffset() else ""
    return f"{moment:%a %Y-%m-%d %H:%M:%S} {offset}".rstrip()


@schedules.command("pause")
def pause(key: _Key, as_json: AsJson = False) -> None:
    """Stop a schedule."""
    show(ask(lambda h: h.pause("schedule", key)), f"{key} is paused", as_json=as_json)


@schedules.command("resume")
def resume(key: _Key, as_json: AsJson = False) -> None:
    """Let a schedule fire again."""
    show(ask(lambda h: h.resume("schedule", key)), f"{key} goes on", as_json=as_json)
