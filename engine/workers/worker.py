"""The worker: takes runs of its pool, executes them, and sees each of them to an end that is in the log.

Async flows run in the worker's own loop, sync ones in warm processes. What a worker holds, it keeps alive with heartbeats
to the broker; what it lets go of (because it died, was cut off, or stopped) another takes up after the last finished task.
"""

from __future__ import annotations

import logging
import time
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from typing import Self

import anyio
import orjson
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus

from ...bus import Bus, Event, Recorded
from ...bus.event import readable
from ...bus.session import Session, use_session
from ...bus.subject import PREFIX, RUN_TAKEN
from ...bus.work_queue import WorkItem
from ...clock import SYSTEM_CLOCK, Clock
from ...config import EngineConfig, WorkerConfig
from ...errors import BusUnavailable, GuardFailed, LogRewound, RunLost, UnavailableError
from ...vocabulary import FlowRunId, JsonObject, StateType, new_id
from ..code.lane import LOOP, PROCESS, Lane
from ..code.loader import Loader
from ..dispatching.insisting import insist, settle
from ..dispatching.presence import WorkerInfo
from ..dispatching.ticket import Answer, Ticket, answer, attempt_taken, lane_of, losses, message_taken
from ..runs.hook_log import HERE, TRIES, HookLog, is_from_outside, is_owed, owing
from ..runs.open_tasks import end_open_tasks
from ..runs.run import SOURCE, FlowRun
from ..runs.run_log import RunLog
from ..states import Cancelled, Crashed, Pending, Resuming, Running, Suspended
from .attendance import Attendance
from .collection import rare_collections
from .execution import Job, Outcome, execute_in_loop, failed_unread
from .held_run import HeldRun
from .past_end import past_end
from .places import HeldPlace, LoopPlace, Places
from .process_pool import ProcessPool
from .run_code import RunCode
from .stop_request import StopRequest
from .unstoppable import give_up
from .watchdog import Watchdog

__all__ = ["Worker"]

log = logging.getLogger(__name__)

S = StateType
STOP_WORDS = ("cancelling", "suspended")
"""Transitions that ask whoever executes the run to stop."""
END_WORDS = ("cancelled", "crashed")
"""Ends. One that we have written ourselves is followed by hooks; of one that somebody forced, what executes the run
knows nothing. They look alike, so it is stopped only when it still goes on after the grace."""
ELSEWHERE_TRIES = 100
"""How often workers of a pool hand on what only one of them can do, before it is given up."""
_CLOSING_S = 10.0  # how long handing back may take when the worker stops


class Worker(AsyncContextManagerMixin):
    """The service. Entered means it takes work; left means nothing of it is left running.

    Leaving takes no new work, lets running work finish for ``config.drain_s``, then stops it and hands it back, so that
    another worker goes on with it at once. A run that only waits, for longer than that, is handed back without.
    """

    def __init__(
        self,
        bus: Bus,
        config: WorkerConfig,
        engine: EngineConfig,
        *,
        clock: Clock = SYSTEM_CLOCK,
        name: str | None = None,
    ) -> None:
        self._bus, self._config, self._engine, self._clock = bus, config, engine, clock
        self._runs = RunLog(bus, clock)
        self._loader = Loader()
        worker_id = new_id()
        self.info = WorkerInfo.here(
            worker_id, name=name or f"worker-{worker_id[-8:]}", pool=config.pool, loop=config.concurrency,
            processes=config.processes,
        )  # fmt: skip
        self._places = {
            LOOP: Places(config.concurrency, config.parked),
            PROCESS: Places(config.processes, config.parked_processes),
        }
        self._held: dict[FlowRunId, HeldRun] = {}
        self._first_held = anyio.Event()
        self._none_held = anyio.Event()
        self._none_held.set()
        self._stopping = False
        self._pool: ProcessPool | None = None
        self._session: Session
        self._tg: TaskGroup

    @property
    def held(self) -> list[FlowRunId]:
        """The runs in our hands."""
        return list(self._held)

    @property
    def processes(self) -> ProcessPool | None:
        """The processes for sync flows; None if it has none."""
        return self._pool

    @property
    def places(self) -> Mapping[Lane, Places]:
        """Its places, by lane."""
        return self._places

    # --- life -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        stop = anyio.Event()
        async with anyio.create_task_group() as tg:
            # In a task of its own: the session is bound to a context, and the caller's is not ours to keep.
            await tg.start(self._live, stop)
            try:
                yield self
            finally:
                stop.set()
                with anyio.CancelScope(shield=True):
                    await self._gone.wait()

    async def _live(self, stop: anyio.Event, *, task_status: TaskStatus[None]) -> None:
        self._gone = anyio.Event()
        try:
            with anyio.CancelScope() as scope:

                def ready() -> None:
                    # From here on, being cancelled means stopping in order, which has deadlines of its own.
                    scope.shield = True
                    task_status.started()

                await self._serve_until(stop, ready)
        finally:
            self._gone.set()

    async def _serve_until(self, stop: anyio.Event, ready: Callable[[], None]) -> None:
        async with AsyncExitStack() as stack:
            self._session = stack.enter_context(use_session(self._bus))
            stack.enter_context(rare_collections())
            attendance = Attendance(self._bus, self.info, self._places, held=self._held.values)
            self._watchdog = Watchdog(
                self._bus, lambda: [held.item for held in list(self._held.values())], worker=lambda: attendance.now,
                ack_wait_s=self._engine.ack_wait_s, on_beat=self._give_up_held,
            )  # fmt: skip
            stack.push_async_callback(self._watchdog.aclose)
            # What the first run would otherwise wait for.
            await anyio.to_thread.run_sync(import_module, "..life.flow_engine", __package__)
            await anyio.to_thread.run_sync(import_module, "..flows", __package__)
            if self._config.processes:
                self._pool = await stack.enter_async_context(
                    ProcessPool(
                        self._bus.address, self._bus.config, self._engine,
                        warm=min(self._config.warm, self._config.processes), keep=self._config.processes, wait=False,
                    )
                )  # fmt: skip
            async with anyio.create_task_group() as tg:
                self._tg = tg
                await tg.start(self._hear)
                tg.start_soon(self._keep_alive)
                async with anyio.create_task_group() as lanes:
                    await lanes.start(self._take, LOOP)
                    if self._config.processes:
                        await lanes.start(self._take, PROCESS)
                    await attendance.begin()
                    lanes.start_soon(attendance.stay)
                    log.info("worker.started", extra={"worker": self.info.name, "pool": self.info.pool})
                    ready()
                    await stop.wait()
                    self._stopping = True
                    lanes.cancel_scope.cancel()
                with anyio.move_on_after(2):
                    await attendance.end()
                await self._leave()
                tg.cancel_scope.cancel()
        self._pool = None

    async def _leave(self) -> None:
        for places in self._places.values():
            places.on_wait(time.monotonic() + self._config.drain_s, self._hand_back_waiting)
        with anyio.move_on_after(self._config.drain_s):
            await self._none_held.wait()
        if self._held:
            log.info("worker.hands_back", extra={"worker": self.info.name, "runs": len(self._held)})
            for held in self._held.values():
                held.stop.set()
            with anyio.move_on_after(_CLOSING_S):
                await self._none_held.wait()
        with anyio.move_on_after(2):
            await insist(self._bus.log.append, self.info.event("stopped", left=len(self._held)))
        log.info("worker.stopped", extra={"worker": self.info.name})

    def _hand_back_waiting(self, run_id: str) -> None:
        """Stop a run that would not come to its end here in time: whoever has it next waits as well as we do."""
        if (held := self._held.get(FlowRunId(run_id))) is not None:
            log.info("worker.hands_back_waiting", extra={"worker": self.info.name, "run_id": run_id})
            held.stop.set()

    async def _keep_alive(self) -> None:
        """Tell the broker, for every message we hold, that we still do."""
        while True:
            if not self._held:
                self._first_held = anyio.Event()
                await self._first_held.wait()
            # The broker gives a message to another at ack_wait_s; renewing at a third of it survives one lost beat.
            await anyio.sleep(self._engine.ack_wait_s / 3)
            for held in list(self._held.values()):
                await held.item.in_progress()

    # --- taking ---------------------------------------------------------------------------------------

    async def _take(self, lane: Lane, *, task_status: TaskStatus[None]) -> None:
        places = self._places[lane]
        async with self._bus.work.consume(
            self._config.pool, [lane], ack_wait_s=self._engine.ack_wait_s, max_pending=places.size
        ) as items:
            places.on_change(lambda: items.resize(places.capacity))
            task_status.started()
            async for item in items:
                self._tg.start_soon(self._on_item, item, lane)

    async def _on_item(self, item: WorkItem, lane: Lane) -> None:
        try:
            ticket = Ticket.from_json(item.payload)
        except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
            log.error("worker.unreadable_message", extra={"error": repr(exc)})
            await settle(lambda: item.term("not a work message of Hark"))
            return
        if (held := self._held.get(ticket.run_id)) is not None:
            if held.item.seq == item.seq:
                # Our heartbeats did not arrive in time, so the broker gave it out again: to us. Still ours.
                held.item = item
            elif held.ticket.token == ticket.token and lane == LOOP:
                await settle(item.ack)  # as it was before it was passed on, to us
            else:
                await item.nak(1.0)
            return
        place = HeldPlace(self._places[lane], ticket.run_id)
        held = self._held[ticket.run_id] = HeldRun(item, ticket, lane, place)
        self._first_held.set()
        if self._none_held.is_set():
            self._none_held = anyio.Event()
        try:
            await self._serve(held, lane)
        except RunLost as exc:
            # Whoever has it now has the message, too.
            log.info("worker.run_lost", extra={"run_id": ticket.run_id, "why": str(exc)})
        except BusUnavailable as exc:
            log.warning("worker.broker_away", extra={"run_id": ticket.run_id, "error": str(exc)})
            await held.item.nak(1.0)
        except Exception:
            # A fault of ours must cost this run one try, not the worker its life.
            log.exception("worker.fault", extra={"run_id": ticket.run_id})
            await held.item.nak(5.0)
        finally:
            self._let_go(held)

    def _let_go(self, held: HeldRun) -> None:
        if self._held.get(held.ticket.run_id) is held:
            del self._held[held.ticket.run_id]
        if not self._held:
            self._none_held.set()

    async def _serve(self, held: HeldRun, lane: Lane) -> None:
        ticket = held.ticket
        while True:
            run = await self._runs.get(ticket.run_id)
            token: str | None = None
            lost, history = 0, list[Recorded]()
            if run is not None and (
                run.state_type in (S.PENDING, S.RUNNING, S.CANCELLING, S.PAUSED)
                or run.waits_in_process
                or is_owed(run, HERE)
            ):
                history = await self._runs.history(run.id)
                token, lost = losses(history)
                if lane == LOOP and token == ticket.token and lane_of(history, token) == PROCESS:
                    # It was passed on, by one that died before it could settle this one: the other is served.
                    await settle(held.item.ack)
                    return
            verdict = answer(ticket, run, deliveries=held.item.deliveries, claim=token, now=self._clock.now())
            if verdict is Answer.TAKE_OVER and await self._is_twin(held, history):
                await settle(held.item.ack)
                return
            if verdict is Answer.LATER:
                await held.item.nak(0.2)
                return
            if verdict is Answer.DISCARD or run is None:
                log.debug("worker.message_moot", extra={"run_id": ticket.run_id})
                if run is None or not await self._call_past_hooks(held, lane):
                    await settle(held.item.ack)
                return
            try:
                await self._act(held, lane, run, verdict, lost)
            except GuardFailed:
                continue  # somebody wrote between our look and our claim: look again
            return

    async def _is_twin(self, held: HeldRun, history: list[Recorded]) -> bool:
        """Whether the run was taken by another message, which is not settled: the run is in somebody's hands, or will be again."""
        taken = message_taken(history, held.ticket.token)
        return taken is not None and taken != held.item.seq and await self._bus.work.has(taken)

    async def _act(self, held: HeldRun, lane: Lane, run: FlowRun, verdict: Answer, lost: int) -> None:
        if verdict is Answer.STOP:
            run = await self._runs.move_exactly(
                run, owing(Cancelled(message=run.state_message or "cancelled"), HERE, is_unwound=False)
            )
        code = await RunCode.of(self._bus, run)
        if code.is_elsewhere and held.item.deliveries <= ELSEWHERE_TRIES:
            await held.item.nak(0.2)  # for another of the pool, where the code is
            return
        if code.facts.lane == PROCESS and lane == LOOP and code.problem is None:
            await self._forward(held)
            return
        details = self._details(held, code)
        if run.is_final:
            await self._call_hooks(held, lane, run, code)
            await settle(held.item.ack)
            return
        if verdict is Answer.TAKE_OVER:
            limit = code.crash_retries(self._engine.crash_retries)
            run = await self._take_over(run, details, lost=lost + 1, limit=limit)
        else:
            run = await self._runs.move_exactly(run, Pending(details=details), attempt=run.attempt + 1)
        held.attempt = run.attempt
        if held.is_lost:
            raise RunLost(run.id, reason=f"another has begun attempt {held.newest}")
        if verdict is Answer.TAKE_OVER:
            await self._say_taken(run)
        if run.is_final:
            await self._call_hooks(held, lane, run, code)
        elif code.problem is not None:
            run = await self._runs.move(run, failed_unread(run, code.problem))
            if is_owed(run, HERE):
                await self._call_hooks(held, lane, run, code)
        else:
            run = await self._execute(held, lane, run, code)
        await settle(held.item.ack)

    def _details(self, held: HeldRun, code: RunCode) -> JsonObject:
        """Return what a transition says by which we take a run: who, and under which message."""
        return {
            "lane": code.facts.lane, "worker": self.info.name, "token": held.ticket.token, "message": held.item.seq,
        }  # fmt: skip

    async def _take_over(
        self, run: FlowRun, details: JsonObject, *, lost: int, limit: int, why: str = "worker lost"
    ) -> FlowRun:
        """Take up a run whose worker or process died, or end it if that has happened too often."""
        if lost > limit:
            message = f"{why}; that is {lost} time{'s' if lost > 1 else ''}, and it is taken up again {limit} times at most"
            return await self._runs.move_exactly(run, owing(Crashed(message=message), HERE, is_unwound=False))
        log.warning("worker.takes_over", extra={"run_id": run.id, "attempt": run.attempt + 1, "why": why})
        state = Running(message=why, details={**details, "lost": lost})
        return await self._runs.move_exactly(run, state, attempt=run.attempt + 1)

    async def _say_taken(self, run: FlowRun) -> None:
        """Tell whoever had the run before us: it may be alive, and still at it."""
        data: JsonObject = {"run": {"id": run.id}, "attempt": run.attempt, "worker": self.info.name}
        event = Event(
            type=RUN_TAKEN,
            source=SOURCE,
            subject=f"flow-run/{run.id}",
            data=data,
            id=f"{run.id}-taken-{run.attempt}",
        )
        await insist(self._bus.log.append, event)

    async def _forward(self, held: HeldRun) -> None:
        """Pass a message on to where it can be executed: the dispatcher did not know that it is a sync flow."""
        # Let go first: it may come to us again before the push has returned.
        self._let_go(held)
        msg_id = f"{held.ticket.msg_id}/{PROCESS}"
        await insist(self._bus.work.push, self._config.pool, PROCESS, held.item.payload, msg_id=msg_id)
        await settle(held.item.ack)

    # --- executing ------------------------------------------------------------------------------------

    async def _call_hooks(self, held: HeldRun, lane: Lane, run: FlowRun, code: RunCode) -> None:
        """Call the hooks of an end whose writer has not, or not to their end. Raises ``RunLost`` to have another do it."""
        if run.attempt and is_from_outside(run):
            await insist(end_open_tasks, self._bus, run)
        is_script = code.script is not None
        job = Job(run, run.entrypoint or "", code.path, hooks=True, is_script=is_script, problem=code.problem)
        outcome = Outcome("error", code.problem or "") if code.problem and is_script else Outcome("died")
        if code.problem and self._pool is not None:
            lane = PROCESS  # where nothing that a module does when it is imported is done to this worker
        # Of its own: what asked the run to stop has been heard, and does not stop its hooks.
        held = replace(held, stop=StopRequest())
        for _ in range(TRIES + 1):  # the last one finds that it was tried often enough, and says so
            if outcome.kind == "died":
                outcome = await self._in_lane(held, lane, job)
        if outcome.kind == "error":
            log.error("worker.hooks_not_run", extra={"run_id": run.id, "why": outcome.detail})
            await insist(HookLog(self._bus).note, run, "abandoned", why=outcome.detail)
        elif outcome.kind != "ended":
            raise RunLost(run.id, reason=f"its hooks have not run: {outcome.detail or outcome.kind}")

    async def _call_past_hooks(self, held: HeldRun, lane: Lane) -> bool:
        """Call the hooks of an end that was followed by a retry before they had been; whether the message is passed on."""
        ended = past_end(await self._runs.history(held.ticket.run_id), held.ticket)
        if ended is None or await HookLog(self._bus).is_settled(ended):
            return False
        code = await RunCode.of(self._bus, ended)
        if code.facts.lane == PROCESS and lane == LOOP and code.problem is None:
            await self._forward(held)
            return True
        await self._call_hooks(held, lane, ended, code)
        return False

    async def _in_lane(self, held: HeldRun, lane: Lane, job: Job) -> Outcome:
        return await (self._in_loop(held, job) if lane == LOOP else self._in_process(held, job))

    async def _execute(self, held: HeldRun, lane: Lane, run: FlowRun, code: RunCode) -> FlowRun:
        """Execute a run until the log has an end of it, or a rest. Returns the run as it is then."""
        while True:
            job = Job(run, run.entrypoint or "", code.path, code.retries)
            outcome = await self._in_lane(held, lane, job)
            # An end that was written here is the last word; anything else is looked up.
            ended = outcome.run if outcome.run is not None and outcome.run.is_final else None
            now = ended or await insist(self._runs.get, run.id)
            if now is None or not await self._is_ours(held, now):
                raise RunLost(run.id, reason=outcome.detail or "another has it, or it has left the log")
            left = await self._settle_run(now, outcome, held)
            if left is not None:
                if is_owed(left, HERE) and (outcome.kind != "ended" or left is not now):
                    await self._call_hooks(held, lane, left, code)
                return left
            # Its process died. This worker lives, so it takes the run up again itself, at once.
            why = outcome.detail or "it was interrupted, and nobody had asked for that"
            log.warning("worker.process_died", extra={"run_id": run.id, "how": why})
            details = self._details(held, code)
            _, lost = losses(await insist(self._runs.history, run.id))
            limit = code.crash_retries(self._engine.crash_retries)
            run = await insist(self._take_over, now, details, lost=lost + 1, limit=limit, why=why)
            held.attempt = run.attempt
            if run.is_final:
                await self._call_hooks(held, lane, run, code)
                return run

    async def _is_ours(self, held: HeldRun, now: FlowRun) -> bool:
        """Whether what follows is ours to write: nobody has taken the run meanwhile. It may have been suspended and
        resumed while our process still wound down."""
        if (
            now.is_final
            or now.state_type is S.PAUSED
            or (now.state_type is S.SCHEDULED and not now.waits_in_process)
        ):
            return True  # nobody executes it, and nothing is left to write
        history = await insist(self._runs.history, now.id)
        token, _ = losses(history)
        # Who was silent for too long has lost the message, token and all, to another, who began an attempt of its own.
        return token == held.ticket.token and attempt_taken(history, token) == held.attempt

    async def _settle_run(self, now: FlowRun, outcome: Outcome, held: HeldRun) -> FlowRun | None:
        """Write what an execution left unwritten; None if the run is to be executed again here."""
        if now.state_type is S.PAUSED and now.state_details.get("in_process"):
            # What paused in its process has none any more: whoever is to resume it needs a worker first.
            details = {key: value for key, value in now.state_details.items() if key != "in_process"}
            return await insist(self._runs.move, now, Suspended(message=now.state_message, details=details))
        if now.is_final or now.state_type is S.PAUSED:
            return now
        if now.state_type is S.SCHEDULED and not now.waits_in_process:
            return now  # it waits for a time without holding anybody, or somebody put it back
        if now.state_type is S.CANCELLING:
            how = f" ({outcome.detail})" if outcome.kind == "died" else ""
            return await insist(
                self._runs.move,
                now,
                owing(Cancelled(message=(now.state_message or "cancelled") + how), HERE, is_unwound=False),
            )
        if not self._stopping and (outcome.kind == "died" or held.was_interrupted_by_others(outcome)):
            return None
        if outcome.kind == "error":
            message = f"the run could not be seen to its end: {outcome.detail}"
            return await insist(self._runs.move, now, owing(Crashed(message=message), HERE, is_unwound=False))
        # We stop, or the broker was away too long: others go on with it, through the dispatcher.
        why = (
            "its worker stopped"
            if self._stopping
            else f"its worker could not go on: {outcome.detail or outcome.kind}"
        )
        return await insist(self._runs.move, now, Resuming(message=why), scheduled_at=self._clock.now())

    async def _in_loop(self, held: HeldRun, job: Job) -> Outcome:
        def stop() -> None:
            scope.cancel()
            self._tg.start_soon(self._look_after, held.stop, job.run.id)

        try:
            place = LoopPlace(held.place)
            with (
                anyio.CancelScope() as scope,
                held.stop.calling(stop),
                self._watchdog.watching(),
                closing(place),
            ):
                return await execute_in_loop(job, self._loader, self._session, self._engine, place)
        except CancelledError:
            # Not the scope's, which keeps it: nobody cancelled the flow but itself.
            return Outcome("error", "its code raised CancelledError, or cancelled the task that it was in")
        return Outcome("interrupted")

    async def _in_process(self, held: HeldRun, job: Job) -> Outcome:
        if self._pool is None:
            return Outcome("error", "this worker has no processes (HARK_WORKER__PROCESSES is 0)")
        try:
            return await self._pool.run(
                job, stop=held.stop, grace_s=self._engine.cancel_grace_s, place=held.place
            )
        except UnavailableError as exc:
            return Outcome("died", str(exc))

    # --- stopping runs --------------------------------------------------------------------------------

    async def _hear(self, *, task_status: TaskStatus[None]) -> None:
        """Hear from the log when a run we hold is to stop, or is another's."""
        filters = [f"{PREFIX}flow-run.{word}.*" for word in (*STOP_WORDS, *END_WORDS)]
        filters.append(f"{PREFIX}{RUN_TAKEN}")
        started = False
        while True:
            try:
                async with self._bus.log.follow(filters) as batches:
                    async for batch in batches:
                        if not started:
                            started = True
                            task_status.started()
                        for recorded in batch.records:
                            if recorded.subject == f"{PREFIX}{RUN_TAKEN}":
                                for told in readable([recorded]):
                                    self._on_taken(told.event)
                            else:
                                self._on_word(recorded.subject, recorded.seq)
            except LogRewound as exc:
                # Somebody restored or removed the log under us. What we hold is refused when it is written.
                log.error("worker.log_rewound", extra={"error": str(exc)})

    def _on_word(self, subject: str, seq: int) -> None:
        # The subject says which run it is and what became of it; most are not ours, and are not looked into.
        rest, _, run_id = subject.rpartition(".")
        held = self._held.get(FlowRunId(run_id))
        if held is None or seq < held.ticket.since:
            return  # the second: said of an earlier stay of the run here
        if rest.rpartition(".")[2] in STOP_WORDS:
            held.stop.set()
        else:
            self._tg.start_soon(self._stop_after_grace, held)

    def _on_taken(self, event: Event) -> None:
        """Stop a run that another has taken up: our heartbeats came too late, and what we still do of it is done twice."""
        data = event.data
        held = self._held.get(FlowRunId(str(event.subject).removeprefix("flow-run/")))
        attempt = data.get("attempt") if isinstance(data, dict) else None
        if held is None or not isinstance(attempt, int):
            return
        held.newest = max(held.newest, attempt)
        if held.is_lost:
            log.warning("worker.run_taken", extra={"run_id": held.ticket.run_id, "attempt": attempt})
            held.stop.set()

    async def _stop_after_grace(self, held: HeldRun) -> None:
        await anyio.sleep(self._engine.cancel_grace_s)
        held.stop.set()

    async def _look_after(self, stop: StopRequest, run_id: FlowRunId) -> None:
        """Say so if an async flow that was asked to stop has not after the grace."""
        await anyio.sleep(self._engine.cancel_grace_s)
        if not stop.is_calling:
            return
        # Nothing can end a coroutine that does not want to end; it keeps its place here until it does.
        log.error(
            "worker.run_does_not_stop", extra={"run_id": run_id, "after_s": self._engine.cancel_grace_s}
        )
        await give_up(self._runs, run_id)

    async def _give_up_held(self, bus: Bus) -> None:
        """Give up what was cancelled and cannot hear of it, since other code holds our loop. In another loop, which ``bus`` is of."""
        runs, grace = RunLog(bus, self._clock), timedelta(seconds=self._engine.cancel_grace_s)
        for run_id in list(self._held):
            await give_up(runs, run_id, asked_before=self._clock.now() - grace)
