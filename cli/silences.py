"""``hark silences``: for a while, alerts that match are told to nobody."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ask, group, plain, show, table, when

if TYPE_CHECKING:
    from ..vocabulary import JsonObject, JsonValue

_NO_WORDS = ("true", "false", "null")
"""What is read as a value of its own where it has no quotes."""

silences = group("For a while, alerts that match are told to nobody: ls, add, expire.")


def user() -> str:
    """Return who sits here, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def in_words(match: JsonValue) -> str:
    """Return a condition as ``add`` is given it; what cannot be said so as it is kept."""
    if not isinstance(match, dict) or not match:
        return plain(match)
    return ", ".join(_one_in_words(path, want) for path, want in match.items())


def _one_in_words(path: str, want: JsonValue) -> str:
    sign, value = "=", want
    if isinstance(value, dict) and value.keys() == {"not"}:
        sign, value = "!=", value["not"]
    if isinstance(value, dict) and value.keys() == {"regex"}:
        pattern = str(value["regex"])
        if pattern.startswith("^(?:") and pattern.endswith(")$"):
            return f"{path}{'!' if sign == '!=' else '='}~{plain(pattern[4:-2])}"
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], int | float):
        return f"{path}{sign}{plain(value[1])}"  # a number, which labels have as a text
    if isinstance(value, str):
        is_word = value[:1].isalpha() and not set(value) & set(' ,"') and value not in _NO_WORDS
        return f"{path}{sign}{plain(value)}" if is_word else f'{path}{sign}"{plain(value)}"'
    return f"{path}: {plain(want)}"


@silences.command("ls")
def ls(
    expired: Annotated[bool, typer.Option("--expired", help="Also those that are over.")] = False,
    as_json: AsJson = False,
) -> None:
    """List silences."""
    items = ask(lambda h: h.silences(expired=expired))
    rows = [
        [
            s["id"],
            s.get("state"),
            in_words(s.get("match")),
            when(s.get("ends_at")),
            s.get("created_by"),
            s.get("comment"),
        ]
        for s in items
    ]
    show(
        items,
        table(["ID", "STATE", "MATCH", "ENDS", "BY", "WHY"], rows, empty="no silences"),
        as_json=as_json,
    )


@silences.command("add")
def add(
    matchers: Annotated[
        list[str], typer.Argument(help="name=value, name!=value, name=~regex, name!~regex; all have to hold.")
    ],
    lasting: Annotated[str, typer.Option("--for", help="How long, such as 2h.")] = "1h",
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    by: Annotated[str | None, typer.Option(help="Who; default: you.")] = None,
    starts: Annotated[str | None, typer.Option(help="From when on, RFC 3339; default: now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Silence alerts whose labels or event match."""
    words: list[JsonValue] = [*matchers]
    body: JsonObject = {
        "matchers": words, "for": lasting, "comment": comment, "created_by": by if by is not None else user(),
    }  # fmt: skip
    if starts is not None:
        body["starts_at"] = starts
    made = ask(lambda h: h.add_silence(body))
    notes = made.pop("notes", None)
    for note in notes if isinstance(notes, list) else ():
        typer.echo(f"note: {note}", err=True)
    show(
        made, f"{made['id']} silences {in_words(made.get('match'))} until {made['ends_at']}", as_json=as_json
    )


@silences.command("expire")
def expire(
    silence: Annotated[str, typer.Argument(help="Its id, or the beginning of it.")], as_json: AsJson = False
) -> None:
    """End a silence now; what it held back and is still open is told."""
    ended = ask(lambda h: h.expire_silence(silence))
    show(ended, f"{ended['id']} is over", as_json=as_json)
