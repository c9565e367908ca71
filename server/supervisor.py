"""The parts of a service, each started, watched, restarted after a crash with growing pauses, and stopped in order.

A part is anything with a life (an async context manager). One that crashes is logged and started again; while it is
down, ``is_ready`` is False and readiness says which part it is. One that cannot be started the first time stops the
whole service: starting is when a wrong setting shows. A broker that is slow to answer is no wrong setting: a part that
finds something unavailable tries again for a while first.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import anyio
from anyio import AsyncContextManagerMixin

from ..clock import SYSTEM_CLOCK, Clock
from ..errors import LimitError, UnavailableError
from ..vocabulary import JsonObject

__all__ = ["Part", "PartState", "Supervisor"]

log = logging.getLogger("hark.service")

_PAUSES_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_S = 60.0
"""A part that ran this long starts with the shortest pause again."""
_FIRST_START_S = 60.0
"""For how long the first start of a part is tried again while what it needs is unavailable."""


class PartState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    DOWN = "down"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its name and how to make it anew.

    Attributes:
        stop_rank: parts of the lowest rank stop first, those of one rank together.
        stop_s: how long it may take to stop before it is cancelled.
    """

    name: str
    make: Callable[[], AbstractAsyncContextManager[Any]]
    stop_rank: int = 0
    stop_s: float = 10.0


class _Kept:
    def __init__(self, part: Part) -> None:
        self.part = part
        self.state = PartState.STARTING
        self.instance: Any = None
        self.error = ""
        self.restarts = 0
        self.stop = anyio.Event()
        self.ended = anyio.Event()
        self.scope = anyio.CancelScope()


class Supervisor(AsyncContextManagerMixin):
    """Keeps parts running. Entered means all of them are; left means all are gone, in order of their rank.

    Args:
        first_start_s: for how long a first start is tried again that finds something unavailable.
    Raises (on entering): what a part raised when it was started the first time; ``UnavailableError`` only after
        ``first_start_s``.
    """

    def __init__(
        self, parts: Sequence[Part], *, clock: Clock = SYSTEM_CLOCK, first_start_s: float = _FIRST_START_S
    ) -> None:
        self._parts = {p.name: _Kept(p) for p in parts}
        self._clock, self._first_start_s = clock, first_start_s
        self._moved = anyio.Event()

    async def changed(self) -> None:
        """Wait until some part is in another state than now."""
        await self._moved.wait()

    def running(self, name: str) -> Any:
        """Return the part itself while it runs, else None."""
        kept = self._parts.get(name)
        return kept.instance if kept is not None else None

    @property
    def is_ready(self) -> bool:
        """Whether every part runs."""
        return all(k.state is PartState.RUNNING for k in self._parts.values())

    def report(self) -> JsonObject:
        """Return how each part is: ``{name: {"state", "restarts", "error"?}}``."""
        return {
            name: {
                "state": k.state.value, "restarts": k.restarts, **({"error": k.error} if k.error else {}),
            }
            for name, k in self._parts.items()
        }  # fmt: skip

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            try:
                # Together: most of starting is waiting for the broker, for files and for processes.
                async with anyio.create_task_group() as starting:
                    for kept in self._parts.values():
                        starting.start_soon(self._start, tg, kept)
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self._stop()
                tg.cancel_scope.cancel("all parts stopped")

    async def _start(self, tg: anyio.abc.TaskGroup, kept: _Kept) -> None:
        await tg.start(self._keep, kept)

    async def _keep(self, kept: _Kept, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        first, entered_s = True, self._clock.monotonic()
        try:
            with kept.scope:
                while not kept.stop.is_set():
                    began = self._clock.monotonic()
                    try:
                        async with kept.part.make() as instance:
                            self._note(kept, PartState.RUNNING, instance=instance)
                            if first:
                                first = False
                                task_status.started()
                            else:
                                log.info(
                                    "part.restarted",
                                    extra={"part": kept.part.name, "restarts": kept.restarts},
                                )
                            await kept.stop.wait()
                            kept.state = PartState.STOPPED
                    except Exception as exc:
                        if kept.stop.is_set():
                            log.warning(
                                "part.stop_failed", extra={"part": kept.part.name, "error": _words(exc)}
                            )
                            return
                        waited_s = self._clock.monotonic() - entered_s
                        if first and not (_is_unavailable(exc) and waited_s < self._first_start_s):
                            raise
                        self._note(kept, PartState.STARTING if first else PartState.DOWN, error=_words(exc))
                        await self._pause(kept, exc, ran_s=self._clock.monotonic() - began)
                    else:
                        if not kept.stop.is_set():
                            self._note(kept, PartState.DOWN, error="it ended by itself")
                            await self._pause(kept, None, ran_s=self._clock.monotonic() - began)
        finally:
            self._note(kept, PartState.STOPPED, error=kept.error)
            kept.ended.set()

    def _note(self, kept: _Kept, state: PartState, *, instance: Any = None, error: str = "") -> None:
        kept.state, kept.instance, kept.error = state, instance, error
        moved, self._moved = self._moved, anyio.Event()
        moved.set()

    async def _pause(self, kept: _Kept, exc: Exception | None, *, ran_s: float) -> None:
        if ran_s > _STEADY_S:
            kept.restarts = 0
        pause_s = _PAUSES_S[min(kept.restarts, len(_PAUSES_S) - 1)]
        kept.restarts += 1
        facts = {
            "part": kept.part.name, "error": kept.error, "again_in_s": pause_s, "restarts": kept.restarts,
        }  # fmt: skip
        if kept.state is PartState.STARTING:
            log.warning("part.start_delayed", extra=facts)
        else:
            log.error("part.crashed", exc_info=exc, extra=facts)
        with anyio.move_on_after(pause_s):
            await kept.stop.wait()

    async def _stop(self) -> None:
        ranks = sorted({k.part.stop_rank for k in self._parts.values()})
        for rank in ranks:
            async with anyio.create_task_group() as tg:
                for kept in self._parts.values():
                    if kept.part.stop_rank == rank and kept.state is not PartState.STARTING:
                        tg.start_soon(self._stop_one, kept)

    @staticmethod
    async def _stop_one(kept: _Kept) -> None:
        kept.stop.set()
        with anyio.move_on_after(kept.part.stop_s):
            await kept.ended.wait()
            return
        log.warning("part.stop_cut_short", extra={"part": kept.part.name, "after_s": kept.part.stop_s})
        kept.scope.cancel("took too long to stop")
        await kept.ended.wait()


def _is_unavailable(exc: BaseException) -> bool:
    """Return whether all that went wrong is that something cannot be reached now. A full stream does not get emptier."""
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_unavailable(one) for one in exc.exceptions)
    return isinstance(exc, UnavailableError) and not isinstance(exc, LimitError)


def _words(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return f"{type(exc).__name__}: {exc}"
