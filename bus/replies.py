"""Asking the broker: one inbox per asker, answers matched by number, lost answers noticed.

nats-py's ``request`` costs a task, a timer and two coroutines per question; here a question is a future in a
dict, and one timer (only while questions are open) finds those that got no answer.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import BusConfig
from ..errors import BusUnavailable
from .arrival import Arrival, subscribe
from .turnstile import Turnstile
from .wire import Wire, frame

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Refusal", "Replies", "refusal_in"]

_SWEEP_S = 0.25
LATE_S = 0.1
"""A look for lost answers that comes so much too late says that the loop stood still."""
_PAUSE_S = 0.05  # between tries while the broker answers "not now": a stream recovers in 10 to 100 ms


STORE_FAILED = (
    10077  # with the reason in words: "maximum bytes exceeded", "maximum messages exceeded", a full disk …
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in a JetStream answer: HTTP-like ``code``, JetStream's own ``err_code``, and its words."""

    code: int
    err_code: int
    description: str

    @property
    def is_full(self) -> bool:
        """Whether the stream holds as much as it may; the broker says that with a 503 too."""
        return self.err_code == STORE_FAILED and self.description.startswith("maximum ")

    @property
    def is_passing(self) -> bool:
        """Whether asking again may help: no leader, stream still recovering, too busy."""
        if self.is_full:
            return False
        return self.code >= 500 or self.code == 429 or self.err_code in (10167, 10168)

    def __str__(self) -> str:
        return f"{self.description} ({self.err_code})"


def refusal_in(body: Mapping[str, object]) -> Refusal | None:
    """Return the error a JetStream answer carries, if any."""
    error = body.get("error")
    if not isinstance(error, dict):
        return None
    return Refusal(
        int(error.get("code", 500)), int(error.get("err_code", 0)), str(error.get("description", ""))
    )


class _Place:
    """Where one answer of many belongs; stands in for the future of a single question."""

    __slots__ = ("_answers", "_index", "_left", "_whole")

    def __init__(
        self,
        answers: list[Arrival | None],
        index: int,
        left: list[int],
        whole: asyncio.Future[None] | _Elsewhere,
    ) -> None:
        self._answers, self._index, self._left, self._whole = answers, index, left, whole

    def done(self) -> bool:
        return self._whole.done()

    def set_result(self, msg: Arrival | None) -> None:
        self._answers[self._index] = msg
        self._left[0] -= 1
        if not self._left[0]:
            self._whole.set_result(None)


class _Elsewhere:
    """Stands in for the future of several questions whose asker waits in another thread."""

    __slots__ = ("_answers", "_is_done", "_leave", "_on_answers")

    def __init__(
        self,
        answers: list[Arrival | None],
        on_answers: Callable[[list[Arrival | None]], None],
        leave: Callable[[], None],
    ) -> None:
        self._answers, self._on_answers, self._leave = answers, on_answers, leave
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def set_result(self, _: None) -> None:
        self._is_done = True
        self._leave()
        self._on_answers(self._answers)


class Replies:
    """Asks questions over one connection. Needs no closing: its subscription ends with the connection."""

    def __init__(self, connection: Connection, config: BusConfig) -> None:
        self._connection = connection
        self._timeout_s = config.request_timeout_s
        # A second and third try must fit before the deadline, or a lost answer would always be an error.
        self._try_s = max(0.2, config.request_timeout_s / 3)
        self._open: dict[str, tuple[float, asyncio.Future[Arrival | None] | _Place]] = {}
        self._numbers = itertools.count(1)
        self._inbox = ""
        self._wire: Wire | None = None
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_at, self._was_late = 0.0, False
        self._still_s = 0.0
        """How long the loop stood still in all while answers were awaited: that time counts for nobody."""
        self._up: asyncio.Event | None = None
        self.turnstile = Turnstile()
        """For who asks one question at a time, and may be one of very many; ``insist`` goes through it by itself."""
        self._heard = 0

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    def deadline(self, spent_s: float = 0.0) -> float:
        """Return until when (loop time) to insist from here on. ``spent_s``: a try has been waited for already, at most one."""
        spent_s = min(
            spent_s, self._try_s
        )  # what is longer is time in which a thread or the process stood still
        return asyncio.get_running_loop().time() + self._timeout_s - spent_s

    async def open(self) -> None:
        """Subscribe, once; done by itself at the first question."""
        if self._wire is not None:
            return
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._subscribe())
        try:
            await asyncio.shield(self._opening)
        except BusUnavailable:
            self._opening = None
            raise

    async def _subscribe(self) -> None:
        nc = self._connection.nc
        self._inbox = f"{nc.new_inbox()}."
        self._up = asyncio.Event()
        await subscribe(nc, f"{self._inbox}*", self._on_reply)
        self._connection.on_disconnect(self._on_disconnect)
        self._connection.on_reconnect(self._up.set)
        if self._connection.is_connected:
            self._up.set()
        self._wire = Wire(nc)

    async def ask(
        self, subject: str, payload: bytes, *, headers: str = "", wait_s: float | None = None
    ) -> Arrival | None:
        """Send once and return the answer, or None when it was lost: no answer in time, or the connection broke.

        Cancelling leaves nothing behind; what was sent may still be carried out by the broker.
        """
        if self._wire is None:
            await self.open()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Arrival | None] = loop.create_future()
        number = str(next(self._numbers))
        now = loop.time() - self._still_s
        self._open[number] = (now + (self._try_s if wait_s is None else wait_s), future)
        if self._timer is None:
            self._sweep_later(loop)
        assert self._wire is not None
        self._wire.send(frame(subject, self._inbox + number, headers, payload))
        try:
            return await future
        finally:
            self._open.pop(number, None)

    async def ask_many(self, questions: Sequence[tuple[str, str, bytes]]) -> list[Arrival | None]:
        """Send messages (subject, header lines, payload) once, in order; return their answers as ``ask`` does.

        One wait for all of them: a task and a future for each cost three times as much as sending it.
        """
        if not questions:
            return []
        if self._wire is None:
            await self.open()
        assert self._wire is not None
        loop = asyncio.get_running_loop()
        whole: asyncio.Future[None] = loop.create_future()
        answers: list[Arrival | None] = [None] * len(questions)
        left, until, numbers = [len(questions)], loop.time() - self._still_s + self._try_s, list[str]()
        for index, (subject, headers, payload) in enumerate(questions):
            number = str(next(self._numbers))
            numbers.append(number)
            self._open[number] = (until, _Place(answers, index, left, whole))
            self._wire.send(frame(subject, self._inbox + number, headers, payload))
        if self._timer is None:
            self._sweep_later(loop)
        try:
            await whole
        finally:
            for number in numbers:
                self._open.pop(number, None)
        return answers

    def ask_nowait(
        self,
        questions: Sequence[tuple[str, str, bytes]],
        on_answers: Callable[[list[Arrival | None]], None],
    ) -> bool:
        """Send messages as ``ask_many`` does, if that can be done at once; return whether it was.

        For who waits in another thread: without a task, and without a turn of the loop that the answers do not take.
        It cannot be done without a connection, nor past those who wait at the turnstile.

        Args:
            questions: at least one.
            on_answers: called once in the loop, with what ``ask_many`` returns. May not raise.
        """
        if self._wire is None or not self._connection.is_connected or not self.turnstile.enter_nowait():
            return False
        loop = asyncio.get_running_loop()
        answers: list[Arrival | None] = [None] * len(questions)
        whole = _Elsewhere(answers, on_answers, self.turnstile.leave)
        left, until, frames = [len(questions)], loop.time() - self._still_s + self._try_s, list[bytes]()
        for index, (subject, headers, payload) in enumerate(questions):
            number = str(next(self._numbers))
            self._open[number] = (until, _Place(answers, index, left, whole))
            frames.append(frame(subject, self._inbox + number, headers, payload))
        self._wire.send_now(b"".join(frames))
        if self._timer is None:
            self._sweep_later(loop)
        return True

    async def insist(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: str = "",
        again: Callable[[Arrival], bool] | None = None,
        what: str = "the broker",
        deadline_s: float | None = None,
        at_once: bool = False,
    ) -> Arrival:
        """Ask until there is an answer. Only for questions that may be asked twice.

        Where very many ask at once, the time before its turn does not count.

        Args:
            again: says of an answer that it means "not now"; it is asked again.
            at_once: whoever else asks; also for who has gone through the turnstile already.
        Raises:
            BusUnavailable: no (useful) answer before the deadline.
        """
        timeout_s = self._timeout_s if deadline_s is None else deadline_s
        if at_once:
            return await self._insist(subject, payload, headers, again, what, timeout_s)
        async with self.turnstile:
            return await self._insist(subject, payload, headers, again, what, timeout_s)

    async def _insist(
        self,
        subject: str,
        payload: bytes,
        headers: str,
        again: Callable[[Arrival], bool] | None,
        what: str,
        timeout_s: float,
    ) -> Arrival:
        loop = asyncio.get_running_loop()
        still_s, heard = self._still_s, self._heard
        deadline = loop.time() + timeout_s
        why = "no answer"
        while True:
            msg = await self.ask(subject, payload, headers=headers)
            if msg is not None:
                if msg.status == 503:
                    why = "JetStream is not there (yet)"
                elif again is None or not again(msg):
                    return msg
                else:
                    why = "the stream is not ready"
            deadline, still_s = deadline + self._still_s - still_s, self._still_s
            if loop.time() >= deadline:
                self.give_up(heard)
                raise BusUnavailable(f"{what}: {why} within {timeout_s:g} s")
            await self.until_up(deadline)

    async def until_up(self, deadline: float) -> None:
        """Wait a moment and for the connection, at most until ``deadline`` (loop time)."""
        loop = asyncio.get_running_loop()
        assert self._up is not None
        if not self._connection.is_connected:
            self._up.clear()
        try:
            async with asyncio.timeout_at(deadline):
                await self._up.wait()
                await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            if loop.time() < deadline:
                raise

    @property
    def still_s(self) -> float:
        """How long the loop stood still in all while answers were awaited: a deadline moves by what that grows."""
        return self._still_s

    @property
    def heard(self) -> int:
        """How many answers have come, to whomever."""
        return self._heard

    def give_up(self, heard: int) -> None:
        """Let nobody in line try in vain what one has tried, if no answer came to anybody since ``heard``."""
        if self._heard == heard:
            self.turnstile.turn_away(
                lambda: BusUnavailable(f"the broker did not answer anybody within {self._timeout_s:g} s")
            )

    def _on_reply(self, msg: Arrival) -> None:
        self._heard += 1
        entry = self._open.pop(msg.subject[len(self._inbox) :], None)
        if entry is not None and not entry[1].done():
            entry[1].set_result(msg)

    def _on_disconnect(self) -> None:
        if self._up is not None:
            self._up.clear()
        entries, self._open = self._open, {}
        for _, future in entries.values():
            if not future.done():
                future.set_result(None)

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._sweep_at > LATE_S:
            # The loop stood still. What was answered meanwhile lies in the socket, and is read in the turns to come.
            self._still_s += now - self._sweep_at
            if not self._was_late:
                self._was_late = True
                self._sweep_later(loop)
                return
        self._was_late = False
        now -= self._still_s
        late = [number for number, (until, _) in self._open.items() if until <= now]
        for number in late:
            _, future = self._open.pop(number)
            if not future.done():
                future.set_result(None)
        if self._open:
            self._sweep_later(loop)

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep_at = loop.time() + _SWEEP_S
        self._timer = loop.call_at(self._sweep_at, self._sweep)
