"""Where the read model is folded: in this process while little happens, in one of its own while much does.

Folding is the largest part of what each event costs, and who reads it is in no hurry. Rules, the dispatcher and actions
are: in one process with the folding, each of their steps would wait for it. A process of its own takes memory and half a
second to start, which a quiet system need not pay.
"""

from __future__ import annotations

import logging
import math
import pickle
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import orjson
from anyio import AsyncContextManagerMixin
from anyio.abc import Process, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from ..clock import SYSTEM_CLOCK, Clock
from ..config import StorageConfig
from ..errors import HarkError, UnavailableError
from .charge import GO, LOOK, Charge
from .precedence import Processor, is_starving
from .progress import Pace, Progress
from .projector import Projector

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["Projection"]

log = logging.getLogger(__name__)

_BUSY_S = 2.0
"""How long there has to be much to fold, before a process is started for it."""
_QUIET_S = 30.0
"""How long there has to be little, before that process is ended."""
_QUIET_SHARE = 0.25
"""What is little: this part of what is much, so that nothing goes to and fro."""
_START_S, _END_S = 30.0, 5.0
_AGAIN_S = 60.0
"""After a process that could not be started, or died: how long until the next one."""
_HUNGER_S = 2.0
"""Over how long it is seen whether that process gets to run at all."""
_PUSHING_S = 10 * 60.0
"""After a process that gave way to others at once got nothing done: for how long the next ones do not."""
_LINE_BYTES = 1 << 20


class Projection(AsyncContextManagerMixin):
    """Keeps the read model at ``path`` up with the log, as ``Projector`` does, here or in a process of its own.

    Args:
        progress: to be moved on; by default one of its own.
        config: ``apart_from``: from how many events a second it is in a process of its own.
    Raises (on entering): as ``Projector``.
    """

    def __init__(
        self,
        bus: Bus,
        path: Path,
        config: StorageConfig,
        clock: Clock = SYSTEM_CLOCK,
        *,
        progress: Progress | None = None,
    ) -> None:
        self._bus, self._path, self._config, self._clock = bus, path, config, clock
        self._progress = progress or Progress()
        self._here: Projector | None = None
        self._came_home = anyio.Event()
        self._wanted_home = anyio.Event()
        self._staying = anyio.Lock()
        self._not_before_s = 0.0
        self._pushes_until_s = -math.inf

    @property
    def seq(self) -> int:
        """The sequence of the last event in the read model."""
        return self._progress.seq

    @property
    def behind(self) -> int:
        """How many events the broker still had to hand over after the last batch."""
        return self._progress.behind

    @property
    def is_apart(self) -> bool:
        """Whether it is another process that folds."""
        return self._here is None

    async def caught_up(self, seq: int, *, timeout_s: float = 5.0) -> None:
        """Wait until the event at ``seq`` can be read.

        Raises:
            UnavailableError: it took longer than ``timeout_s``.
        """
        await self._progress.caught_up(seq, timeout_s=timeout_s)

    async def rebuild(self) -> None:
        """Drop every row and fold the log from its beginning, up to where it ends now. In this process."""
        async with self._staying:
            while (here := self._here) is None:
                self._wanted_home.set()
                await self._came_home.wait()
            await here.rebuild()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            await tg.start(self._run)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel("projector closing")

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        first = True
        while True:
            async with AsyncExitStack() as stack:
                async with Projector(
                    self._bus, self._path, self._config, self._clock, progress=self._progress
                ) as here:
                    self._here, self._wanted_home = here, anyio.Event()
                    came, self._came_home = self._came_home, anyio.Event()
                    came.set()
                    if first:
                        first = False
                        task_status.started()
                    try:
                        child = await self._move_out(stack)
                    finally:
                        self._here = None
                following: _Child | None = child
                while following is not None:
                    following = await self._follow(following, stack)

    async def _move_out(self, stack: AsyncExitStack) -> _Child:
        """Wait until there is much to fold, and return a process that waits to do it."""
        while True:
            await self._busy()
            async with self._staying:
                try:
                    child = await stack.enter_async_context(_started(self._charge()))
                except HarkError as exc:
                    self._failed(exc)
                    continue
                self._here = None  # before anybody else can ask it for something
                log.info("storage.apart", extra={"seq": self.seq, "child": child.pid})
                return child

    def _charge(self) -> Charge:
        return Charge(
            self._bus.address, self._bus.config, self._config, self._path,
            level=log.getEffectiveLevel(), gives_way_at_once=self._clock.monotonic() >= self._pushes_until_s,
        )  # fmt: skip

    def _failed(self, exc: HarkError) -> None:
        self._not_before_s = self._clock.monotonic() + _AGAIN_S
        log.warning("storage.apart_failed", extra={"error": str(exc), "again_in_s": _AGAIN_S})

    async def _busy(self) -> None:
        """Wait until there is so much to fold that it is better done elsewhere."""
        pace = Pace(seq=self.seq, now_s=self._clock.monotonic(), over_s=_BUSY_S)
        while True:
            await self._progress.moved()
            now = self._clock.monotonic()
            rate = pace.at(self.seq, now)
            if rate is not None and now >= self._not_before_s and 0 < self._config.apart_from <= rate:
                return

    async def _follow(self, child: _Child, stack: AsyncExitStack) -> _Child | None:
        """Hear how far the process is, until there is little to do, or it has to be done here.

        Return its successor, if it does not get to run. Folding here meanwhile would make everything else in this process wait
        for it, while others leave it little of the processors.
        """
        successor: _Child | None = None
        async with anyio.create_task_group() as tg:

            async def come_home() -> None:
                await self._wanted_home.wait()
                tg.cancel_scope.cancel("wanted here")

            async def mind_hunger() -> None:
                await _starving(child.pid)
                self._pushes_until_s = self._clock.monotonic() + _PUSHING_S
                log.warning("storage.apart_starving", extra={"child": child.pid})
                nonlocal successor
                try:
                    successor = await stack.enter_async_context(_started(self._charge()))
                except HarkError as exc:
                    self._failed(exc)
                child.kill()  # to end by itself it would have to run
                tg.cancel_scope.cancel("it does not get to run")

            async def look() -> None:
                while True:
                    await self._progress.doubted()
                    with suppress(UnavailableError):  # it has ended: what is heard of it says so
                        await child.write(LOOK)

            tg.start_soon(come_home)
            if self._clock.monotonic() >= self._pushes_until_s:
                tg.start_soon(mind_hunger)
            try:
                await child.go(self._progress.whole_from)
                tg.start_soon(look)
                await self._hear(child)
            except HarkError as exc:
                self._failed(exc)
            tg.cancel_scope.cancel("nothing more to hear")
        if successor is None:
            log.info("storage.home", extra={"seq": self.seq})
            return None
        await child.ended()  # it may be in the middle of writing
        log.info("storage.apart", extra={"seq": self.seq, "child": successor.pid})
        return successor

    async def _hear(self, child: _Child) -> None:
        pace = Pace(seq=self.seq, now_s=self._clock.monotonic(), over_s=_QUIET_S)
        while True:
            with anyio.move_on_after(_QUIET_S):
                seq, behind, whole_from = await child.reached()
                self._progress.begin(whole_from)
                self._progress.reach(seq, behind)
            rate = pace.at(self.seq, self._clock.monotonic())
            if rate is not None and rate < self._config.apart_from * _QUIET_SHARE:
                return


async def _starving(pid: int) -> None:
    """Wait until a process wants to run and others leave it no processor; for ever where that cannot be seen."""
    before, since_s = Processor.of(pid), anyio.current_time()
    while before is not None:
        await anyio.sleep(_HUNGER_S)
        now, now_s = Processor.of(pid), anyio.current_time()
        if now is None:
            break
        if is_starving(before, now, took_s=now_s - since_s):
            return
        before, since_s = now, now_s
    await anyio.sleep_forever()


class _Child:
    """A process that folds."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it where it stands. What it has not stored is folded again."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> None:
        """Wait until it has ended, but not for long."""
        with anyio.move_on_after(_END_S):
            await self._process.wait()

    async def ready(self) -> None:
        """Wait until it is connected."""
        while "ready" not in await self._said():
            pass

    async def go(self, whole_from: int) -> None:
        """Let it begin with a file that is whole from a sequence on."""
        await self.write(b"%s %d\n" % (GO, whole_from))

    async def write(self, what: bytes) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send(what)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise UnavailableError("the process of the read model has ended by itself") from exc

    async def reached(self) -> tuple[int, int, int]:
        """Return the next sequence it says it has reached, how many events wait, and from where on it is whole."""
        while True:
            said = await self._said()
            if "seq" in said:
                return int(said["seq"]), int(said["behind"]), int(said["whole_from"])

    async def _said(self) -> dict[str, Any]:
        """Return the next thing it says that is not for the log."""
        while True:
            try:
                line = await self._lines.receive_until(b"\n", _LINE_BYTES)
            except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError) as exc:
                raise UnavailableError("the process of the read model has ended by itself") from exc
            said: dict[str, Any] = orjson.loads(line)
            if "log" not in said:
                return said
            logging.getLogger(str(said["logger"])).log(said["level"], "%s", said["log"], extra=said["facts"])


@asynccontextmanager
async def _started(charge: Charge) -> AsyncGenerator[_Child]:
    """Have a process that is ready to fold while inside; afterwards it is gone.

    Raises:
        UnavailableError: none could be started.
    """
    try:
        process = await anyio.open_process(
            [sys.executable, "-m", "hark.storage.projector_child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None,
        )  # fmt: skip
    except OSError as exc:
        raise UnavailableError(f"no process could be started for the read model: {exc}") from exc
    try:
        child = _Child(process)
        with anyio.move_on_after(_START_S) as starting:
            await child.write(pickle.dumps(charge))
            await child.ready()
        if starting.cancelled_caught:
            raise UnavailableError(f"the process of the read model was not ready within {_START_S:g} s")
        yield child
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _end(process: Process) -> None:
    """Close its input, upon which it ends; kill it if it does not."""
    assert process.stdin is not None
    await process.stdin.aclose()
    with anyio.move_on_after(_END_S) as ending:
        await process.wait()
    if ending.cancelled_caught:
        log.warning("storage.apart_killed", extra={"child": process.pid, "after_s": _END_S})
        process.kill()
    await process.aclose()
