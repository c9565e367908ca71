"""``hark migrate``: rules and flows of other tools as those of Hark; what has no equivalent is listed with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, group, to_json

if TYPE_CHECKING:
    from ..automations.migrate.migration import Converted, Note, Sections
    from ..server.yaml_source import Node
    from ..vocabulary import JsonValue

migrate = group("Rules and flows of other tools: prefect, eda, airflow.")

_Path = Annotated[Path, typer.Argument(help="A YAML or JSON file, or a folder of them.")]
_Out = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the configuration here; default: stdout.")
]
_Strict = Annotated[bool, typer.Option("--strict", help="Exit 1 if anything has no equivalent.")]


@migrate.command("prefect")
def prefect(path: _Path, output: _Out = None, strict: _Strict = False, as_json: AsJson = False) -> None:
    """Convert exported Prefect automations (`prefect automation inspect --yaml`, or `automations:` of a file)."""
    from ..automations.migrate.migrate_prefect import convert_prefect

    _migrate(path, convert_prefect, output=output, strict=strict, as_json=as_json)


@migrate.command("eda")
def eda(path: _Path, output: _Out = None, strict: _Strict = False, as_json: AsJson = False) -> None:
    """Convert rulebooks of Event-Driven Ansible."""
    from ..automations.migrate.migrate_eda import convert_rulebook

    _migrate(path, convert_rulebook, output=output, strict=strict, as_json=as_json)


@migrate.command("airflow")
def airflow(
    path: Annotated[Path, typer.Argument(help="A DAG file, or a folder of them.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write flows and hark.yaml into this folder; default: only the report."
        ),
    ] = None,
    strict: _Strict = False,
    as_json: AsJson = False,
) -> None:
    """Convert Airflow DAG files to flows and a hark.yaml. Nothing of them is run, and Airflow is not needed."""
    from ..automations.migrate.migrate_airflow import convert_airflow
    from ..errors import DefinitionError

    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise DefinitionError(f"{path} is no file, and no folder with Python in it")
    sections: Sections = {}
    written: dict[str, str] = {}
    notes: list[dict[str, JsonValue]] = []
    dags = 0
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            made = convert_airflow(_text(file), file=name, sections=sections)
        except DefinitionError as exc:
            raise DefinitionError(f"{file}: {exc}") from exc
        dags += made.dags
        notes += [
            {"file": str(file), "line": n.line, "column": n.column, "message": n.message, "lost": n.is_lost}
            for n in made.notes
        ]
        if made.code:
            written[name] = made.code
        else:
            message = "there is no DAG in it; if flows import it, copy it beside them"
            notes.append({"file": str(file), "line": 1, "column": 1, "message": message, "lost": False})
    if output is not None and dags:
        _write_all(output, {**written, "hark.yaml": _yaml(sections)})
    if as_json:
        typer.echo(to_json({"files": written, "config": sections, "notes": notes}))
    else:
        _tell(notes, count=dags)
        if output is None and dags:
            typer.echo("nothing was written: name a folder with -o", err=True)
    if not dags:
        typer.echo(f"there is no DAG in {path}, so nothing was written", err=True)
        raise typer.Exit(1)
    if strict and any(note["lost"] for note in notes):
        raise typer.Exit(1)


def _write_all(folder: Path, files: dict[str, str]) -> None:
    """Write the files into the folder, none of which may be there."""
    from ..errors import DefinitionError

    there = [name for name in files if (folder / name).exists()]
    if there:
        raise DefinitionError(
            f"{folder / there[0]} is there already", hint="name another folder, or remove it first"
        )
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _tell(notes: list[dict[str, JsonValue]], *, count: int) -> None:
    """Say on stderr what has to be looked at."""
    for note in notes:
        word = "not converted" if note["lost"] else "look at this"
        typer.echo(f"{note['file']}:{note['line']}:{note['column']}: {word}: {note['message']}", err=True)
    lost = sum(1 for note in notes if note["lost"])
    typer.echo(f"{count} converted, {lost} not converted, {len(notes) - lost} to look at", err=True)


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
        if any(sections.values()):
            _write(_yaml(sections), output)
        _tell(notes, count=sum(len(entries) for entries in sections.values()))
    if not any(sections.values()):
        typer.echo(f"nothing in {path} could be converted, so nothing was written", err=True)
        raise typer.Exit(1)
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
