"""What a template may do, and how much of it: jinja's sandbox, with a count of everything that takes time.

A template is rendered in the loop that everything else runs in, often over data that strangers sent, and nothing can
interrupt Python in the middle of making a text. So each rendering has a budget of **grains**, about the work one
character makes: turns of loops, calls, and the size of whatever a filter, a test, a comparison or the output looks
through are paid for before they happen. Size is that of the written-out value: a list that holds one other list twice is
twice as large, so that structures which double with each turn of a loop are found before they are walked.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import orjson
from jinja2 import StrictUndefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import do_batch, do_indent, do_round, make_attrgetter, sync_do_slice
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg, pass_context
from jinja2.visitor import NodeTransformer

__all__ = ["ENV", "MAX_OUTPUT_CHARS", "as_json", "bounded", "finished"]

MAX_OUTPUT_CHARS = 262_144
"""Longest text a template may make; far above any message, far below what hurts."""
_GRAINS = 12_800_000
"""What one rendering may spend: at 5 to 50 ns for each, some tenths of a second at the most."""
_PER_TURN = 64
_PER_CALL = 1280
_PER_PIECE = 16
_PER_NODE = 32
"""A value in a list or an object, beside the characters of texts."""
_TOO_MUCH = "it takes more steps than a template may"
_MAX_REPEAT = 100_000
_MAX_BITS = 4096
"""Longest number, in bits: arithmetic on longer ones takes time by itself, and Python does not write them out."""
_MAX_DIGITS = 30
"""Most places that `round` may be asked for; doubles have seventeen."""

_grains: ContextVar[list[int]] = ContextVar("template_grains")


@contextmanager
def bounded() -> Iterator[None]:
    """Give what is rendered inside one budget."""
    token = _grains.set([_GRAINS])
    try:
        yield
    finally:
        _grains.reset(token)


def _spend(grains: int) -> None:
    """Count what a rendering is about to do, and end it when that is too much."""
    left = _grains.get(None)
    if left is not None:
        left[0] -= grains
        if left[0] < 0:
            raise SecurityError(_TOO_MUCH)


def _make(length: int) -> None:
    """Refuse to make something longer than may come out, before it is made."""
    if length > MAX_OUTPUT_CHARS:
        raise SecurityError("it makes something too long on the way")
    _spend(max(0, length))  # a width below nothing must not earn anything


_SEVERAL = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


def _weigh(value: Any) -> None:
    """Spend what it takes to look through all of ``value``.

    Raises:
        SecurityError: there is less left than that, or a number in it is too long.
    """
    kind = value.__class__
    if value is None or kind is bool or kind is float:
        return
    grains = _grains.get(None)
    left = grains[0] if grains is not None else _GRAINS
    waiting = [value]
    while waiting:
        item = waiting.pop()
        kind = item.__class__
        if kind is int:
            if item.bit_length() > _MAX_BITS:
                _short_number(item)
        elif isinstance(item, str):
            left -= len(item)
        elif kind is list or kind is tuple:
            left -= _PER_NODE * len(item)
            if left >= 0:
                waiting += item
        elif isinstance(item, dict):
            left -= 2 * _PER_NODE * len(item)
            if left >= 0:
                waiting += item
                waiting += item.values()
        elif isinstance(item, range):
            left -= _PER_NODE * len(item)
        elif isinstance(item, _SEVERAL):
            left -= _PER_NODE * len(item)
            if left >= 0:
                waiting += item
        elif isinstance(item, Namespace):
            raise SecurityError("a namespace is not a value; name the field of it that is meant")
        if left < 0:
            raise SecurityError(_TOO_MUCH)
    if grains is not None:
        grains[0] = left


def _short_number(number: int) -> None:
    if number.bit_length() > _MAX_BITS:
        raise SecurityError("this number is too long for a template")


def _turns(items: Iterable[Any], grains: int = _PER_TURN) -> Iterator[Any]:
    for item in items:
        _spend(grains)
        yield item


def _streamed(value: Any) -> Any:
    """Return what will be looked through one by one, each paid for as it is: what is left over may be little."""
    return _turns(value) if value else value


def _taken(value: Any) -> Any:
    """Return ``value``, of an iterator all that is in it, paid for."""
    return list(_turns(value, _PER_PIECE)) if hasattr(value, "__next__") else value


# --- filters and tests -----------------------------------------------------------------------------------


def _shown(value: Any) -> Any:
    """Return what is about to be written out, or compared, paid for."""
    _spend(_PER_PIECE)
    _weigh(value)
    return value


def _joined(pieces: list[Any]) -> str:
    _weigh(pieces)
    texts = [str(piece) for piece in pieces]
    _make(sum(map(len, texts)))
    return "".join(texts)


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(text)
    _make(len(text) + text.count(old) * len(new))
    made: str = text.replace(old, new, -1 if count is None else count)
    return made


def _searched(text: str, wanted: Iterable[Any]) -> None:
    """Pay for comparing each character of a text with each of others, which takes a fraction of looking through it."""
    for one in wanted:
        if isinstance(one, str):
            _spend(len(text) * len(one) // 16)


def _trim(text: Any, chars: str | None = None) -> str:
    text = str(text)
    _searched(text, (chars,))
    stripped: str = text.strip(chars)
    return stripped


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(text)
    _make(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return do_indent(text, width, first, blank)


def _batch(value: Iterable[Any], linecount: int, fill_with: Any = None) -> Iterator[list[Any]]:
    _make(linecount)
    return do_batch(value, linecount, fill_with)


def _slice(value: Iterable[Any], slices: int, fill_with: Any = None) -> Iterator[list[Any]]:
    if slices < 1:
        raise SecurityError(f"`slice` makes one part or more, not {slices}")
    _spend(_PER_TURN * slices)
    return sync_do_slice(_list(value), slices, fill_with)


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(ENV, attribute), value)
    pieces = [str(item) for item in value]
    _make(sum(map(len, pieces)) + len(str(d)) * len(pieces))
    return str(d).join(pieces)


def _list(value: Any) -> list[Any]:
    value = _taken(value)
    if hasattr(value, "__len__"):
        _spend(_PER_NODE * len(value))
    return list(value)


def _sliced(value: Any) -> Any:
    """Return what a slice is taken of, paid for as if it was all of it."""
    if hasattr(value, "__len__"):
        _spend(len(value))
    return value


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > _MAX_DIGITS:
        raise SecurityError(f"`round` to {precision} places is more than a number has")
    return do_round(value, precision, method)


def _sum(value: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        # Lists that are added one by one are copied one by one, each time longer.
        raise SecurityError("`sum` adds numbers; put lists together with a loop, texts with `join`")
    if attribute is not None:
        value = map(make_attrgetter(ENV, attribute), value)
    return sum(value, start)


def as_json(value: Any, indent: int | None = None) -> str:
    """Return ``value`` as JSON, what JSON has no word for as text."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else 0, default=str).decode()


_LAZY_FILTERS = frozenset({
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr",
    "select", "selectattr", "slice", "_sliced", "_turns",
})  # fmt: skip
_STREAMING_FILTERS = frozenset({"batch", "map", "reject", "rejectattr", "select", "selectattr"})
_LAZY_TESTS = frozenset({
    "boolean", "callable", "defined", "divisibleby", "even", "false", "filter", "float", "integer", "iterable", "mapping",
    "none", "number", "odd", "sameas", "sequence", "string", "test", "true", "undefined",
})  # fmt: skip
"""What looks at no more than the outside of what it is given, or counts by itself."""


def _counted(run: Any, *, is_lazy: bool, is_streaming: bool = False) -> Any:
    """Return a filter or test that pays for what it looks through. It takes the context, so that none runs when compiled."""
    passed = _PassArg.from_obj(run)

    @pass_context
    @wraps(run)
    def counted(context: Context, *args: Any, **kwargs: Any) -> Any:
        _spend(_PER_PIECE * (len(args) + len(kwargs)))
        if is_streaming:
            args = (_streamed(args[0]), *args[1:])
        elif not is_lazy:
            args = tuple(map(_taken, args))
            for value in (*args, *kwargs.values()):
                _weigh(value)
        if passed is _PassArg.context:
            return run(context, *args, **kwargs)
        if passed is _PassArg.eval_context:
            return run(context.eval_ctx, *args, **kwargs)
        if passed is _PassArg.environment:
            return run(context.environment, *args, **kwargs)
        return run(*args, **kwargs)

    return counted


def finished(value: Any) -> Any:
    """Return what an expression came to, paid for: whoever gets it will write it out."""
    if hasattr(value, "__next__") or isinstance(value, range):
        value = _list(value)
    _weigh(value)
    return value


# --- the compiler ----------------------------------------------------------------------------------------


class _Counting(NodeTransformer):
    """Puts a count where a template can do much with little and no filter is asked: loops, `~`, comparisons, output."""

    def __init__(self) -> None:
        self._repeats = 0

    def _filtered(self, node: nodes.Node, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _repeated(self, node: nodes.Node) -> nodes.Node:
        self._repeats += 1
        self.generic_visit(node)
        self._repeats -= 1
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = visit_Block = _repeated  # noqa: N815 - jinja's own names

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._repeated(node)
        node.iter = self._filtered(node.iter, "_turns")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            # What stands in the template is written once, unless something repeats it.
            piece if isinstance(piece, nodes.TemplateData) and not self._repeats else self._filtered(piece, "_shown")
            for piece in node.nodes
        ]  # fmt: skip
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._weighed(node.expr)
        for operand in node.ops:
            operand.expr = self._weighed(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._filtered(node.node, "_sliced")
        else:
            node.arg = self._weighed(node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = self._weighed(node.key)
        return node

    def _weighed(self, node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else self._filtered(node, "_shown")


_SEARCHING = frozenset({"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"})
"""Methods of texts that may compare each character with each of what they are given."""
_PADDING = frozenset({"center", "ljust", "rjust", "zfill"})
_CAN_MAKE_ANY_LENGTH = frozenset({"encode", "expandtabs", "format", "format_map", "to_bytes", "translate"})
_OUTSIDE = frozenset({"get", "items", "keys", "values"})
"""Methods of objects that do not look through them."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "+", "-", "/", "//", "%"})

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        """Compile, with counts in it."""
        _Counting().visit(source)
        source.set_environment(self)
        return super()._generate(source, name, filename, defer_init)

    def is_safe_callable(self, obj: Any) -> bool:
        """Refuse methods that make a text of any length out of a short one."""
        return getattr(obj, "__name__", None) not in _CAN_MAKE_ANY_LENGTH and super().is_safe_callable(obj)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - jinja's own names
        """Call, and count: macros can call themselves, and methods look through texts and lists."""
        _spend(_PER_CALL + _PER_PIECE * (len(args) + len(kwargs)))
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, LoopContext):  # a recursive loop, once more
            return super().call(__context, __obj, _turns(args[0]) if args else (), *args[1:], **kwargs)
        if not isinstance(__obj, Macro):
            args = tuple(map(_taken, args))
            # What `dict` and `namespace` are given by name they only keep; the rest they look through, and hash.
            for value in args if isinstance(__obj, type) else (*args, *kwargs.values()):
                _weigh(value)
        if isinstance(owner, (str, dict, range, *_SEVERAL)) and __obj.__name__ not in _OUTSIDE:
            _weigh(owner)
        if isinstance(owner, str):
            if __obj.__name__ == "replace":
                return _replace(owner, *args, **kwargs)
            if __obj.__name__ == "join" and len(args) == 1:
                return _join(args[0], owner)
            if __obj.__name__ in _SEARCHING:
                _searched(owner, (*args, *kwargs.values()))
            if __obj.__name__ in _PADDING and args and isinstance(args[0], int):
                _make(args[0])
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Run an operator, refusing the ones that make something huge out of something small."""
        for number in (left, right):
            if number.__class__ is int:
                _short_number(number)
        if operator == "**":
            if (
                not (isinstance(left, int | float) and isinstance(right, int | float))
                or abs(right) > 64
                or abs(left) > 1e9
            ):
                raise SecurityError("this power is too large for a template")
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | bytes | list | tuple) and isinstance(other, int):
                    if len(one) * other > _MAX_REPEAT:
                        raise SecurityError("this repetition is too long for a template")
                    _make(len(one) * other)
        elif operator == "+":
            if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                _make(len(left) + len(right))
        elif operator == "-" and not isinstance(left, int | float):
            right = _taken(right)  # keys of objects can be taken from each other
            _weigh(left)
            _weigh(right)
        elif operator == "%" and isinstance(left, str):
            # "%999999999d" is a repetition in disguise.
            raise SecurityError(
                "formatting with % is not available in templates; use `~` or the `round` filter"
            )
        return super().call_binop(context, operator, left, right)


# Padding filters can be asked for any width; `format` for any precision.
_LEFT_OUT = ("center", "format", "pprint", "xmlattr", "urlize", "wordwrap", "random")


def _environment() -> _Environment:
    env = _Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False, cache_size=0)
    for name in _LEFT_OUT:
        env.filters.pop(name, None)
    own: Mapping[str, Any] = {
        "tojson": as_json, "replace": _replace, "indent": _indent, "batch": _batch, "slice": _slice, "join": _join,
        "list": _list, "round": _round, "sum": _sum, "trim": _trim, "_sliced": _sliced, "_turns": _turns, "_joined": _joined, "_shown": _shown,
    }  # fmt: skip
    env.filters.update(own)
    env.filters.update({
        name: _counted(run, is_lazy=name in _LAZY_FILTERS, is_streaming=name in _STREAMING_FILTERS)
        for name, run in env.filters.items()
    })  # fmt: skip
    env.tests.update({name: _counted(run, is_lazy=name in _LAZY_TESTS) for name, run in env.tests.items()})
    for name in ("lipsum", "cycler", "joiner"):
        env.globals.pop(name, None)
    return env


ENV = _environment()
