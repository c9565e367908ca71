"""Sandboxed Jinja2, for texts and parameters that people write into rules, webhooks and channels.

A template cannot reach attributes of Python objects that begin with an underscore, cannot call anything but the
filters and functions given here, and is bounded in its steps and in the length of what it makes: it is rendered in the
loop that everything else runs in, often over data that strangers sent. Whole-value expressions keep
their type: ``"{{ event.data.ids }}"`` gives a list, ``"n={{ event.data.n }}"`` gives text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import orjson
from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes
from jinja2 import TemplateError as _JinjaError
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.filters import do_batch, do_indent, make_attrgetter, sync_do_slice
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .errors import TemplateError
from .vocabulary import JsonValue

__all__ = [
    "MAX_OUTPUT_CHARS",
    "check_template",
    "render",
    "render_value",
    "template_names",
    "template_paths",
    "template_roots",
]

MAX_OUTPUT_CHARS = 262_144
"""Longest text a template may make; far above any message, far below what hurts."""
_MAX_SOURCE_CHARS = 65_536
_MAX_REPEAT = 100_000
_MAX_STEPS = 200_000
"""Turns of loops, calls, and pieces of 64 characters made, of one rendering: some tens of milliseconds."""
_CHARS_PER_STEP = 64

_WHOLE = re.compile(r"\s*\{\{(?P<expr>(?:(?!\}\}|\{\{).)+)\}\}\s*", re.DOTALL)


_steps: ContextVar[list[int]] = ContextVar("template_steps")


def _spend(steps: int) -> None:
    """Count what a rendering has done, and end it when that is too much."""
    left = _steps.get(None)
    if left is not None:
        left[0] -= steps
        if left[0] < 0:
            raise SecurityError("it takes more steps than a template may")


def _make(length: int) -> None:
    """Refuse to make something longer than may come out, before it is made."""
    if length > MAX_OUTPUT_CHARS:
        raise SecurityError("it makes something too long on the way")
    _spend(length // _CHARS_PER_STEP)


def _turns(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1)
        yield item


def _joined(pieces: list[Any]) -> str:
    texts = [str(piece) for piece in pieces]
    _make(sum(map(len, texts)))
    return "".join(texts)


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(text)
    _make(len(text) + text.count(old) * len(new))
    made: str = text.replace(old, new, -1 if count is None else count)
    return made


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(text)
    _make(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return do_indent(text, width, first, blank)


def _batch(value: Iterable[Any], linecount: int, fill_with: Any = None) -> Iterator[list[Any]]:
    _make(linecount)
    return do_batch(value, linecount, fill_with)


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(_ENV, attribute), value)
    pieces = [str(item) for item in value]
    _make(sum(map(len, pieces)) + len(str(d)) * len(pieces))
    return str(d).join(pieces)


def _slice(value: Iterable[Any], slices: int, fill_with: Any = None) -> Iterator[list[Any]]:
    _spend(slices)
    return sync_do_slice(list(value), slices, fill_with)


_PADDING = frozenset({"center", "ljust", "rjust", "zfill"})
_CAN_MAKE_ANY_LENGTH = frozenset({"expandtabs", "format", "format_map", "to_bytes", "translate"})
_STEPS_OF_A_CALL = 10


class _Counting(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja's own name
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_turns", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        pieces = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(pieces, "_joined", [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        """Compile, with a counter where a template can do much with little: in loops and concatenations."""
        _Counting().visit(source)
        source.set_environment(self)
        return super()._generate(source, name, filename, defer_init)

    def is_safe_callable(self, obj: Any) -> bool:
        """Refuse methods that make a text of any length out of a short one."""
        return getattr(obj, "__name__", None) not in _CAN_MAKE_ANY_LENGTH and super().is_safe_callable(obj)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - jinja's own names
        """Call, and count: macros can call themselves."""
        _spend(_STEPS_OF_A_CALL)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            if __obj.__name__ == "replace":
                return _replace(text, *args, **kwargs)
            if __obj.__name__ == "join" and len(args) == 1:
                return _join(args[0], text)
            if __obj.__name__ in _PADDING and args and isinstance(args[0], int):
                _make(args[0])
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Run an operator, refusing the ones that make something huge out of something small."""
        if operator == "**":
            if (
                not (isinstance(left, int | float) and isinstance(right, int | float))
                or abs(right) > 64
                or abs(left) > 1e9
            ):
                raise SecurityError("this power is too large for a template")
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if (
                    isinstance(one, str | bytes | list | tuple)
                    and isinstance(other, int)
                    and len(one) * other > _MAX_REPEAT
                ):
                    raise SecurityError("this repetition is too long for a template")
            if (
                isinstance(left, int)
                and isinstance(right, int)
                and left.bit_length() + right.bit_length() > 4096
            ):
                raise SecurityError("this product is too large for a template")
        elif operator == "+":
            if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                _make(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            # "%999999999d" is a repetition in disguise.
            raise SecurityError(
                "formatting with % is not available in templates; use `~` or the `round` filter"
            )
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, indent: int | None = None) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else 0, default=str).decode()


def _environment() -> _Environment:
    env = _Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False, cache_size=0)
    # Padding filters can be asked for any width; `format` for any precision.
    for name in (
        "center",
        "indent",
        "format",
        "pprint",
        "xmlattr",
        "urlize",
        "wordwrap",
        "filesizeformat",
        "random",
    ):
        if name not in ("filesizeformat", "indent"):
            env.filters.pop(name, None)
    env.filters.update(
        tojson=_tojson, replace=_replace, indent=_indent, batch=_batch, slice=_slice, join=_join,
        _turns=_turns, _joined=_joined,
    )  # fmt: skip
    env.globals.pop("lipsum", None)
    env.globals.pop("cycler", None)
    env.globals.pop("joiner", None)
    return env


_ENV = _environment()


def _explain(exc: Exception, source: str) -> TemplateError:
    shown = source if len(source) <= 80 else source[:77] + "…"
    if isinstance(exc, TemplateSyntaxError):
        return TemplateError(f"template {shown!r} does not parse: {exc.message}")
    if isinstance(exc, UndefinedError):
        return TemplateError(
            f"template {shown!r}: {exc.message}", hint="use `| default('…')` where a value may be missing"
        )
    return TemplateError(f"template {shown!r} failed: {exc}")


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
                return "expression", _ENV.compile_expression(whole["expr"].strip(), undefined_to_none=False)
            except TemplateSyntaxError:
                pass  # such as "{{ '}}' }}": let the whole parser have its say
        if _OTHERS.search(source):
            _refuse_others(source)
        return "template", _ENV.from_string(source)
    except (_JinjaError, RecursionError, ValueError, SyntaxError) as exc:
        raise _explain(exc, source) from exc


_OTHERS = re.compile(r"\b(include|import|extends)\b")


def _refuse_others(source: str) -> None:
    """Raise ``TemplateError`` if a template reads others: there are none beside it."""
    for node in _ENV.parse(source).find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        word = {"FromImport": "import"}.get(type(node).__name__, type(node).__name__.lower())
        raise TemplateError(
            f"template {source[:80]!r}: there are no other templates that `{word}` could read",
            hint="write out what it would bring",
        )


def check_template(source: str) -> None:
    """Raise ``TemplateError`` if ``source`` does not parse or uses a filter that does not exist."""
    _compiled(source)


@lru_cache(maxsize=4096)
def template_names(source: str) -> frozenset[str]:
    """Return the dotted names a template reads from its context, such as ``secrets.slack_url`` or ``event``."""
    try:
        tree = _ENV.parse(source)
    except _JinjaError as exc:
        raise _explain(exc, source) from exc
    names = {n.name for n in tree.find_all(nodes.Name) if n.ctx == "load"}
    for attribute in tree.find_all(nodes.Getattr):
        if isinstance(attribute.node, nodes.Name):
            names.add(f"{attribute.node.name}.{attribute.attr}")
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.node, nodes.Name) and isinstance(item.arg, nodes.Const):
            names.add(f"{item.node.name}.{item.arg.value}")
    return frozenset(names)


@lru_cache(maxsize=4096)
def template_roots(source: str) -> frozenset[str]:
    """Return the names a template reads from its context, and does not set itself."""
    try:
        return frozenset(find_undeclared_variables(_ENV.parse(source)) - _ENV.globals.keys())
    except _JinjaError as exc:
        raise _explain(exc, source) from exc


@lru_cache(maxsize=4096)
def template_paths(source: str) -> frozenset[tuple[str, ...]]:
    """Return the longest chains of names a template reads, such as ``("deploy", "data", "service")``."""
    try:
        tree = _ENV.parse(source)
    except _JinjaError as exc:
        raise _explain(exc, source) from exc
    found: set[tuple[str, ...]] = set()
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
        text = _tojson(value)
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
    token = _steps.set([_MAX_STEPS])
    try:
        if kind == "expression":
            value = thing(**context)
            if isinstance(value, Undefined):
                # Touching an undefined value raises the error that names it.
                str(value)
            if hasattr(value, "__next__") or isinstance(value, range):
                value = list(value)
            return value
        out: list[str] = []
        size = 0
        for piece in thing.generate(**context):
            size += len(piece)
            if size > MAX_OUTPUT_CHARS:
                raise TemplateError(f"template {source[:80]!r} made more than {MAX_OUTPUT_CHARS} characters")
            out.append(piece)
        return "".join(out)
    except TemplateError:
        raise
    except RecursionError as exc:
        raise TemplateError(f"template {source[:80]!r} nests too deeply") from exc
    except Exception as exc:  # a template is somebody else's code
        raise _explain(exc, source) from exc
    finally:
        _steps.reset(token)


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
