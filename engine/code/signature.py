"""What a flow takes, read from the text of its function: so that a request can be refused before anything is imported.

Says only what is certain. A function that something other than ``@flow`` wraps may take something else, so nothing is
said of it; a type that is not one of JSON's own is left to the flow's annotations, when the run begins. Pure.
"""

from __future__ import annotations

import ast
from typing import Any

__all__ = ["schema_of"]

_TYPES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "list": "array",
    "dict": "object",
}


def schema_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Any] | None:
    """Return the JSON schema of a flow's parameters: their names, which are required, and plain types.

    None if the text does not tell.
    """
    if len(function.decorator_list) != 1:
        return None
    decorator = function.decorator_list[0]
    keywords: list[ast.keyword] = []
    if isinstance(decorator, ast.Call):
        keywords, decorator = decorator.keywords, decorator.func
    if _last_name(decorator) != "flow":
        return None
    typed = not any(word.arg in ("validate_parameters", None) for word in keywords)
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    required = [arg.arg for arg in plain[: len(plain) - len(given.defaults)]]
    required += [
        arg.arg for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None
    ]
    properties = {
        arg.arg: _schema_of_type(arg.annotation) if typed else {} for arg in (*plain, *given.kwonlyargs)
    }
    if given.vararg is not None:
        properties[given.vararg.arg] = {"type": "array"}
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": given.kwarg is not None,
    }


def _schema_of_type(annotation: ast.expr | None) -> dict[str, Any]:
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    if isinstance(annotation, ast.Name) and annotation.id in _TYPES:
        return {"type": _TYPES[annotation.id]}
    return {}


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
