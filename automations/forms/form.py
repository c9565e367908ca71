"""What a form of rule is: a small state machine over keys. One file each: counting, absence, sequence, group, …

A form is told of matching events and of deadlines that have passed, and answers with a ``Firing`` or nothing. It
reads no clock: times are seconds since 1970 and come from the log (``recorded``: when the broker stored the event;
``time``: when it occurred, never later than recorded).

What looks like forgetting is decided by those times alone: an entry that is too old counts as gone whether or not
it has been swept away, so sweeping changes no decision and a restart at any point decides the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from ...vocabulary import JsonObject, JsonValue
from .keyed import Keyed

__all__ = ["MOMENTS", "Arm", "Dated", "EventRef", "Firing", "Form", "Kind", "Seen", "Timeless", "Used"]


MOMENTS = frozenset({"newest", "waits_until", "expected_until", "fires_at", "holds_since"})
"""What of a ``Form.look`` is a moment."""


class EventRef(NamedTuple):
    """An event a decision rests on."""

    id: str
    seq: int
    time: float


class Seen(NamedTuple):
    """An event that matched, and when. ``row`` is the parsed CloudEvent.

    ``ahead_s``: how far ``recorded`` and ``time`` are ahead of the moments written in events (see ``Fold``).
    """

    row: dict[str, Any]
    seq: int
    recorded: float
    time: float
    id: str
    depth: int
    ahead_s: float = 0.0

    @property
    def ref(self) -> EventRef:
        return EventRef(self.id, self.seq, self.time)


@dataclass(frozen=True, slots=True)
class Firing:
    """A rule's condition has come true for a key.

    Attributes:
        at: when, in event time: of the last event, or the deadline.
        count: how many events, or how many deadlines in a row.
        refs: the events it rests on, oldest first; empty if there never was one.
        row: the last of them if at hand, else it is found in the log by its sequence.
        depth: causal depth of the last event.
        mark: what tells this firing from others with the same events.
        extra: more to say in the decision, such as the figure of a metric.
        is_over: no firing, but the end of one: the condition has ceased to hold.
    """

    at: float
    count: int
    refs: tuple[EventRef, ...]
    row: dict[str, Any] | None
    depth: int
    mark: str = ""
    extra: JsonObject | None = None
    is_over: bool = False


class Kind(NamedTuple):
    """State of one kind, by cell. ``dump`` returns a part of what ``Form.dump`` does: those of some cells that there are."""

    cells: Keyed[Any, Any]
    dump: Callable[[Iterable[Any]], object]


Arm: TypeAlias = Callable[[str, float], None]
"""Asks to be told when a deadline (of a key, at a time) has passed."""


class Form(Protocol):
    """The state of one rule, by key."""

    def start(self, now: float) -> None:
        """Begin: the rule has just been adopted."""
        ...

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        """Hear of an event; ``role`` is the place in ``Automation.listens``, of one event the lower is told first."""
        ...

    def due(self, key: str, at: float, now: float) -> Firing | None:
        """Hear that the deadline ``at`` of ``key`` has passed; an outdated one is ignored."""
        ...

    def deadline(self, key: str) -> float | None:
        """Return the deadline a key waits for, None if it does not."""
        ...

    def deadlines(self) -> Iterable[tuple[str, float]]:
        """Return every key that waits, with its deadline."""
        ...

    def keys(self) -> int:
        """Return how many keys have state."""
        ...

    def window(self, key: str) -> int:
        """Return how many events are counted, or deadlines open, for a key (for explanations)."""
        ...

    def look(self, key: str) -> JsonObject:
        """Return how a key stands, for people; moments are seconds since 1970."""
        ...

    def dump(self) -> JsonValue: ...

    def load(self, state: Any) -> None:
        """Take up what ``dump``, or that of a kind, returned, beside what is there."""
        ...

    def kinds(self) -> tuple[Kind, ...]:
        """Return what the state consists of. Its cells are the keys, unless ``watch`` says otherwise."""
        ...

    def watch(self, before: Callable[[Any], None]) -> bool:
        """Tell ``before`` of every cell that is about to change, and return True; False where the cells are the keys."""
        ...


@runtime_checkable
class Dated(Form, Protocol):
    """A form that goes by moments written in events, beside those at which they were recorded."""

    def set_back(self, by: float, now: float) -> None:
        """Hear that the clock was set back: what is to come after ``now`` comes ``by`` seconds later than it seemed."""
        ...


class Timeless:
    """What is common to forms that only events move: nothing ever falls due."""

    __slots__ = ()

    def due(self, key: str, at: float, now: float) -> Firing | None:
        """See ``Form.due``."""
        return None

    def deadline(self, key: str) -> float | None:
        """See ``Form.deadline``."""
        return None

    def deadlines(self) -> Iterable[tuple[str, float]]:
        """See ``Form.deadlines``."""
        return ()


class Used:
    """Says for which keys the event of the moment has fired: told again under another pattern, it is used up there."""

    __slots__ = ("_keys", "_seq")

    def __init__(self) -> None:
        self._seq = 0
        self._keys: set[str] = set()

    def by(self, key: str, seq: int) -> bool:
        return seq == self._seq and key in self._keys

    def up(self, key: str, seq: int) -> None:
        if seq != self._seq:
            self._seq, self._keys = seq, set()
        self._keys.add(key)
