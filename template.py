"""Sandboxed Jinja2, for texts and parameters that people write into rules, webhooks and channels.

A template cannot reach attributes of Python objects that begin with an underscore, cannot call anything but the
filters and functions given here, and is bounded in its steps and in the length of what it makes (``sandbox.py``). Whole-value
expressions keep their type: ``"{{ event.data.ids }}"`` gives a list, ``"n={{ event.data.n }}"`` gives text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError as _JinjaError
from jinja2 import TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import UndefinedError
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from .errors import TemplateError
from .sandbox import ENV, MAX_OUTPUT_CHARS, as_json, bounded, finished
from .vocabulary import JsonValue

__all__ = [
    "MAX_OUTPUT_CHARS",
    "check_template",
    "names_in",
    "render",
    "render_value",
    "template_names",
    "template_paths",
    "template_roots",
]

_MAX_SOURCE_CHARS = 65_536

# Beside jinja's own: nesting deeper than Python's parser goes, and numbers longer than it reads.
_UNREADABLE = (_JinjaError, RecursionError, ValueError, SyntaxError, MemoryError, OverflowError)

_WHOLE = re.compile(r"\s*\{\{(?P<expr>(?:(?!\}\}|\{\{).)+)\}\}\s*", re.DOTALL)


_KINDS = {
    "dict": "the mapping",
    "list": "the list",
    "str": "the text",
    "int": "the number",
    "float": "the number",
    "bool": "true or false",
}
_KIND = re.compile(r"'?\b(\w+) object'? has no (?:attribute )?")


def _in_our_words(message: str) -> str:
    """Return what jinja says of a value that is not there, without types of Python: ``the mapping has no 'n'``."""
    message = message.replace("'None' has no attribute ", "null has no ")
    return _KIND.sub(lambda m: f"{_KINDS.get(m[1], f'the {m[1]}')} has no ", message)


def _explain(exc: Exception, source: str) -> TemplateError:
    shown = source if len(source) <= 80 else source[:77] + "…"
    if isinstance(exc, TemplateSyntaxError):
        return TemplateError(f"template {shown!r} does not parse: {exc.message}")
    if isinstance(exc, UndefinedError):
        return TemplateError(
            f"template {shown!r}: {_in_our_words(exc.message or '')}",
            hint="use `| default('…')` where a value may be missing",
        )
    return TemplateError(f"template {shown!r} failed: {str(exc) or type(exc).__name__}")


@lru_cache(maxsize=4096)
def _compiled(source: str) -> tuple[str, Any]:
    """Return (kind, thing): a literal, an expression to evaluate, or a template to render."""
    if len(source) > _MAX_SOURCE_CHARS:
        raise TemplateError(
            f"a template of {len(source)} characters is too long (at most {_MAX_SOURCE_CHARS})"
        )
    if "{{" not in source and "{%" not in source and "{#" not in source:
        return "literal", source
    try:
        whole = _WHOLE.fullmatch(source)
        if whole:
            try:
                expression = whole["expr"].strip()
                made = ENV.compile_expression(expression, undefined_to_none=False)
                return "expression", (_keys_of(expression), made)
            except TemplateSyntaxError:
                pass  # such as "{{ '}}' }}": let the whole parser have its say
        if _OTHERS.search(source):
            _refuse_others(source)
        return "template", ENV.from_string(source)
    except _UNREADABLE as exc:
        raise _explain(exc, source) from exc


_OTHERS = re.compile(r"\b(include|import|extends)\b")


def _refuse_others(source: str) -> None:
    """Raise ``TemplateError`` if a template reads others: there are none beside it."""
    for node in ENV.parse(source).find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        word = {"FromImport": "import"}.get(type(node).__name__, type(node).__name__.lower())
        raise TemplateError(
            f"template {source[:80]!r}: there are no other templates that `{word}` could read",
            hint="write out what it would bring",
        )


def check_template(source: str) -> None:
    """Raise ``TemplateError`` if ``source`` does not parse or uses a filter that does not exist."""
    _compiled(source)


@contextmanager
def _reading(source: str) -> Iterator[nodes.Template]:
    """Give the tree of a template; what cannot be read, or walked, is a ``TemplateError``."""
    try:
        yield ENV.parse(source)
    except _UNREADABLE as exc:
        raise _explain(exc, source) from exc


@lru_cache(maxsize=4096)
def template_names(source: str) -> frozenset[str]:
    """Return the dotted names a template reads from its context, such as ``secrets.slack_url`` or ``event``."""
    with _reading(source) as tree:
        names = {n.name for n in tree.find_all(nodes.Name) if n.ctx == "load"}
        for attribute in tree.find_all(nodes.Getattr):
            if isinstance(attribute.node, nodes.Name):
                names.add(f"{attribute.node.name}.{attribute.attr}")
        for item in tree.find_all(nodes.Getitem):
            if isinstance(item.node, nodes.Name) and isinstance(item.arg, nodes.Const):
                names.add(f"{item.node.name}.{item.arg.value}")
    return frozenset(names)


def names_in(value: JsonValue) -> frozenset[str]:
    """Return the names that the templates inside a JSON value read."""
    if isinstance(value, str):
        return template_names(value) if "{" in value else frozenset()
    if isinstance(value, list):
        return frozenset().union(*(names_in(item) for item in value))
    if isinstance(value, dict):
        return frozenset().union(*(names_in(key) | names_in(item) for key, item in value.items()))
    return frozenset()


@lru_cache(maxsize=4096)
def template_roots(source: str) -> frozenset[str]:
    """Return the names a template reads from its context, and does not set itself."""
    with _reading(source) as tree:
        return frozenset(find_undeclared_variables(tree) - ENV.globals.keys())


@lru_cache(maxsize=4096)
def template_paths(source: str) -> frozenset[tuple[str, ...]]:
    """Return the longest chains of names a template reads, such as ``("deploy", "data", "service")``."""
    found: set[tuple[str, ...]] = set()
    with _reading(source) as tree:
        waiting: list[nodes.Node] = [tree]
        while waiting:
            node = waiting.pop()
            chain = _chain(node)
            if chain is not None:
                found.add(chain)
            else:
                waiting.extend(node.iter_child_nodes())
    return frozenset(found)


def _chain(node: nodes.Node) -> tuple[str, ...] | None:
    steps: list[str] = []
    while True:
        if isinstance(node, nodes.Getattr):
            steps.append(node.attr)
            node = node.node
        elif (
            isinstance(node, nodes.Getitem)
            and isinstance(node.arg, nodes.Const)
            and isinstance(node.arg.value, str | int)
        ):
            steps.append(str(node.arg.value))
            node = node.node
        elif isinstance(node, nodes.Name):
            return (node.name, *reversed(steps)) if node.ctx == "load" else None
        else:
            return None


def render(source: str, context: Mapping[str, Any]) -> str:
    """Return the text ``source`` makes of ``context``.

    Raises:
        TemplateError: it does not parse, reads something that is missing, does something the sandbox refuses, or
            makes more than ``MAX_OUTPUT_CHARS`` characters.
    """
    value = _evaluate(source, context)
    if isinstance(value, str):
        text = value
    elif isinstance(value, dict | list):
        text = as_json(value)
    else:
        text = "" if value is None else str(value)
    if len(text) > MAX_OUTPUT_CHARS:
        raise TemplateError(
            f"template {source[:80]!r} made {len(text)} characters, more than {MAX_OUTPUT_CHARS}"
        )
    return text


def _evaluate(source: str, context: Mapping[str, Any]) -> Any:
    kind, thing = _compiled(source)
    if kind == "literal":
        return thing
    try:
        if kind == "expression":
            keys, thing = thing
            if (value := _looked_up(keys, context)) is not None:
                return finished(value)
        with bounded():
            if kind == "expression":
                value = thing(**context)
                if isinstance(value, Undefined):
                    # Touching an undefined value raises the error that names it.
                    str(value)
                return finished(value)
            out: list[str] = []
            size = 0
            for piece in thing.generate(**context):
                size += len(piece)
                if size > MAX_OUTPUT_CHARS:
                    raise TemplateError(
                        f"template {source[:80]!r} made more than {MAX_OUTPUT_CHARS} characters"
                    )
                out.append(piece)
            return "".join(out)
    except TemplateError:
        raise
    except RecursionError as exc:
        raise TemplateError(f"template {source[:80]!r} nests too deeply") from exc
    except Exception as exc:  # a template is somebody else's code
        raise _explain(exc, source) from exc


def _keys_of(expression: str) -> tuple[str, ...]:
    """Return the keys that ``event.data.n`` looks up one in the other; none where it does anything else."""
    node: nodes.Node = Parser(ENV, expression, state="variable").parse_expression()
    keys: list[str] = []
    # What objects of Python have attributes for is another thing than a key.
    while isinstance(node, nodes.Getattr) and not hasattr(dict, node.attr):
        keys.append(node.attr)
        node = node.node
    return (node.name, *reversed(keys)) if isinstance(node, nodes.Name) else ()


def _looked_up(keys: tuple[str, ...], context: Mapping[str, Any]) -> Any:
    """Return what stands under keys in plain objects; None if nothing does, which is for jinja to say."""
    value: Any = context if keys else None
    for key in keys:
        if value.__class__ is not dict:
            return None
        value = value.get(key)
    return value


def render_value(value: JsonValue, context: Mapping[str, Any]) -> JsonValue:
    """Return ``value`` with every text in it rendered, whole-value expressions keeping their type."""
    if isinstance(value, str):
        made = _evaluate(value, context)
        if isinstance(made, str) and len(made) > MAX_OUTPUT_CHARS:
            raise TemplateError(f"template {value[:80]!r} made more than {MAX_OUTPUT_CHARS} characters")
        result: JsonValue = made
        return result
    if isinstance(value, list):
        return [render_value(item, context) for item in value]
    if isinstance(value, dict):
        return {render(key, context): render_value(item, context) for key, item in value.items()}
    return value
