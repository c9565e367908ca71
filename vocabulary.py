"""The plain words every room speaks: ids, JSON, states.

This file is called ``vocabulary`` and not ``types`` because the repository root is the package: a root
``types.py`` would shadow the standard library's for every script started from a checkout.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from enum import StrEnum
from typing import NewType, TypeAlias

from typing_extensions import TypeAliasType

__all__ = [
    "FlowRunId",
    "TaskRunId",
    "EventId",
    "JsonScalar",
    "JsonValue",
    "JsonObject",
    "StateType",
    "TERMINAL",
    "draw",
    "new_id",
    "derived_id",
    "sendable",
]

FlowRunId = NewType("FlowRunId", str)
TaskRunId = NewType("TaskRunId", str)
EventId = NewType("EventId", str)

JsonScalar: TypeAlias = "str | int | float | bool | None"
# TypeAliasType, because pydantic resolves a plain recursive alias in the module that uses it, and fails there.
JsonValue = TypeAliasType(
    "JsonValue", "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
)
JsonObject = TypeAliasType("JsonObject", "dict[str, JsonValue]")


class StateType(StrEnum):
    """The nine kinds of state; rules of orchestration look at these, never at names."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CRASHED = "CRASHED"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"

    @property
    def is_terminal(self) -> bool:
        """Whether a run in this state is over for good."""
        return self in TERMINAL


TERMINAL = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED})


def new_id() -> str:
    """Return a new time-ordered id: a UUIDv7 in its 36-character text form.

    26 random bits are drawn once a millisecond, and the last 48 bits count up from a random start: what is drawn for
    each id anew costs three times as much, and ids of one millisecond would be in no order.

    Source: RFC 9562, sections 5.7 and 6.2.
    """
    global _ids
    ms = time.time_ns() // 1_000_000
    at, head, numbers = _ids
    if ms > at or at - ms > _CLOCK_SET_BACK_MS:
        rand = _random.getrandbits(73)
        value = (
            (ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (rand >> 61) << 64 | 0b10 << 62 | rand & (1 << 61) - 1
        )
        # The start leaves its first bit free, so that counting does not run over.
        head, numbers = _uuid_text(value)[:24], itertools.count(rand & (1 << 47) - 1)
        # Replaced as one, and counted in C: threads that meet here make different ids.
        _ids = ms, head, numbers
    return f"{head}{next(numbers):012x}"


def draw() -> float:
    """Return a random share of [0, 1) to spread waits by, so that what failed together does not come back together."""
    return _random.random()


# Ids must not repeat, but need not be unguessable: seeded by the system once, they cost no system call each. Not the
# module's own generator, which a user's `random.seed(1)` would make repeat itself.
_random = random.Random()  # noqa: S311
_ids: tuple[int, str, itertools.count[int]] = (-1, "", itertools.count())
_CLOCK_SET_BACK_MS = 1000
"""Less than this, and ids go on from the time that was already reached."""


def _after_fork() -> None:
    """A child must not go on counting where its parent does."""
    global _ids
    _random.seed()
    _ids = (-1, "", itertools.count())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _uuid_text(value: int) -> str:
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def sendable(text: str) -> str:
    """Return a text as it can be stored and sent, with a ``?`` for each half character (lone surrogate) in it.

    Python makes such texts of bytes that are no UTF-8, and they turn up in the messages of exceptions.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def derived_id(*cause: str) -> str:
    """Return the id that belongs to a cause: the same words give the same id, everywhere and always.

    The parts are length-prefixed before hashing, so ``("a", "bc")`` and ``("ab", "c")`` differ.
    The text form is that of a UUIDv8 (RFC 9562, section 5.8).
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in cause:
        raw = part.encode()
        digest.update(len(raw).to_bytes(4))
        digest.update(raw)
    value = int.from_bytes(digest.digest())
    value = value & ~(0xF << 76) | 0x8 << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return _uuid_text(value)
