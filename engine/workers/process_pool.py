"""Warm processes for sync flows: forked from a clean server, connected ahead of time, one deployment's code in each.

A child serves many runs of the same code and none of another, so nothing a flow leaves in its modules reaches somebody
else's run. One that dies takes only its own run with it, and that is known at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self, cast

import anyio
import orjson
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup

from ...bus.address import BrokerAddress
from ...config import BusConfig, EngineConfig
from ...errors import UnavailableError
from ...vocabulary import FlowRunId, JsonObject
from ..executors.frame import encode, read_frame
from ..executors.process_main import server_command
from .execution import Job, Outcome, OutcomeKind
from .places import HeldPlace
from .process_child import encode_address
from .stop_request import StopRequest

__all__ = ["MAX_RUNS", "ProcessPool"]

log = logging.getLogger(__name__)

MAX_RUNS = 50
"""Runs after which a child is replaced: what user code leaks, leaks no further."""
_START_S = 30.0
"""Longest time for the server to import everything, or for a child to connect; then it is taken for stuck."""
_STOP_S = 2.0
_MOST_CHILDREN = 10
"""Tried for one run: each worker keeps at most a few with code that may be out of date."""


@dataclass(eq=False, slots=True)
class _Child:
    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    key: str | None = None
    runs: int = 0
    jobs: int = 0
    """How many it was given. The number of a job says which one an interrupt is for: a run may come back to it."""
    running: FlowRunId | None = None
    is_parked: bool = False
    """Whether its run has given back its place: then it is not one of those that are kept."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    code: int | None = None

    def send(self, message: JsonObject) -> None:
        self.writer.write(encode(message))


@dataclass(eq=False, slots=True)
class _Server:
    """The fork server as we see it."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    forked: asyncio.Queue[int]
    children: dict[int, _Child] = field(default_factory=dict)
    early: dict[int, int | None] = field(default_factory=dict)
    """Exit codes of children that ended before we had come to know them."""
    gone: bool = False


class ProcessPool(AsyncContextManagerMixin):
    """Executes jobs in child processes. Entered means one child is warm, or becomes so; left means all are gone.

    Args:
        warm: children kept ready that no code has been loaded into.
        keep: children kept for the code they have loaded, while idle.
        wait: whether entering waits for the first child; else a job that comes before it does.
    """

    def __init__(
        self,
        address: BrokerAddress,
        bus_config: BusConfig,
        engine: EngineConfig,
        *,
        warm: int,
        keep: int,
        wait: bool = True,
    ) -> None:
        self._hello: JsonObject = {
            "address": encode_address(address),
            "bus": bus_config.model_dump(mode="json", exclude={"password", "token"}),
            "engine": engine.model_dump(mode="json"),
        }
        self._warm, self._keep, self._wait = warm, keep, wait
        self._server: _Server | None = None
        self._forking = anyio.Lock()
        self._starting: list[_Child] = []
        self._spare: list[_Child] = []
        self._idle: list[_Child] = []
        self._busy: dict[FlowRunId, _Child] = {}
        self._closing = False
        self._warming: anyio.CancelScope | None = None
        self._warmed = anyio.Event()
        self._tg: TaskGroup | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with anyio.create_task_group() as tg:
            self._tg = tg
            try:
                with anyio.fail_after(_START_S):
                    if not self._wait:
                        pass
                    elif self._warm:
                        child = await self._new_child()
                        self._spare.append(child)
                    else:
                        await self._running_server()
                self._refill()
                yield self
            finally:
                self._closing = True
                with anyio.CancelScope(shield=True):
                    if self._warming is not None:
                        self._warming.cancel("the pool closes")
                        with anyio.move_on_after(_STOP_S):
                            await self._warmed.wait()
                    await self._stop()
                tg.cancel_scope.cancel()
                self._tg = None

    @property
    def pids(self) -> list[int]:
        """The children that live."""
        server = self._server
        return sorted(server.children) if server else []

    @property
    def kept(self) -> list[int]:
        """Those of them that start, wait for a run or execute one; the others have been told to go."""
        kept = (*self._starting, *self._spare, *self._idle, *self._busy.values())
        return sorted(child.pid for child in kept)

    @property
    def server_pid(self) -> int | None:
        return self._server.process.pid if self._server else None

    async def run(
        self, job: Job, *, stop: StopRequest | None = None, grace_s: float = 10.0, place: HeldPlace | None = None,
    ) -> Outcome:  # fmt: skip
        """Execute a job and return how it ended, once it has.

        ``died`` when the process did, with how in ``detail``. Being cancelled kills the process.

        Args:
            stop: once set, ``Interrupted`` is raised in the run's main thread, and after ``grace_s`` it is killed.
            place: of the run in the worker, given back while it waits. Its process is one more than are kept then.
        Raises:
            UnavailableError: no process could be started.
        """
        stop = stop or StopRequest()
        for _ in range(_MOST_CHILDREN):
            if stop.is_set():
                return Outcome("interrupted")
            child = await self._take(job)
            self._busy[job.run.id] = child
            child.running = job.run.id
            try:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(self._stop_when, stop, child, job.run.id, grace_s)
                    outcome = await self._converse(child, job, place)
                    tg.cancel_scope.cancel()
            except BaseException:
                self._kill(child)
                raise
            finally:
                del self._busy[job.run.id]
                child.running = None
                child.is_parked = False
                if place is not None:
                    place.take()
            if outcome is not None:
                self._give_back(child, healthy=outcome.kind != "died")
                return outcome
            # Its code is out of date, or it ended before it began: it goes, and another takes the run.
            self._retire(child)
        raise UnavailableError(f"{_MOST_CHILDREN} processes in a row could not begin the run")

    async def _stop_when(self, stop: StopRequest, child: _Child, run_id: FlowRunId, grace_s: float) -> None:
        await stop.wait()
        child.send({"interrupt": child.jobs})
        await anyio.sleep(grace_s)
        log.warning("worker.killed_run", extra={"run_id": run_id, "after_s": grace_s})
        self._kill(child)

    # --- one run --------------------------------------------------------------------------------------

    async def _converse(self, child: _Child, job: Job, place: HeldPlace | None) -> Outcome | None:
        child.jobs += 1
        child.send({**job.to_json(), "number": child.jobs})
        taken = False
        while True:
            message = await read_frame(child.reader)
            if message is None:
                how = await self._how_it_died(child)
                # One that died before it began has cost the run nothing.
                return Outcome("died", how) if taken else None
            if "stale" in message:
                return None
            taken = taken or "taken" in message
            if "place" in message and message["number"] == child.jobs:
                self._on_place(child, place, message)
            if message.get("done") == job.run.id:
                child.runs += 1
                return Outcome(cast("OutcomeKind", message["outcome"]), str(message["detail"]))

    def _on_place(self, child: _Child, place: HeldPlace | None, message: JsonObject) -> None:
        """Hear that the run of a child gives its place back, or takes one again."""

        def answer(has_been: bool) -> None:
            child.is_parked = has_been
            child.send({**message, "place": has_been})

        if message["place"] == "give":
            left_s = message["left_s"]
            ends_at = time.monotonic() + left_s if isinstance(left_s, float) else None
            answer(place is not None and place.give(lambda: answer(True), ends_at))
            return
        child.is_parked = False
        if place is not None:
            place.take()
        self._trim()

    async def _how_it_died(self, child: _Child) -> str:
        with anyio.move_on_after(_STOP_S):
            await child.ended.wait()
        if child.code is None:
            self._kill(child)
            return f"process {child.pid} closed its connection to the worker"
        if child.code < 0:
            return f"process {child.pid} was killed by {_signal_name(-child.code)}"
        return f"process {child.pid} ended by itself with exit code {child.code}"

    # --- children -------------------------------------------------------------------------------------

    async def _take(self, job: Job) -> _Child:
        """Return a child for a job: one with its code, else an empty one, else a new one."""
        for child in reversed(self._idle):
            if child.key == job.code and not child.ended.is_set():
                self._idle.remove(child)
                return child
        child = self._spare.pop(0) if self._spare else await self._new_child()
        child.key = job.code
        self._trim()
        self._refill()
        return child

    def _give_back(self, child: _Child, *, healthy: bool) -> None:
        if not healthy or self._closing or child.ended.is_set() or child.runs >= MAX_RUNS:
            self._retire(child)
            return
        self._idle.append(child)
        self._trim()

    def _trim(self) -> None:
        """Let go of the children that have been idle longest, beyond what is kept."""
        busy = sum(not child.is_parked for child in self._busy.values())
        while self._idle and len(self._idle) + busy > self._keep:
            self._retire(self._idle.pop(0))

    def _refill(self) -> None:
        if self._tg is None or self._closing or self._warming or len(self._spare) >= self._warm:
            return
        self._warming, self._warmed = anyio.CancelScope(), anyio.Event()
        self._tg.start_soon(self._warm_up, self._warming)

    async def _warm_up(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                while len(self._spare) < self._warm and not self._closing:
                    child = await self._new_child()
                    self._spare.append(child)
        except UnavailableError as exc:
            if self._closing:
                return
            # The next run starts its own child, and reports if that cannot be done either.
            log.warning("worker.no_warm_process", extra={"error": str(exc)})
        finally:
            self._warming = None
            self._warmed.set()

    def _retire(self, child: _Child) -> None:
        """Let a child that executes nothing end by itself."""
        # A child that cannot be told has ended already.
        with contextlib.suppress(OSError, RuntimeError):
            child.send({"retire": True})
            child.writer.write_eof()

    def _kill(self, child: _Child) -> None:
        """Have the server kill a child: only a parent knows that the id is still the child's."""
        server = self._server
        if server is None or server.gone or child.ended.is_set():
            return
        # A server that has gone takes its children with it.
        with contextlib.suppress(OSError):
            server.control.send(orjson.dumps({"do": "kill", "pid": child.pid}) + b"\n")

    # --- the server -----------------------------------------------------------------------------------

    async def _new_child(self) -> _Child:
        """Fork a child and return it once it is connected."""
        async with self._forking:
            server = await self._running_server()
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(server.control, [b'{"do":"fork"}\n'], [theirs.fileno()])
                    with anyio.fail_after(_START_S):
                        pid = await server.forked.get()
                except asyncio.CancelledError:
                    ours.close()
                    raise
                except (OSError, TimeoutError) as exc:
                    ours.close()
                    self._lose_server(server)
                    raise UnavailableError(f"no process could be forked: {str(exc) or 'no answer'}") from exc
            if not pid:
                ours.close()
                raise UnavailableError("no process could be forked: the fork server ended")
            try:
                reader, writer = await asyncio.open_connection(sock=ours)
            except asyncio.CancelledError:
                ours.close()
                raise
            child = _Child(pid, reader, writer)
            server.children[pid] = child
            if pid in server.early:
                self._end(server, pid, server.early.pop(pid))
        child.send(self._hello)
        self._starting.append(child)
        try:
            with anyio.fail_after(_START_S):
                ready = await read_frame(child.reader)
        except TimeoutError:
            ready = None
        except BaseException:
            child.writer.close()  # which is what makes it end
            raise
        finally:
            self._starting.remove(child)
        if ready is None:
            how = await self._how_it_died(child)
            raise UnavailableError(
                f"a process for flows did not start: {how}", hint="its own error output says why"
            )
        return child

    async def _running_server(self) -> _Server:
        if self._server is not None and not self._server.gone:
            return self._server
        ours, theirs = socket.socketpair()
        with theirs:
            # Not through the shell, no secret among the arguments; the environment is the worker's, which flows see too.
            process = await anyio.to_thread.run_sync(
                lambda: subprocess.Popen(
                    server_command(theirs.fileno()), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                )
            )  # fmt: skip
        # Requests are small and answered one at a time, so writing past the loop never fills the buffer.
        control = ours.dup()
        control.setblocking(False)
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
            server = _Server(process, control, reader, writer, asyncio.Queue())
            try:
                with anyio.fail_after(_START_S):
                    ready = await read_frame(reader)
            except TimeoutError:
                ready = None
        except BaseException:  # left while it starts: nobody would know of it any more
            process.kill()
            control.close()
            (writer or ours).close()
            await _reaped(process)
            raise
        if ready is None:
            self._lose_server(server)
            await _reaped(process)
            raise UnavailableError("the fork server did not start", hint="its own error output says why")
        self._server = server
        assert self._tg is not None
        self._tg.start_soon(self._listen, server)
        return server

    async def _listen(self, server: _Server) -> None:
        """Hear which children were forked and which have ended, for as long as the server lives."""
        while (message := await read_frame(server.reader)) is not None:
            if isinstance(pid := message.get("forked"), int):
                server.forked.put_nowait(pid)
            elif isinstance(pid := message.get("exited"), int):
                code = message["code"]
                self._end(server, pid, code if isinstance(code, int) else None)
        if not self._closing:
            log.error("worker.fork_server_ended", extra={"pid": server.process.pid})
        self._lose_server(server)
        await _reaped(server.process)
        self._refill()

    def _end(self, server: _Server, pid: int, code: int | None) -> None:
        child = server.children.pop(pid, None)
        if child is None:
            server.early[pid] = code
            return
        child.code = code
        child.ended.set()
        child.writer.close()
        for where in (self._spare, self._idle):
            if child in where:
                where.remove(child)
        self._refill()

    def _lose_server(self, server: _Server) -> None:
        """The server is gone or useless: so are its children, whose parent nobody is now."""
        server.gone = True
        server.forked.put_nowait(0)
        if server.process.poll() is None:
            server.process.kill()
        server.writer.close()
        server.control.close()
        for pid in list(server.children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._end(server, pid, -signal.SIGKILL)

    async def _stop(self) -> None:
        server = self._server
        if server is None:
            return
        children = list(server.children.values())
        for child in children:
            if child.running is None:
                self._retire(child)
            else:
                self._kill(child)
        with anyio.move_on_after(_STOP_S):
            for child in children:
                await child.ended.wait()
        # Its socket closing is what tells the server to go, and to kill what is left.
        server.gone = True
        server.writer.close()
        server.control.close()
        try:
            await anyio.to_thread.run_sync(lambda: server.process.wait(_STOP_S))
        except subprocess.TimeoutExpired:
            server.process.kill()
            await _reaped(server.process)
        for child in children:
            child.writer.close()


async def _reaped(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was killed, also where we are being cancelled: nobody else would."""
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(process.wait)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
