"""What would have been sent to people: caught where it would leave the process, after routing, texts and retries."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..notifications.message import Message, Severity

__all__ = ["CapturedNotifications", "SentNotification", "capture_notifications"]


@dataclass(frozen=True, slots=True)
class SentNotification:
    """One message to one address.

    Attributes:
        kind: scheme of the address, such as ``slack``; ``url`` is all of it, and a secret.
    """

    kind: str
    title: str
    body: str
    severity: Severity
    attach: tuple[str, ...] = ()
    url: str = field(default="", repr=False)


class CapturedNotifications(list[SentNotification]):
    """The messages, in the order in which they were sent; grows while the service works.

    Attributes:
        fails: set to a reason, and every further address refuses with it, so that retries and dead letters can be tested.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fails: str | None = None
        self._came = threading.Condition()

    def _take(self, sent: SentNotification) -> str | None:
        with self._came:
            if self.fails is None:
                self.append(sent)
            self._came.notify_all()
            return self.fails

    def wait(self, count: int = 1, *, timeout_s: float = 10.0) -> CapturedNotifications:
        """Return once there are ``count`` messages. From sync code; in async code use ``await captured.arrived()``.

        Raises:
            AssertionError: there were fewer within ``timeout_s``; says which.
        """
        with self._came:
            if not self._came.wait_for(lambda: len(self) >= count, timeout_s):
                raise AssertionError(
                    f"{len(self)} of {count} notifications within {timeout_s:g} s: {list(self)}"
                )
        return self

    async def arrived(self, count: int = 1, *, timeout_s: float = 10.0) -> CapturedNotifications:
        """As ``wait``, without holding the loop."""
        from anyio import to_thread

        return await to_thread.run_sync(lambda: self.wait(count, timeout_s=timeout_s))


@contextmanager
def capture_notifications() -> Generator[CapturedNotifications]:
    """Catch what this process would send to people; nothing leaves it.

    >>> with capture_notifications() as sent:
    ...     ...
    ...     assert sent.wait(1)[0].title == "etl failed"
    """
    from unittest import mock

    from ..notifications import apprise_port
    from ..notifications.apprise_port import Tried, kind_of

    captured = CapturedNotifications()

    def send(url: str, message: Message, **_: Any) -> Tried:
        sent = SentNotification(
            kind_of(url), message.title, message.body, message.severity, message.attach, url
        )
        reason = captured._take(sent)
        return Tried(reason is None, reason or "")

    with mock.patch.object(apprise_port, "send", send):
        yield captured
