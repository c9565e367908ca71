"""How far the read model is, for all who wait for it, whoever folds it."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from ..errors import UnavailableError

__all__ = ["Pace", "Progress"]


class Progress:
    """The last sequence that can be read, moved on by whoever folds, in this process or told by another."""

    def __init__(self) -> None:
        self._seq = 0
        self._behind = 0
        self._whole_from: int | None = None
        self._moved = anyio.Event()
        self._doubted = anyio.Event()
        self._waiting = 0
        self.on_awaited: Callable[[], None] | None = None
        """Called when somebody begins to wait."""

    @property
    def seq(self) -> int:
        """The sequence of the last event in the read model."""
        return self._seq

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for it to be further."""
        return self._waiting > 0

    @property
    def behind(self) -> int:
        """How many events the broker still had to hand over after the last batch."""
        return self._behind

    def reach(self, seq: int, behind: int) -> None:
        """Note that everything up to ``seq`` can be read, and how much waits."""
        self._seq, self._behind = seq, behind
        moved, self._moved = self._moved, anyio.Event()
        moved.set()

    def go_back(self, seq: int) -> None:
        """Note that rows are about to be dropped: what is folded begins again behind ``seq``."""
        self._seq = seq

    @property
    def whole_from(self) -> int:
        """The sequence from which on answers are right; before, what is folded is only a part of what was."""
        return self._whole_from or 0

    def begin(self, whole_from: int) -> None:
        """Note that rows are missing until ``whole_from`` is reached: it is folded from the beginning, or from far back."""
        self._whole_from = whole_from

    def end(self, seq: int) -> None:
        """Note that the log has nothing more behind ``seq`` now: what was last at the beginning may have left it unread."""
        self._whole_from = min(self.whole_from, seq)

    def open_at(self, seq: int, *, last_seq: int, far: int) -> None:
        """Note that the file is opened, which has the log up to ``seq``; the log's last event is ``last_seq``.

        A file that begins anew is whole once it has the log as of now, and so is one more than ``far`` behind that nobody has
        read since this service began. What has been read goes on being read, however far behind it is.
        """
        before = self._whole_from
        if before is None:
            before = last_seq if last_seq - seq > far else 0
        self._whole_from = last_seq if seq == 0 else min(last_seq, before)
        self._doubted = anyio.Event()

    def require_whole(self) -> None:
        """Raise ``UnavailableError`` while an answer would leave out what was there before."""
        if self._seq < self.whole_from:
            raise UnavailableError(
                f"the read model is being folded from the log: event {self._seq} of {self.whole_from}",
                hint="try again in a moment; runs, rules and schedules go on meanwhile",
            )

    def doubt(self) -> None:
        """Note that somebody could not read it, for whoever folds."""
        self._doubted.set()

    async def doubted(self) -> None:
        """Wait until somebody could not read it."""
        await self._doubted.wait()
        self._doubted = anyio.Event()

    async def moved(self) -> None:
        """Wait until it is further than now."""
        await self._moved.wait()

    async def caught_up(self, seq: int, *, timeout_s: float = 5.0) -> None:
        """Wait until the event at ``seq`` can be read.

        Raises:
            UnavailableError: it took longer than ``timeout_s``.
        """
        if self._seq >= seq:
            return
        self._waiting += 1
        try:
            if self.on_awaited is not None:
                self.on_awaited()
            with anyio.move_on_after(timeout_s):
                while self._seq < seq:
                    await self._moved.wait()
                return
        finally:
            self._waiting -= 1
        raise UnavailableError(
            f"the read model has reached event {self._seq}, and {seq} was asked for",
            hint="it is catching up; try again in a moment",
        )


class Pace:
    """How many events a second come, over stretches of some seconds. Pure: told the time.

    Args:
        over_s: the shortest stretch that says something.
    """

    def __init__(self, *, seq: int, now_s: float, over_s: float) -> None:
        self._seq, self._since_s, self._over_s = seq, now_s, over_s

    def at(self, seq: int, now_s: float) -> float | None:
        """Return the events a second since the last answer; None while it is too soon for the next."""
        took_s = now_s - self._since_s
        if took_s < self._over_s:
            return None
        rate = max(0, seq - self._seq) / took_s
        self._seq, self._since_s = seq, now_s
        return rate
