"""How a command talks: one call of the service, errors to exit codes, listings as text or JSON.

Exit codes: 0 done, 1 it failed, 2 asked wrongly. What people read goes to stdout, errors to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from ..errors import HarkError, UnknownName

if TYPE_CHECKING:
    from ..server.client import Hark
    from ..vocabulary import JsonObject, JsonValue

__all__ = ["AsJson", "Group", "ask", "fail", "group", "pairs", "show", "table", "to_json"]

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


class Group(TyperGroup):
    """A group of commands that turns errors of the tree into a message and an exit code."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name.

        Raises:
            UnknownName: there is none; it has the one that was meant, or those there are.
        """
        found = self.find_command(ctx, cmd_name)
        if found is None:
            unknown = UnknownName(f"command of `{ctx.command_path}`", cmd_name, known=self.list_commands(ctx))
            if unknown.suggestion is None:
                unknown.hint += f"; `{ctx.command_path} --help` says what each does"
            raise unknown
        return found

    def find_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, or None."""
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HarkError as exc:
            fail(exc)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BaseExceptionGroup as exc:
            one = _only(exc)
            if isinstance(one, HarkError):
                fail(one)
            raise


def group(help: str) -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(
        cls=Group, help=help, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )  # fmt: skip


def _only(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def exit_code_of(exc: HarkError) -> int:
    """Return 2 when what was asked was wrong, 1 when it could not be done."""
    from ..errors import AccessDenied, DefinitionError

    status = getattr(exc, "status", None)
    if status is not None:
        return 2 if status in (400, 401, 404, 405, 413, 415, 422) else 1
    return 2 if isinstance(exc, DefinitionError | AccessDenied) else 1


def fail(exc: HarkError) -> None:
    """Say what went wrong and what to do next, and leave with its code."""
    lines = [f"error: {exc}"]
    if exc.hint:
        lines.append(f"  → {exc.hint}")
    problem = getattr(exc, "problem", None)
    faults = problem.get("faults") if isinstance(problem, dict) else None
    lines += [
        f"  {fault['file']}:{fault['line']}:{fault['column']}: {fault['message']}"
        for fault in (faults if isinstance(faults, list) else [])
        if isinstance(fault, dict) and "line" in fault and str(fault.get("message")) not in str(exc)
    ]
    typer.echo("\n".join(lines), err=True)
    raise typer.Exit(exit_code_of(exc))


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """Run ``main`` to its end and return what it returns, errors unwrapped of their groups."""
    import anyio

    async def entry() -> T:
        return await main()

    try:
        return anyio.run(entry)
    except BaseExceptionGroup as exc:
        one = _only(exc)
        if one is exc:
            raise
        raise one from None


def ask(call: Callable[[Hark], Awaitable[T]]) -> T:
    """Run one call against the server and return its answer."""
    from ..server.client import Hark

    async def main() -> T:
        async with Hark() as hark:
            return await call(hark)

    return run_async(main)


# --- printing ---------------------------------------------------------------------------------------------


def to_json(value: Any) -> str:
    """Return ``value`` as JSON: indented for a terminal, one line otherwise."""
    import orjson

    option = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    return orjson.dumps(value, default=str, option=option).decode()


def plain(value: Any) -> str:
    """Return one cell: no line breaks, nothing that could steer a terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        import orjson

        value = orjson.dumps(value, default=str).decode()
    return "".join(c if c.isprintable() else " " for c in str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "none") -> str:
    """Return aligned columns; the last one is not cut, the others are at 60 characters."""
    cells = [[_cell(v) for v in row] for row in rows]
    if not cells:
        return empty
    for row in cells:
        row[:-1] = [c if len(c) <= 60 else c[:59] + "…" for c in row[:-1]]
    widths = [max(len(h), *(len(row[i]) for row in cells)) for i, h in enumerate(head)]
    lines = [list(head), *cells]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in lines
    )


def _cell(value: Any) -> str:
    """Return a value of a table; several texts as people write them."""
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(plain(v) for v in value) or "-"
    return plain(value)


def pairs(value: JsonObject, *, indent: str = "") -> str:
    """Return an object as ``key: value`` lines, nested objects indented."""
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines.append(f"{indent}{key}:")
            lines.append(pairs(item, indent=indent + "  "))
        elif isinstance(item, list) and item and all(isinstance(i, dict) for i in item):
            lines.append(f"{indent}{key}:")
            for one in item:
                body = pairs(one, indent=indent + "    ") if isinstance(one, dict) else ""
                lines.append(f"{indent}  - " + body.lstrip())
        elif isinstance(item, str) and "\n" in item:
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}  {plain(line)}" for line in item.splitlines()]
        else:
            lines.append(f"{indent}{key}: {plain(item)}")
    return "\n".join(lines)


def show(value: JsonValue | list[JsonObject], text: str, *, as_json: bool) -> None:
    """Print ``value`` as JSON, or ``text`` for people."""
    typer.echo(to_json(value) if as_json else text)


def ago(stamp: object) -> str:
    """Return how long ago an RFC 3339 time was, roughly: ``12s``, ``3m``, ``5h``, ``2d``."""
    from datetime import UTC, datetime

    if not isinstance(stamp, str):
        return "-"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    sign, seconds = ("in " if seconds < 0 else ""), abs(seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{sign}{seconds / size:.0f}{unit}"
    return f"{sign}{seconds:.0f}s"


def when(stamp: object) -> str:
    """Return when something ends or ended, from now."""
    text = ago(stamp)
    return text if text.startswith(("in ", "-")) else f"{text} ago"


def key_values(items: Sequence[str]) -> JsonObject:
    """Return ``["a=1", "b=text"]`` as an object; values that are JSON keep their type.

    Raises:
        typer.BadParameter: an item without ``=``, or with a number that would lose digits.
    """
    from ..bus.exact import NotExact, loads

    out: JsonObject = {}
    for item in items:
        key, sep, text = item.partition("=")
        if not sep or not key:
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE")
        try:
            out[key] = loads(text)
        except NotExact as exc:
            raise typer.BadParameter(f"{key}: {exc}") from exc
        except ValueError:
            out[key] = text
    return out


def json_argument(text: str | None) -> JsonValue:
    """Return the JSON given on the command line, or of stdin for ``-``.

    Raises:
        typer.BadParameter: it does not parse.
    """
    from ..bus.exact import loads

    if text is None:
        return None
    try:
        return loads(sys.stdin.buffer.read() if text == "-" else text)
    except ValueError as exc:
        raise typer.BadParameter(f"""not JSON: {exc}; write it as '{{"amount": 1}}'""") from exc
