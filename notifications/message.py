"""What is said to people, and what became of it at each address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from ..vocabulary import JsonValue

__all__ = ["Delivery", "Message", "Outcome", "Severity", "clipped", "summary"]

_MAX_TITLE = 250
_MAX_BODY = 32_768
_LISTED = 20


class Severity(StrEnum):
    """How bad it is; services show it by colour or picture. ``failure`` is read as ``error``."""

    INFO = "info"
    SUCCESS = "success"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"

    @classmethod
    def _missing_(cls, value: object) -> Severity | None:
        if not isinstance(value, str):
            return None
        low = value.strip().lower()
        return cls.ERROR if low == "failure" else next((s for s in cls if s.value == low), None)

    @property
    def rank(self) -> int:
        """0 for the mildest; success counts as information."""
        return {"info": 0, "success": 0, "warning": 1, "error": 2, "critical": 3}[self.value]


@dataclass(frozen=True, slots=True)
class Message:
    """A message.

    Attributes:
        attach: what to send along, for services that take it: paths or URLs, ``log:<flow run id>`` for the log of a run,
            ``object:<name>`` for something in the object store.
        context: what the templates of channels may read besides title, body and severity.
    """

    title: str
    body: str = ""
    severity: Severity = Severity.INFO
    attach: tuple[str, ...] = ()
    context: Mapping[str, JsonValue] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "severity", Severity(self.severity))
        if not self.title.strip() and not self.body.strip():
            raise ValueError("a message has a title or a body")


Outcome: TypeAlias = Literal["sent", "already-sent", "held", "failed"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a message at one address.

    Attributes:
        channel: name of the channel, None for a bare address.
        address: which address of the channel, from 0; ``kind`` is its scheme, such as ``mailto``. Never the URL.
        outcome: ``already-sent``: an earlier call with this key did; ``held``: over the channel's rate, it comes with
            the next summary.
        attempts: tries made by this call; duration_s: of all of them together, without the waits between.
        reason: why it failed, redacted.
    """

    channel: str | None
    address: int
    kind: str
    outcome: Outcome
    attempts: int = 0
    duration_s: float = 0.0
    reason: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the message has reached the address or will without anybody doing more."""
        return self.outcome != "failed"


def clipped(message: Message) -> Message:
    """Return the message with title and body no longer than any service could show."""
    title, body = message.title.strip(), message.body
    if len(title) > _MAX_TITLE:
        title = title[: _MAX_TITLE - 1] + "…"
    if len(body) > _MAX_BODY:
        body = f"{body[:_MAX_BODY]}\n… ({len(body) - _MAX_BODY} characters more)"
    return Message(title, body, message.severity, message.attach, message.context)


def summary(messages: Sequence[Message]) -> Message:
    """Return one message that stands for several (at least one): their titles, the worst severity, and how many.

    Equal titles are listed once with their number; past twenty different ones the rest is "and N more".
    """
    if len(messages) == 1:
        return messages[0]
    counted: dict[str, int] = {}
    for message in messages:
        title = message.title.strip() or message.body.strip().splitlines()[0][:_MAX_TITLE]
        counted[title] = counted.get(title, 0) + 1
    listed = list(counted.items())
    lines = [f"- {title}" + (f" ({n}x)" if n > 1 else "") for title, n in listed[:_LISTED]]
    if left := sum(n for _, n in listed[_LISTED:]):
        lines.append(f"- and {left} more")
    first = next(iter(counted))
    return Message(
        title=f"{first} and {len(messages) - 1} more",
        body=f"{len(messages)} messages came faster than this channel's rate:\n" + "\n".join(lines),
        severity=max((m.severity for m in messages), key=lambda s: s.rank),
    )
