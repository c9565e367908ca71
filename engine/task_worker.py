"""The task worker: serves what ``task.delay`` asks for.

Async tasks run in its loop, sync ones in threads. What it holds, it keeps alive with heartbeats to the broker; what it lets
go of (because it died or stopped) another serves. A run that takes too many workers with it is dead-lettered.
"""

from __future__ import annotations

import contextvars
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus

from ..bus import Bus
from ..bus.emit import CauseAttrs, current_cause
from ..bus.session import Session, no_broker, use_session
from ..bus.work_queue import WorkItem
from ..config import EngineConfig
from ..errors import BusUnavailable, DefinitionError, GuardFailed
from ..vocabulary import JsonObject, StateType
from .background_tasks.background import POOL, BackgroundLog, BackgroundRun, Ticket
from .background_tasks.background_events import BackgroundEvents
from .background_tasks.dead_task import give_up
from .background_tasks.delay import key_of
from .background_tasks.distributed_future import state_of_background
from .calls.nested import is_plain
from .calls.task_call import TaskCall, look_for_upstream
from .context import current_tags
from .dispatching.insisting import insist, settle
from .futures import TaskFuture
from .life.background_place import stand_in_background
from .options.hooks import HOOK_OF_TYPE, Hook, run_hooks, run_hooks_async
from .options.keeping import keeping_of
from .options.task_options import prints_to_log
from .results import RecordedResult
from .runs.hook_log import HookLog
from .runs.task_run import TaskRun
from .states import Pending, Resuming, State
from .task_runners import AsyncTaskRunner
from .tasks import Task
from .workers.places import HeldPlace, LoopPlace, Places
from .workers.watchdog import Watchdog

__all__ = ["TaskWorker", "serve"]

log = logging.getLogger(__name__)

UNLIMITED = 10_000
"""Runs in hand at once where no limit is set."""
PARKED = 1_000
"""Runs that may wait without a place where no number is given."""
DRAIN_S = 30.0
STOPPING_S = 5.0
"""How long tasks that were asked to stop may take to do so."""
FAULT_S, MAX_FAULT_S = 5.0, 300.0
"""After a fault of the worker's own a run is tried again, each time this much later."""
_EARLY_S = 0.05


@dataclass(eq=False, slots=True)
class _Held:
    item: WorkItem
    ticket: Ticket
    call: TaskCall | None = None


class _Runner(AsyncTaskRunner):
    """Runs tasks of many who asked: ``sys.exit()`` ends the run that says it, not the worker with all the others."""

    async def _run(self, call: TaskCall, future: TaskFuture[Any]) -> None:
        try:
            await super()._run(call, future)
        except SystemExit as exc:
            # The future has ended, as CRASHED; out of here it would stop the loop.
            log.warning("task_worker.exit_asked", extra={"task_run_id": call.run.id, "code": exc.code})


class TaskWorker(AsyncContextManagerMixin):
    """Serves tasks. Entered means it takes work; left means nothing of it is left running.

    Leaving takes no new work, lets running tasks finish for ``drain_s``, then stops them and hands them back. Those that only wait,
    for longer than that, are not waited for.

    Args:
        limit: runs at once; None: as many as there are.
        parked: runs that wait for long beside those, without a place among them.
        bus: of the running loop; default: one of its own to the broker that is known.
    Raises:
        DefinitionError: there is nothing to serve, or two tasks cannot be told apart.
    """

    def __init__(
        self,
        *tasks: Task[..., Any],
        limit: int | None = 10,
        bus: Bus | None = None,
        engine: EngineConfig | None = None,
        drain_s: float = DRAIN_S,
        parked: int = PARKED,
    ) -> None:
        if not tasks:
            raise DefinitionError("there is nothing to serve", hint="give it tasks")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.tasks: dict[str, Task[..., Any]] = {}
        for task in tasks:
            other = self.tasks.setdefault(key_of(task), task)
            if other.fn is not task.fn:
                raise DefinitionError(
                    f"two tasks are both known as {key_of(task)!r}", hint="give one of them another name="
                )
        self.limit = limit
        self._bus, self._drain_s = bus, drain_s
        self._engine = engine
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.places = Places(limit or UNLIMITED, parked)
        self._held: dict[str, _Held] = {}
        self._none_held = anyio.Event()
        self._none_held.set()
        self._stirred = anyio.Event()
        """Set when a run has ended, and, while we stop, when one begins to wait."""
        self._stopping = False
        self._session: Session
        self._runs: BackgroundLog
        self._tg: TaskGroup

    @property
    def held(self) -> list[str]:
        """Ids of the runs in our hands."""
        return list(self._held)

    # --- life -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with AsyncExitStack() as stack:
            bus = self._bus
            if bus is None or self._engine is None:
                from ..bus.address import locate_broker
                from ..bus.session import open_bus
                from ..config import load_settings

                settings = load_settings()
                self._engine = self._engine or settings.engine
                if bus is None:
                    address = locate_broker(settings)
                    if address is None:
                        raise no_broker("serving tasks needs a broker, and none is known")
                    bus = await stack.enter_async_context(open_bus(address, settings.bus))
            self._session = stack.enter_context(use_session(bus))
            self._runs = BackgroundLog(bus)
            self._runner = _Runner(self.limit or self._engine.thread_workers)
            stack.enter_context(self._runner.opened())
            self._watchdog = Watchdog(
                bus,
                lambda: [held.item for held in list(self._held.values())],
                ack_wait_s=self._engine.ack_wait_s,
            )
            stack.push_async_callback(self._watchdog.aclose)
            self._tg = await stack.enter_async_context(anyio.create_task_group())
            self._tg.start_soon(self._keep_alive)
            taking = await stack.enter_async_context(anyio.create_task_group())
            await taking.start(self._take, bus)
            try:
                yield self
            finally:
                taking.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await self._leave()
                self._tg.cancel_scope.cancel()

    async def _leave(self) -> None:
        until = time.monotonic() + self._drain_s
        self.places.on_wait(until, lambda _: self._stirred.set())
        with anyio.move_on_after(self._drain_s):
            while not all(self.places.is_waiting(run_id, until) for run_id in self._held):
                await self._stirred.wait()
                self._stirred = anyio.Event()
        self._stopping = True
        if self._held:
            log.info("task_worker.hands_back", extra={"runs": len(self._held)})
            for held in self._held.values():
                if held.call is not None and held.call.events is not None:
                    held.call.events.silence()  # what is cut off here runs again elsewhere
            self._runner.stop(interrupt=True)
            with anyio.move_on_after(STOPPING_S):
                await self._none_held.wait()

    async def _keep_alive(self) -> None:
        """Tell the broker, for every item we hold, that we still do."""
        assert self._engine is not None
        while True:
            # The broker gives an item to another at ack_wait_s; renewing at a third of it survives one lost beat.
            await anyio.sleep(self._engine.ack_wait_s / 3)
            for held in list(self._held.values()):
                await held.item.in_progress()

    # --- taking ---------------------------------------------------------------------------------------

    async def _take(self, bus: Bus, *, task_status: TaskStatus[None]) -> None:
        assert self._engine is not None
        async with bus.work.consume(
            POOL, list(self.tasks), ack_wait_s=self._engine.ack_wait_s, max_pending=self.places.size
        ) as items:
            self.places.on_change(lambda: items.resize(self.places.capacity))
            log.info("task_worker.started", extra={"tasks": sorted(self.tasks)})
            task_status.started()
            async for item in items:
                self._tg.start_soon(self._on_item, item)

    async def _on_item(self, item: WorkItem) -> None:
        try:
            ticket = Ticket.from_json(item.payload)
        except (ValueError, KeyError, TypeError) as exc:
            log.error("task_worker.unreadable_item", extra={"error": repr(exc)})
            await settle(lambda: item.term("not a task run of Hark"))
            return
        held = self._held.get(ticket.run_id)
        if held is not None:
            if held.ticket.token == ticket.token:
                # Our heartbeats did not arrive in time, so the broker gave it out again: to us. Still ours.
                held.item = item
            else:
                await item.nak(1.0)
            return
        held = self._held[ticket.run_id] = _Held(item, ticket)
        if self._none_held.is_set():
            self._none_held = anyio.Event()
        try:
            await self._serve(held)
        except BusUnavailable as exc:
            log.warning("task_worker.broker_away", extra={"task_run_id": ticket.run_id, "error": str(exc)})
            await held.item.nak(1.0)
        except Exception:
            # A fault of ours must cost neither the worker its life nor the run one of its own.
            log.exception("task_worker.fault", extra={"task_run_id": ticket.run_id})
            await self._excuse(held)
        finally:
            del self._held[ticket.run_id]
            self._stirred.set()
            if not self._held:
                self._none_held.set()

    async def _serve(self, held: _Held) -> None:
        ticket = held.ticket
        while True:
            run = await self._runs.get(ticket.run_id)
            try:
                if run is None:
                    await self._session.bus.log.append(ticket.first, after=0)
                elif await self._serve_run(held, run):
                    return
            except GuardFailed:
                continue  # somebody wrote between our look and our claim: look again

    async def _serve_run(self, held: _Held, run: BackgroundRun) -> bool:
        """Do what is to be done with a run; False: look at it again."""
        assert self._engine is not None
        if run.is_over:
            await self._after_end(run)
        elif run.is_open and run.token != held.ticket.token:
            log.debug("task_worker.item_moot", extra={"task_run_id": run.id})
        elif run.retry_at is not None and (wait_s := _left_s(run.retry_at)) > _EARLY_S:
            await held.item.nak(wait_s)
            return True
        else:
            lost = run.lost + 1 if run.is_open else 0
            if lost > self._engine.crash_retries:
                why = f"its worker died {lost} times in a row while it ran"
                await give_up(self._session.bus, run, why=why, lost=lost)
                return False
            try:
                given = await self._arguments(run)
            except Exception as exc:  # unpickling runs whatever the values' classes say
                why = f"its arguments cannot be read: {type(exc).__name__}: {exc}"
                await give_up(self._session.bus, run, why=why, lost=lost)
                return False
            if await self._is_early(run):
                await settle(held.item.ack)
                return True
            return not await self._execute(held, run, given, lost)
        await settle(held.item.ack)
        return True

    async def _arguments(self, run: BackgroundRun) -> dict[str, Any]:
        recorded = RecordedResult(
            self._session, run.data["arguments"], run_id=run.id, key=f"arguments of {run.task_name}"
        )
        given: dict[str, Any] = await recorded.aread()
        return given

    async def _shown_arguments(self, run: BackgroundRun) -> dict[str, Any]:
        """Return the arguments for hooks; none if they cannot be read, which may be what the run ended of."""
        try:
            parameters: dict[str, Any] = (await self._arguments(run))["parameters"]
        except Exception as exc:
            log.warning("task_worker.arguments_unreadable", extra={"task_run_id": run.id, "error": str(exc)})
            return {}
        return parameters

    async def _is_early(self, run: BackgroundRun) -> bool:
        """Whether it waits for another, whose end will put it on the queue again."""
        for upstream in run.wait_for:
            if not await self._runs.is_over(upstream):
                await self._runs.note_wait(run, upstream)
                # It may have ended before the note was there to be found.
                if not await self._runs.is_over(upstream):
                    return True
        return False

    # --- executing ------------------------------------------------------------------------------------

    async def _execute(self, held: _Held, run: BackgroundRun, given: dict[str, Any], lost: int) -> bool:
        """Run it; return whether what became of it is in the log, and the rest is to be seen to."""
        claim, token = run.claim + 1, held.ticket.token
        state = Pending(message="its worker was lost" if lost else None)
        await self._runs.move(run, state, claim=claim, lost=lost, token=token, worker=self.name)
        call = held.call = self._call(run, given, claim=claim, lost=lost, token=token)
        events = call.events
        assert isinstance(events, BackgroundEvents)
        current_tags.set(call.run.tags)
        current_cause.set(
            CauseAttrs(
                correlationid=run.event.correlationid, causationid=run.event.id, causaldepth=run.event.causaldepth + 1
            )
        )  # fmt: skip
        for future in call.upstream:
            await insist(future.wait_for_value_async)
        place = LoopPlace(HeldPlace(self.places, run.id))
        assert self._engine is not None
        stand_in_background(call, place, suspend_after_s=self._engine.suspend_after_s)
        future = contextvars.copy_context().run(self._runner.launch, call)
        with self._watchdog.watching(), closing(place):
            await future.wait_for_end_async()
        if events.is_silent and not events.is_lost:
            await self._hand_back(held, run, claim)
            return False
        await events.land()
        ended = call.run.state
        if ended is not None and ended.name == "AwaitingRetry":
            # It waits for its next try without holding anybody: the broker gives it out again then.
            await insist(self._session.bus.publisher.barrier)
            now = await insist(self._runs.get, run.id)
            if now is not None and now.claim == claim and now.retry_at is not None:
                await held.item.nak(max(0.01, _left_s(now.retry_at)))
            return False
        if ended is not None and not events.is_lost:
            await self._note_hooks(call.task, run.id, ended)
        return True

    def _call(
        self, run: BackgroundRun, given: dict[str, Any], *, claim: int, lost: int, token: str
    ) -> TaskCall:
        assert self._engine is not None
        task = self.tasks[run.key]
        flow_run_id = run.data["flow_run"]["id"]
        task_run = TaskRun(
            run.id, run.name, task, flow_run_id=None if flow_run_id == run.id else flow_run_id, parameters=given["parameters"],
            tags=frozenset(run.data.get("tags") or ()), upstream=(),
        )  # fmt: skip
        task_run.run_count, task_run.previous = run.tries_made, StateType.PENDING
        task_run.session, task_run.log_id = self._session, flow_run_id
        call = TaskCall(task, task_run, None, prints_to_log(task.log_prints, None))
        about: JsonObject = {
            "key": run.key,
            "claim": claim,
            "lost": lost,
            "token": token,
            "worker": self.name,
        }
        call.events = BackgroundEvents(
            self._session, run, about=about, inline_bytes=self._engine.inline_result_bytes
        )
        call.is_announced = True
        call.rests_after_s = self._engine.suspend_after_s
        keeping = keeping_of(task.keeping, None)
        if keeping is not None:
            call.keeping, call.is_careful = keeping, True
        call.is_plain = is_plain(task_run.parameters.values())
        look_for_upstream(call, task_run.parameters, given.get("wait_for"))
        # Those known here only that asked had been waited for there.
        task_run.upstream = tuple(run.data.get("upstream") or ())
        if task_run.tags:
            call.limited = call.events.limited(task_run.tags)
        return call

    async def _hand_back(self, held: _Held, run: BackgroundRun, claim: int) -> None:
        """We stop: another goes on with it at once, and that is no loss."""
        await insist(self._session.bus.publisher.barrier)
        now = await insist(self._runs.get, run.id)
        if now is not None and now.claim == claim and now.is_open:
            try:
                await insist(self._runs.move, now, Resuming(message="its worker stopped"))
            except GuardFailed as exc:
                log.debug("task_worker.not_handed_back", extra={"task_run_id": run.id, "error": str(exc)})
        await held.item.nak()

    async def _excuse(self, held: _Held) -> None:
        """Leave a run that a fault of ours kept from its end to another, or to a later time: its task has not died."""
        events = held.call.events if held.call is not None else None
        if events is not None:
            events.silence()  # should it still run: what it writes from here on does not count
        try:
            now = await insist(self._runs.get, held.ticket.run_id)
            if now is not None and now.is_open and now.token == held.ticket.token:
                state = Resuming(
                    message="a fault of its worker kept it from its end; the worker's log says more"
                )
                await insist(self._runs.move, now, state, lost=now.lost, token=now.token)
        except Exception as exc:
            # Then it does count as a death: so the run comes to an end, should it be the run that brings this about.
            log.warning(
                "task_worker.not_excused", extra={"task_run_id": held.ticket.run_id, "error": repr(exc)}
            )
        await held.item.nak(min(FAULT_S * held.item.deliveries, MAX_FAULT_S))

    # --- after the end --------------------------------------------------------------------------------

    async def _after_end(self, run: BackgroundRun) -> None:
        """See to what follows an end: hooks that its worker did not live to call, and runs that wait for it."""
        task, state = self.tasks[run.key], state_of_background(run, self._session)
        if _hooks_of(task, state) and run.id not in await HookLog(self._session.bus).calls(run.id):
            task_run = TaskRun(
                run.id, run.name, task, flow_run_id=run.data["flow_run"]["id"], parameters=await self._shown_arguments(run),
                tags=frozenset(run.data.get("tags") or ()), upstream=(),
            )  # fmt: skip
            task_run.state, task_run.run_count = state, run.tries
            if task.isasync:
                await run_hooks_async(_hooks_of(task, state), task, task_run, state)
            else:
                # Where they were to run: a thread, which may wait for the bus that lives in this loop.
                await anyio.to_thread.run_sync(run_hooks, _hooks_of(task, state), task, task_run, state)
            await self._note_hooks(task, run.id, state)
        await self._runs.wake_waiters(run.id)

    async def _note_hooks(self, task: Task[..., Any], run_id: str, state: State) -> None:
        if _hooks_of(task, state):
            await insist(HookLog(self._session.bus).note_call, run_id)


def serve(*tasks: Task[..., Any], limit: int | None = 10) -> None:
    """Serve tasks in this process until it is stopped, as ``hark.serve(*tasks)`` does."""
    import_module(__package__.rpartition(".")[0]).serve(*tasks, limit=limit)


def _hooks_of(task: Task[..., Any], state: State) -> list[Hook]:
    return task.hooks.get(HOOK_OF_TYPE.get(state.type, ""), [])


def _left_s(moment: datetime) -> float:
    return (moment - datetime.now(UTC)).total_seconds()
