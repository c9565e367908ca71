"""The docs are held to the code: a setting, command, operator, preset or kind of event that they leave out fails here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hark.bus.event import OWN_WORDS
from hark.config import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def test_every_setting_is_in_the_docs() -> None:
    """A setting nobody can read about does not exist."""
    names = []
    for name, field in Settings.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        prefix = f"HARK_{name.upper()}"
        names += [f"{prefix}__{inner.upper()}" for inner in section] if section else [prefix]
    assert [n for n in names if f"`{n}`" not in page("settings")] == []


def test_every_command_is_in_the_docs() -> None:
    """`hark …`, all of it, groups and what is in them."""
    import typer
    from hark.cli.main import app

    def commands(command: object, words: tuple[str, ...]) -> list[str]:
        inner = getattr(command, "commands", None)
        if not inner:
            return [" ".join(words)]
        return [name for word, one in inner.items() for name in commands(one, (*words, word))]

    missing = [c for c in commands(typer.main.get_command(app), ("hark",)) if f"`{c}" not in page("cli")]
    assert missing == []


@pytest.mark.parametrize("word", sorted(OWN_WORDS - {"hark", "limit", "artifact", "block"}))
def test_every_kind_of_own_event_is_in_the_docs(word: str) -> None:
    """What Hark itself emits can be looked up before a rule is written on it."""
    assert f"`{word}." in page("events")
