"""``hark migrate``: rules of other tools as a ``hark.yaml``; what has no equivalent is listed with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, group, to_json

if TYPE_CHECKING:
    from ..automations.migration import Converted, Note, Sections
    from ..server.yaml_source import Node
    from ..vocabulary import JsonValue

migrate = group("Rules of other tools as a hark.yaml: prefect, eda.")

_Path = Annotated[Path, typer.Argument(help="A YAML or JSON file, or a folder of them.")]
_Out = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the configuration here; default: stdout.")
]
_Strict = Annotated[bool, typer.Option("--strict", help="Exit 1 if anything has no equivalent.")]


@migrate.command("prefect")
def prefect(path: _Path, output: _Out = None, strict: _Strict = False, as_json: AsJson = False) -> None:
    """Convert exported Prefect automations (`prefect automation inspect --yaml`, or `automations:` of a file)."""
    from ..automations.migrate_prefect import convert_prefect

    _migrate(path, convert_prefect, output=output, strict=strict, as_json=as_json)


@migrate.command("eda")
def eda(path: _Path, output: _Out = None, strict: _Strict = False, as_json: AsJson = False) -> None:
    """Convert rulebooks of Event-Driven Ansible."""
    from ..automations.migrate_eda import convert_rulebook

    _migrate(path, convert_rulebook, output=output, strict=strict, as_json=as_json)


def _migrate(
    path: Path,
    convert: Callable[[object, Sections], Converted],
    *,
    output: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    from ..errors import DefinitionError
    from ..server.yaml_source import parse_yaml

    files = (
        sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml", ".json"))
        if path.is_dir()
        else [path]
    )
    if not files or not path.exists():
        raise DefinitionError(f"{path} is no file, and no folder with YAML or JSON in it")
    sections: Sections = {}
    notes: list[dict[str, JsonValue]] = []
    for file in files:
        source = parse_yaml(_text(file), str(file), is_config=False)
        for fault in source.faults:
            raise DefinitionError(f"{fault.at}: {fault.message}")
        if source.root is None:
            continue
        # Into what the other files gave: a webhook of the same name gets another, and so do its events.
        made = convert(source.root.value, sections)
        notes += [_note(note, source.root) for note in made.notes]
    if as_json:
        typer.echo(to_json({"config": sections, "notes": notes}))
    else:
        _write(_yaml(sections), output)
        for note in notes:
            word = "not converted" if note["lost"] else "look at this"
            typer.echo(f"{note['file']}:{note['line']}:{note['column']}: {word}: {note['message']}", err=True)
        count = sum(len(entries) for entries in sections.values())
        lost = sum(1 for note in notes if note["lost"])
        typer.echo(f"{count} converted, {lost} not converted, {len(notes) - lost} to look at", err=True)
    if strict and any(note["lost"] for note in notes):
        raise typer.Exit(1)


def _text(file: Path) -> str:
    from ..errors import DefinitionError

    try:
        return file.read_text("utf-8-sig")
    except OSError as exc:
        raise DefinitionError(f"{file} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise DefinitionError(f"{file} is not UTF-8 text") from exc


def _note(note: Note, root: Node) -> dict[str, JsonValue]:
    """Return a note with the place it is about: that of the deepest part of its path that was written."""
    at = root.at
    node: Node | None = root
    for part in note.loc:
        below = node.children.get(part) if node is not None else None
        if below is None:
            break
        at = node.keys.get(str(part), below.at) if node is not None else below.at
        node = below
    return {
        "file": at.file,
        "line": at.line,
        "column": at.column,
        "message": note.message,
        "lost": note.is_lost,
    }


def _yaml(sections: Sections) -> str:
    from io import StringIO

    from ruamel.yaml import YAML

    if not sections:
        return "{}\n"
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.width = 110
    writer.allow_unicode = True
    # Anchors for what happens to be equal are no help to the person who completes the file.
    writer.representer.ignore_aliases = lambda *_: True
    out = StringIO()
    writer.dump(sections, out)
    return out.getvalue()


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        from ..errors import DefinitionError

        raise DefinitionError(f"{output} is there already", hint="name another file, or remove it first")
    output.write_text(text)
