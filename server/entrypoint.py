"""What can be known of a flow's entrypoint by reading its file, without running it.

A configuration is checked in the server's process; importing the flows there would run everybody's module code in it.
So files are parsed, not imported: a missing file, a syntax error and a missing function are found, a failing import
is found by the worker that runs it.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from ..engine.code.signature import schema_of
from ..errors import DefinitionError
from ..vocabulary import JsonObject

__all__ = ["FlowSource", "inspect_entrypoint"]


@dataclass(frozen=True, slots=True)
class FlowSource:
    """What a file says of a flow.

    Attributes:
        flow_name: the name its decorator gives it, None when it gives none or cannot be read.
        parameters: names it takes, None when they cannot be known; required: those without a default.
        properties: the JSON schema of each parameter, as far as it tells.
    """

    flow_name: str | None
    parameters: frozenset[str] | None
    required: frozenset[str]
    properties: JsonObject = field(default_factory=dict)

    def problem_with(self, given: JsonObject) -> str:
        """Return what is wrong with calling it with these parameters, or nothing."""
        if self.parameters is None:
            return ""
        for name in given:
            if name not in self.parameters:
                near = get_close_matches(name, sorted(self.parameters), n=1)
                takes = ", ".join(sorted(self.parameters)) or "none"
                tail = f"; did you mean {near[0]!r}?" if near else f"; it takes: {takes}"
                return f"the flow has no parameter {name!r}{tail}"
        return ""


def inspect_entrypoint(entrypoint: str, folder: Path) -> FlowSource:
    """Return what the entrypoint's file says, relative files being looked for in ``folder``.

    Raises:
        DefinitionError: no such file or module, it is not Python, or the function is not in it.
    """
    where, _, what = entrypoint.rpartition(":")
    path = _file_of(where, folder)
    if path is None:
        return FlowSource(None, None, frozenset())
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as exc:
        raise DefinitionError(
            f"{where} is not Python: line {exc.lineno}: {exc.msg}",
            hint="the flow cannot be imported until it is",
        ) from exc
    except (OSError, ValueError) as exc:
        raise DefinitionError(f"{where} cannot be read: {exc}") from exc
    first = what.partition(".")[0]
    names = _names(tree.body)
    if first not in names:
        functions = {
            n: node for n, node in names.items() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        flows = [n for n, node in functions.items() if _is_a(node, "flow")]
        others = [n for n, node in names.items() if n not in functions or not _is_a(functions[n], "task")]
        near = get_close_matches(first, sorted(flows), n=1) or get_close_matches(first, sorted(others), n=1)
        shown = sorted(flows or functions)[:10]
        hint = f"did you mean {near[0]!r}?" if near else f"it defines: {', '.join(shown) or 'no functions'}"
        if any(isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names) for n in tree.body):
            return FlowSource(None, None, frozenset())
        raise DefinitionError(f"{where} has no function {what!r}", hint=hint)
    node = names[first]
    if "." in what or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return FlowSource(None, None, frozenset())
    return FlowSource(_decorated_name(node), *_parameters(node))


def _file_of(where: str, folder: Path) -> Path | None:
    """Return the source file, or None for a module that exists and has none."""
    if where.endswith(".py") or "/" in where:
        path = Path(where) if Path(where).is_absolute() else folder / where
        if not path.is_file():
            beside = sorted(str(p.relative_to(folder)) for p in _python_files(folder))
            near = get_close_matches(where, beside, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"files are looked for in {folder}"
            raise DefinitionError(f"there is no file {where!r}", hint=hint)
        return path
    inside = folder.joinpath(*where.split("."))
    for path in (inside.with_suffix(".py"), inside / "__init__.py"):
        if path.is_file():
            return path
    try:
        # Only the parents of a dotted module are imported by this, and only if nothing in the folder has the name.
        spec = (
            importlib.util.find_spec(where)
            if "." not in where
            else importlib.util.find_spec(where.split(".")[0])
        )
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise DefinitionError(
            f"there is no module {where!r}",
            hint=f"write a file as 'path/file.py:function'; looked in {folder}",
        )
    if "." in where or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _python_files(folder: Path, *, most: int = 500) -> list[Path]:
    found: list[Path] = []
    for pattern in ("*.py", "*/*.py", "*/*/*.py"):
        for path in folder.glob(pattern):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                found.append(path)
            if len(found) >= most:
                return found
    return found


def _names(body: Iterable[ast.stmt]) -> dict[str, ast.AST]:
    names: dict[str, ast.AST] = {}
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names[node.name] = node
            case ast.Import() | ast.ImportFrom():
                names.update({(a.asname or a.name).split(".")[0]: node for a in node.names})
            case ast.Assign():
                names.update(
                    {
                        t.id: node
                        for target in node.targets
                        for t in ast.walk(target)
                        if isinstance(t, ast.Name)
                    }
                )
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = node
            case ast.If() | ast.With():
                names.update(_names(node.body) | _names(getattr(node, "orelse", [])))
            case ast.Try():
                names.update(_names([*node.body, *node.orelse, *node.finalbody]))
                for handler in node.handlers:
                    names.update(_names(handler.body))
            case _:
                pass
    return names


def _is_a(node: ast.FunctionDef | ast.AsyncFunctionDef, word: str) -> bool:
    """Return whether a function stands under this decorator: ``@flow``, ``@hark.flow``, ``@flow(retries=2)``."""
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if getattr(called, "id", getattr(called, "attr", "")) == word:
            return True
    return False


def _decorated_name(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            word = getattr(decorator.func, "id", getattr(decorator.func, "attr", ""))
            for keyword in decorator.keywords:
                if word == "flow" and keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
    return None


def _parameters(
    node: ast.FunctionDef | ast.AsyncFunctionDef,
) -> tuple[frozenset[str] | None, frozenset[str], JsonObject]:
    schema = schema_of(node)
    if schema is None or schema["additionalProperties"]:
        return None, frozenset(), {}
    return frozenset(schema["properties"]), frozenset(schema["required"]), schema["properties"]
