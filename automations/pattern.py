"""Which events a rule speaks of: types, conditions, keys; and the words of the forms that join several of them.

``Automation`` (``model.py``) is made of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BeforeValidator, Field

from .matching.condition import Node, parse_where
from .matching.expression import compile_expression
from .matching.path import parse_path
from .problem import Problem, Strict, refuse

__all__ = [
    "MAX_COUNT",
    "Cel",
    "EventPattern",
    "Paths",
    "Pattern",
    "Types",
    "Where",
    "check_pattern",
]

_WORD = re.compile(r"[a-z0-9-]+|\*|>")
_NEVER_EMITTED = {
    "started": "running", "finished": "completed", "succeeded": "completed", "success": "completed",
    "error": "failed", "errored": "failed", "failure": "failed",
}  # fmt: skip
RUN_WORDS = (
    "scheduled", "late", "pending", "running", "retrying", "awaiting-retry", "awaiting-concurrency-slot", "paused",
    "suspended", "resuming", "cancelling", "completed", "cached", "failed", "timed-out", "cancelled", "crashed",
)  # fmt: skip
"""What flow runs and task runs can be said to be: the last words of their events."""
MAX_COUNT = 100_000
MAX_PATTERNS = 50


def check_pattern(pattern: object) -> str:
    """Return an event type or a pattern of types; ``*`` is one word and a last ``>`` all that follow.

    Raises:
        ValueError: it is not one; the message says what one looks like.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"{pattern!r} is not an event type; write one such as order.paid or flow-run.*")
    words = pattern.split(".")
    for i, word in enumerate(words):
        if not _WORD.fullmatch(word):
            lower = re.sub(r"[^a-z0-9*>.-]+", "-", pattern.lower())
            hint = (
                f"; did you mean {lower!r}?"
                if lower != pattern and all(_WORD.fullmatch(w) for w in lower.split("."))
                else ""
            )
            raise ValueError(
                f"{pattern!r} is not an event type: types are lower-case dotted words such as order.paid{hint}"
            )
        if word == ">" and i < len(words) - 1:
            raise ValueError(
                f"{pattern!r}: `>` stands for all the words that follow, so it can only come last"
            )
    if words[0] in ("flow-run", "task-run") and "*" not in words and ">" not in words:
        _check_run_word(pattern, words)
    return pattern


def _check_run_word(pattern: str, words: list[str]) -> None:
    rest = ".".join(words[1:])
    if rest in RUN_WORDS:
        return
    meant = _NEVER_EMITTED.get(rest) or next(iter(get_close_matches(rest, RUN_WORDS, n=1)), "")
    raise ValueError(
        f"Hark never emits {pattern!r}; "
        + (f"did you mean '{words[0]}.{meant}'?" if meant else f"there are {', '.join(RUN_WORDS)}")
    )


def _patterns(value: Any) -> Any:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError(f"`on` is an event type or a list of them, got {value!r:.60}")
    if not items:
        raise ValueError("`on` needs at least one event type")
    if len(items) > MAX_PATTERNS:
        raise ValueError(f"more than {MAX_PATTERNS} event types in one `on`")
    problems = []
    for i, item in enumerate(items):
        try:
            check_pattern(item)
        except ValueError as exc:
            problems.append(Problem(() if isinstance(value, str) else (i,), str(exc)))
    if problems:
        refuse("on", problems, value)
    return tuple(dict.fromkeys(items))


def _where(value: Any) -> Any:
    _, problems = parse_where(value)
    if problems:
        refuse("where", problems, value)
    return value


def _paths(value: Any) -> Any:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError(f"`for_each` is a path such as data.flow.name, or a list of them; got {value!r:.60}")
    if len(items) > 8:
        raise ValueError("more than 8 paths in one `for_each`")
    problems = []
    for i, item in enumerate(items):
        try:
            parse_path(item)
        except ValueError as exc:
            problems.append(Problem(() if isinstance(value, str) else (i,), str(exc)))
    if problems:
        refuse("for_each", problems, value)
    return tuple(items)


def _expression(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("`if` is an expression in CEL, such as data.run.attempt > 2")
    if isinstance(value, str):
        compile_expression(value)
    return value


Types: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_patterns)]
Where: TypeAlias = Annotated[dict[str, Any], BeforeValidator(_where)]
Paths: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_paths)]
Cel: TypeAlias = Annotated[str, BeforeValidator(_expression)]


class EventPattern(Strict):
    """Which events: types, and conditions on one event."""

    foreign_words: ClassVar[Mapping[str, str]] = {
        "type": "on",
        "match": "where",
        "filter": "where",
        "condition": "if",
    }

    on: Types
    where: Where | None = None
    if_: Cel | None = Field(None, alias="if")

    @cached_property
    def node(self) -> Node | None:
        """The parsed ``where``."""
        return parse_where(self.where)[0] if self.where else None


def _pattern(value: Any) -> Any:
    return {"on": value} if isinstance(value, str | list | tuple) else value


Pattern: TypeAlias = Annotated[EventPattern, BeforeValidator(_pattern)]
