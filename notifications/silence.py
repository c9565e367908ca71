"""Silences: for a while, alerts that match are told to nobody. Made by people, kept in the bucket ``silences``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from ..errors import DefinitionError
from ..vocabulary import JsonObject, JsonValue
from .language import Facts, Holds, Language

__all__ = ["KEEP_S", "Silence", "SilenceBook", "matchers"]

KEEP_S = 5 * 86_400.0
"""For how long a silence that is over stays listed."""
_MATCHER = re.compile(r"\s*(?P<path>[^=!~\s]+)\s*(?P<sign>=~|!~|!=|=)\s*(?P<value>.*?)\s*", re.DOTALL)


_NAME = re.compile(r"[a-z][a-z0-9_]*")
_WORD = re.compile(r"\w[\w.:/@-]*")
"""What a condition takes for itself, and not for an operator with a value."""


class Silence(BaseModel):
    """Who silenced what, from when to when, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    id: str
    match: dict[str, JsonValue] = Field(
        min_length=1, description="a condition on labels and event, as in `where`"
    )
    starts_at: AwareDatetime
    ends_at: AwareDatetime
    created_by: str = ""
    comment: str = ""

    @model_validator(mode="after")
    def _lasts(self) -> Silence:
        if self.ends_at < self.starts_at:
            raise ValueError("a silence ends after it starts")
        return self

    def state(self, now: datetime) -> str:
        """Return ``pending``, ``active`` or ``expired``."""
        if now >= self.ends_at:
            return "expired"
        return "active" if now >= self.starts_at else "pending"

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode()

    def shown(self, now: datetime) -> JsonObject:
        value: JsonObject = orjson.loads(self.to_bytes())
        return {**value, "state": self.state(now)}


def matchers(words: Iterable[str]) -> JsonObject:
    """Return the condition meant by ``name=value``, ``name!=value``, ``name=~regex``, ``name!~regex``, all of which hold.

    Raises:
        DefinitionError: a word is none of these.
    """
    found: JsonObject = {}
    for word in words:
        match = _MATCHER.fullmatch(word)
        if not match:
            raise DefinitionError(
                f"{word!r} is no matcher",
                hint="write automation=etl-failing, severity!=critical or data.host=~web.*",
            )
        path, value = match["path"], _value(match["value"])
        # Alertmanager's patterns are about the whole value.
        pattern: JsonValue = {"regex": f"^(?:{match['value']})$"}
        said: JsonValue = {"=": value, "!=": {"not": value}, "=~": pattern, "!~": {"not": pattern}}[
            match["sign"]
        ]
        if path in found:
            raise DefinitionError(f"{path!r} is asked twice", hint="write one matcher for each label")
        found[path] = said
    if not found:
        raise DefinitionError(
            "a silence without a matcher would silence everything",
            hint="say what: severity=~.* is everything",
        )
    return found


def _value(text: str) -> JsonValue:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    # Labels are texts (the key of a rule for each shard 1 is "1"), fields of events may be numbers: both are meant.
    return [value, text] if isinstance(value, int | float | bool) else text if value is not None else None


@dataclass(frozen=True, slots=True)
class _Entry:
    silence: Silence
    holds: Holds
    starts_at: float
    ends_at: float


class SilenceBook:
    """All silences there are, compiled. Immutable: a change makes a new one.

    Args:
        before: one of which those that have not changed are taken over.
    """

    def __init__(
        self, silences: Mapping[str, Silence], language: Language, *, before: SilenceBook | None = None
    ) -> None:
        self.refused: dict[str, str] = {}
        self._known: dict[str, _Entry] = {}
        known = before._known if before is not None else {}
        for id_, silence in sorted(silences.items()):
            entry = known.get(id_)
            if entry is None or entry.silence is not silence:
                try:
                    holds = language.condition(dict(silence.match))
                except DefinitionError as exc:
                    self.refused[id_] = str(exc)
                    continue
                entry = _Entry(silence, holds, silence.starts_at.timestamp(), silence.ends_at.timestamp())
            self._known[id_] = entry
        # Most name the rule, or some other label: by its value, so that thousands of silences cost no more than a few.
        self._by_label: dict[str, dict[str, list[_Entry]]] = {}
        self._others: list[_Entry] = []
        for entry in self._known.values():
            label, value = _named_by(entry.silence)
            at = self._by_label.setdefault(label, {}).setdefault(value, []) if label else self._others
            at.append(entry)

    def holding(self, facts: Facts, at: float) -> tuple[str, float] | None:
        """Return the silence that holds an alert back at ``at`` and its end (of several the last to end), or None."""
        found: tuple[str, float] | None = None
        for entry in self._for(facts):
            if (
                entry.starts_at <= at < entry.ends_at
                and (not found or (entry.ends_at, found[0]) > (found[1], entry.silence.id))
                and entry.holds(facts)
            ):
                found = entry.silence.id, entry.ends_at
        return found

    def _for(self, facts: Facts) -> Iterator[_Entry]:
        """Yield those that may hold for an alert."""
        yield from self._others
        for label, entries in self._by_label.items():
            value = facts.get(label)
            if isinstance(value, str):
                yield from entries.get(value, ())
            elif value is not None:
                for some in entries.values():
                    yield from some


def _named_by(silence: Silence) -> tuple[str, str]:
    """Return a label that has to have a certain value for a silence to hold, and that value; empty if there is none."""
    for path, value in silence.match.items():
        if _NAME.fullmatch(path) and isinstance(value, str) and _WORD.fullmatch(value):
            return path, value
    return "", ""


def silence_of(raw: bytes) -> Silence:
    """Read a stored silence.

    Raises:
        ValueError: it is not readable.
    """
    value: Any = orjson.loads(raw)
    return Silence.model_validate(value)
