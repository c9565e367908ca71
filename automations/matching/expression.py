"""``if``: a condition in CEL, the Common Expression Language: typed, without side effects, and bounded.

An expression sees the event's attributes by name (``type``, ``subject``, ``data`` …), the whole event as ``event``,
and in actions also ``key`` and ``count``. It is the escape hatch: unlike ``where`` it cannot be indexed, so it is
evaluated on every event that gets as far as it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..problem import did_you_mean
from .path import ATTRIBUTES

if TYPE_CHECKING:
    from cel import Program

__all__ = ["Expression", "Outcome", "compile_expression", "odd_names"]

MAX_CHARS = 2000
MAX_NESTING = 40
_MAX_LOOPS = 2
_MAX_STEPS = 100_000
_MAX_WORK = 100_000_000
"""Steps of comprehensions times what one step may look through: a second or so, at a nanosecond to ten for each."""
_MAX_JOINED = 8 << 20
"""Characters that `+` may make: each makes a copy of all before it."""
_MAX_CONVERTED = 1 << 20
"""Size of what is asked again with doubles; a fraction of a second."""
_INTEGER = re.compile(r"(?<![\w.])(?<![\w\])]\[)\d+(?![\w.])")
_NODE = 8
"""What a number, an array or a field counts for beside the characters of texts."""
_LOOP = re.compile(r"\.\s*(all|exists|exists_one|map|filter)\s*\(")
_STRINGS = re.compile(
    r"""[rRbB]*('''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""", re.DOTALL
)
_PYTHON = {"and": "&&", "or": "||", "not": "!", "is": "==", "True": "true", "False": "false", "None": "null"}
_EXTRA = frozenset({"event", "key", "count", "events", "automation"})
_FUNCTIONS = frozenset({
    "size", "contains", "startsWith", "endsWith", "matches", "timestamp", "duration", "int", "uint", "double", "string",
    "bytes", "type", "dyn", "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear",
    "getHours", "getMinutes", "getSeconds", "getMilliseconds", "of", "none", "ofNonZeroValue", "hasValue", "value",
    "orValue", "or",
})  # fmt: skip
"""The functions there are; operators go by other names (``_+_``)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an expression came to: ``ok``, and why not if it could not be decided."""

    ok: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression; ``names`` are the variables it reads.

    ``loops`` is how deep its comprehensions may nest, one more where it looks things up in arrays (``in``); ``joins`` how
    often it puts texts or arrays together.
    """

    source: str
    program: Program
    names: frozenset[str]
    loops: int
    joins: int = 0

    def holds(self, event: Any, extra: Mapping[str, Any] | None = None) -> bool:
        """Return whether it holds; a missing field or a wrong type does not match, and never raises."""
        return self.decide(event, extra).ok

    def decide(self, event: Any, extra: Mapping[str, Any] | None = None) -> Outcome:
        """Return whether it holds, and why it could not be decided if so."""
        context: dict[str, Any] = {}
        for name in self.names:
            if extra is not None and name in extra:
                context[name] = extra[name]
            elif name == "event":
                context[name] = event
            elif name in event:
                context[name] = event[name]
        if self.loops or self.joins:
            longest, size = _extent(context)
            steps = longest**self.loops
            if steps > _MAX_STEPS or (self.loops and steps * size > _MAX_WORK):
                return Outcome(False, "the event's arrays are too large for a comprehension in `if`")
            if self.joins * size > _MAX_JOINED:
                return Outcome(False, "the event's texts are too large to put together in `if`")
        try:
            value = self.program.execute(context)
        except TypeError as exc:
            note = str(exc).partition("\n")[0][:200]
            if (value := self._in_doubles(context)) is None:
                return Outcome(False, note)
        except KeyError as exc:
            return Outcome(False, f"missing {exc.args[0] if exc.args else ''!s}")
        except Exception as exc:  # somebody else's code: an expression
            return Outcome(False, str(exc).partition("\n")[0][:200])
        except BaseException as exc:
            # A panic of the extension arrives beside Exception; it must not take the engine down.
            if type(exc).__name__ != "PanicException":
                raise
            return Outcome(False, "the expression broke the evaluator")
        if value is True:
            return Outcome(True)
        return Outcome(False, "" if value is False else f"gave {value!r:.60}, not true or false")

    def _in_doubles(self, context: dict[str, Any]) -> object:
        """Return what it gives when every number is a double; None if that is an error, too.

        JSON has one kind of number and CEL two that do not mix: `data.price * 2` would fail of 3.5, and
        `data.price * 1.5` of 3. So what fails by its types is asked again, as if all numbers were written alike.
        """
        if _extent(context)[1] > _MAX_CONVERTED:
            return None
        try:
            found: object = _floating(self.source).execute({k: _doubled(v) for k, v in context.items()})
        except Exception:  # it is wrong in another way, which the first attempt has said
            return None
        except BaseException as exc:
            if type(exc).__name__ != "PanicException":
                raise
            return None
        return found


def _doubled(value: Any, depth: int = 0) -> Any:
    """Return JSON with integers as doubles, down to 32 levels."""
    if value.__class__ is int:
        return float(value)
    if depth == 32:
        return value
    if isinstance(value, dict):
        return {k: _doubled(v, depth + 1) for k, v in value.items()}
    return [_doubled(v, depth + 1) for v in value] if isinstance(value, list) else value


@lru_cache(maxsize=256)
def _floating(source: str) -> Program:
    """Return the program with integers written as doubles, but for those that are the place in an array."""
    import cel

    out, at = [], 0
    for text in _STRINGS.finditer(source):
        out += [_INTEGER.sub(r"\g<0>.0", source[at : text.start()]), text[0]]
        at = text.end()
    return cel.compile("".join(out) + _INTEGER.sub(r"\g<0>.0", source[at:]))


def _extent(value: Any) -> tuple[int, int]:
    """Return the length of the longest array or object inside ``value``, and how much there is to look through at all."""
    longest, size = 1, 0
    stack = [value]
    while stack:
        item = stack.pop()
        size += _NODE
        if isinstance(item, dict):
            longest = max(longest, len(item))
            size += sum(map(len, item))
            stack.extend(item.values())
        elif isinstance(item, list):
            longest = max(longest, len(item))
            stack.extend(item)
        elif isinstance(item, str):
            size += len(item)
    return longest, size


def _nesting(text: str) -> tuple[int, int]:
    """Return how deep brackets nest, and how deep comprehensions do."""
    depth = deepest = loops = most = 0
    open_loops: list[int] = []
    at = 0
    while at < len(text):
        found = _LOOP.match(text, at)
        if found:
            at = found.end()
            depth += 1
            open_loops.append(depth)
            loops += 1
        else:
            if text[at] in "([{":
                depth += 1
            elif text[at] in ")]}":
                if open_loops and open_loops[-1] == depth:
                    open_loops.pop()
                    loops -= 1
                depth -= 1
            at += 1
        deepest, most = max(deepest, depth), max(most, loops)
    return deepest, most


def _slip(problem: str, bare: str) -> str:
    """Return what a parser said, without the list of all that could stand there, and what was meant if that is plain."""
    problem = problem.partition(" expecting ")[0].replace(
        "mismatched input '<EOF>'", "something is missing at the end"
    )
    for word in re.findall(r"[A-Za-z]+", bare):
        if word in _PYTHON:
            return f"{problem}; CEL writes `{_PYTHON[word]}` for `{word}`"
    if re.search(r"(?<![=!<>])=(?!=)", bare):
        return f"{problem}; write `==` to compare"
    return problem


@lru_cache(maxsize=1024)
def compile_expression(source: str) -> Expression:
    """Return the compiled form of a CEL text.

    Raises:
        ValueError: it does not parse, reads a name that no event has, or is too large or too deeply nested to bound.
    """
    import cel  # kept out of `import hark`

    if not source.strip():
        raise ValueError("`if` is empty; leave it out")
    if len(source) > MAX_CHARS:
        raise ValueError(f"an expression of {len(source)} characters is too long (at most {MAX_CHARS})")
    bare = _STRINGS.sub("''", source)
    depth, loops = _nesting(bare)
    # Every level is a stack frame of the parser; unary operators nest without brackets.
    if (
        depth > MAX_NESTING
        or re.search(r"[!-]{20,}", re.sub(r"\s", "", bare))
        or bare.count("?") > MAX_NESTING
    ):
        raise ValueError(f"the expression nests deeper than {MAX_NESTING}")
    if loops > _MAX_LOOPS:
        raise ValueError(f"comprehensions nest deeper than {_MAX_LOOPS}, which cannot be bounded")
    try:
        program = cel.compile(source)
        names = frozenset(program.variables())
        called = [one for one in program.functions() if one.isidentifier() and one[0] != "_"]
    except Exception as exc:  # the parser reports in several types
        lines = [line for line in str(exc).splitlines() if line.strip()]
        problem = lines[0].partition("ERROR: <input>:")[2] or lines[0]
        raise ValueError(f"{source!r:.80} does not parse: {_slip(problem, bare)}") from exc
    for one in called:
        if one not in _FUNCTIONS:
            hint = did_you_mean(one, _FUNCTIONS) or f"; there are {', '.join(sorted(_FUNCTIONS))}"
            raise ValueError(f"there is no function {one!r}{hint}")
    unknown = sorted(names - ATTRIBUTES - _EXTRA)
    if unknown and not loops and len(unknown[0]) > 20:
        raise ValueError(f"{unknown[0]!r} is no attribute of an event")
    if (
        unknown
        and not loops
        and (near := get_close_matches(unknown[0], ATTRIBUTES | _EXTRA, n=1, cutoff=0.75))
    ):
        raise ValueError(f"{unknown[0]!r} is no attribute of an event; did you mean {near[0]!r}?")
    joins = bare.count("+") if "_+_" in program.functions() else 0
    made = Expression(
        source, program, names, loops + (1 if loops and "@in" in program.functions() else 0), joins
    )
    if not names and (note := made.decide({}).note):
        raise ValueError(f"{source!r:.80} never holds: it {note}; compare something, such as data.total > 10")
    return made


def odd_names(expression: Expression) -> list[str]:
    """Return names an expression reads that no event has, unless whoever emits it adds them."""
    return [] if expression.loops else sorted(expression.names - ATTRIBUTES - _EXTRA)
