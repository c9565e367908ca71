"""``hark plan``, ``apply``, ``lint``, ``test``: the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .call import AsJson, ask, show, to_json

if TYPE_CHECKING:
    from ..server.client import Hark
    from ..server.manifest import Manifest
    from ..vocabulary import JsonObject

_Path = Annotated[
    Path | None, typer.Argument(help="hark.yaml or a folder; default: HARK_CONFIG, else hark.yaml here.")
]
_Prune = Annotated[
    bool, typer.Option("--prune", help="Also remove what came from the configuration and is gone from it.")
]


def _find(path: Path | None) -> Path:
    from ..config import load_settings
    from ..errors import DefinitionError
    from ..server.address import config_path

    found = config_path(load_settings(), path)
    if found is None:
        raise DefinitionError("there is no hark.yaml here", hint="name a file or folder, or set HARK_CONFIG")
    return found


async def _load(hark: Hark, path: Path) -> Manifest:
    from ..server.manifest import load_manifest

    live: Any = await hark.config_names()
    manifest = load_manifest(path, live=live)
    for warning in manifest.warnings:
        typer.echo(str(warning), err=True)
    return manifest


def plan(
    path: _Path = None,
    prune: _Prune = False,
    impact: Annotated[
        bool,
        typer.Option("--impact/--no-impact", help="What changed rules would have done over the last 7 days."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Show what applying the configuration would change, and what changed rules would have done lately."""
    from ..server.plan_text import plan_text

    found = _find(path)

    async def call(hark: Hark) -> JsonObject:
        return await hark.plan((await _load(hark, found)).to_json(), prune=prune, impact=impact)

    made = ask(call)
    show(made, plan_text(made), as_json=as_json)


def apply(path: _Path = None, prune: _Prune = False, as_json: AsJson = False) -> None:
    """Make live what the configuration says; nothing changes when it has a fault."""
    from ..server.plan_text import plan_text

    found = _find(path)

    async def call(hark: Hark) -> JsonObject:
        return await hark.apply((await _load(hark, found)).to_json(), prune=prune)

    made = ask(call)
    show(made, plan_text(made), as_json=as_json)


def lint(path: _Path = None, as_json: AsJson = False) -> None:
    """Check the configuration without a server: every fault with file, line and column."""
    from ..server.lint import lint_manifest
    from ..server.manifest import check_manifest

    found = _find(path)
    manifest, faults = check_manifest(found)
    faults = [*faults, *lint_manifest(manifest, whole=all(f.is_warning for f in faults))]
    errors = [f for f in faults if not f.is_warning]
    if as_json:
        typer.echo(to_json([f.to_json() for f in faults]))
    else:
        for fault in faults:
            typer.echo(str(fault), err=True)
        counted = ", ".join(
            "notifications" if b == "notifications" else _number(n, b.removesuffix("s"))
            for b in sorted({b for b, _ in manifest.records})
            if (n := len(manifest.names(b)))
        )
        typer.echo(
            f"{_number(len(errors), 'error')}, {_number(len(faults) - len(errors), 'warning')}; "
            f"{counted or 'nothing defined'}"
        )
    if errors:
        raise typer.Exit(1)


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def run_tests(
    path: _Path = None,
    rule: Annotated[list[str] | None, typer.Option("--rule", help="Only this rule.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the tests written inside rules, in virtual time; nothing is sent."""
    from ..errors import UnknownName
    from ..server.lint import run_rule_tests
    from ..server.manifest import load_manifest

    manifest = load_manifest(_find(path))
    known = manifest.names("automations")
    for name in rule or ():
        if name not in known:
            raise UnknownName("automation", name, known=known)
    results = run_rule_tests(manifest, rules=rule or None)
    failed = [r for r in results if not r["ok"]]
    if as_json:
        typer.echo(to_json(results))
    else:
        for r in results:
            typer.echo(f"{'ok    ' if r['ok'] else 'FAILED'}  {r['automation']}  {r['test']}")
            if not r["ok"]:
                typer.echo("        " + str(r["message"]).replace("\n", "\n        "))
        untested = len(known) - len({r["automation"] for r in results})
        tail = f"; {untested} rules have none" if untested and not rule else ""
        typer.echo(f"{len(results) - len(failed)} passed, {len(failed)} failed{tail}")
    if failed:
        raise typer.Exit(1)
