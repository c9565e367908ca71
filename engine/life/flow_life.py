"""The life of a flow run, written once.

A generator that yields what has to be done (``Step``) and is sent what came of it; the drivers in ``flow_driver.py`` do
it. So the order of things (pending, parameters, running, tries, barrier, final state, hooks) is the same for every kind
of flow, in every process.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ...errors import HarkError, MoveRefused, ParameterError, RunLost, RunTimedOut, UpstreamFailed
from ...vocabulary import StateType
from ..calls.call_key import CallCounter
from ..calls.nested import replace_leaves
from ..calls.parameters import recorded_parameters
from ..calls.task_call import resolve_inputs
from ..context import FlowRunContext, TaskRunContext, current_run
from ..futures import TaskFuture, resolve_futures_to_states
from ..logging import RunLogger, logger_of_flow_run
from ..options.hooks import HOOK_OF_TYPE, Hook, hooks_of_end, hooks_scope
from ..options.keeping import keeping_of
from ..options.task_options import prints_to_log
from ..results import RecordedResult
from ..runs.final_state import describe, state_of_exception, state_of_unfit, state_of_value
from ..runs.hook_log import HERE, is_owed, owing
from ..runs.naming import render_name
from ..runs.run import FlowRun
from ..signals import OF_THE_CODE, Abort, Skip, Suspend, suspension_in
from ..states import Cancelled, Completed, Crashed, Failed, NotReady, Pending, Running, Scheduled, State
from ..sync_async.timeouts import left_of, timed_out
from .around_code import around_code
from .between_tries import await_next_try, go_on_awaiting, leaves_for_next_try, suspended_with_parent
from .divergence import compared
from .flow_steps import Body, CallHooks, Drain, Life, OnBus, ReadResult, Sleep, Step, WaitFor, WaitUntilQuiet
from .interruption import end_interrupted
from .resting import end_waits, is_over_above, suspension_of
from .runs_above import stays_cancelled, tell_above
from .spans import end_span, flow_span
from .tracking import FlowTracker
from .undoing import Undoing, is_passing, resume_undoing, undone_in
from .user_frames import shown_exception

if TYPE_CHECKING:
    from ..flows import Flow

__all__ = [
    "Body", "CallHooks", "Drain", "FlowEngine", "Life", "OnBus", "ReadResult", "Sleep", "Step", "WaitFor",
]  # fmt: skip


STOPPING_S = 5.0
"""How long tasks that were asked to stop may take, before their run ends without them."""


class FlowEngine:
    """One flow run in this process: its context, and its life."""

    def __init__(
        self,
        flow: Flow[..., Any],
        run: FlowRun,
        *,
        parameters: dict[str, Any] | None,
        tracker: FlowTracker | None,
        parent: FlowRunContext | TaskRunContext | None = None,
        wait_for: Iterable[Any] = (),
        retries: int | None = None,
    ) -> None:
        self.flow = flow
        self.tracker = tracker
        self.given = parameters
        self.wait_for = tuple(wait_for)
        self.retries = flow.retries if retries is None else retries
        self.is_interrupted = False
        """Set once the run was stopped from outside: what is left to do is short, and shielded."""
        self.ending: State | None = None
        """The end that is being written, or has been."""
        self.has_told_end = False
        """Whether its hooks have begun to be told of it."""
        self.has_yielded = False
        """Whether it is a generator whose reader has got something of it."""
        self.is_read_no_more = False
        """Whether it is a generator that its reader has closed."""
        self._parameters: dict[str, Any] = {}
        self.context = FlowRunContext(
            flow,
            run,
            parameters={},
            tracker=tracker,
            runner=flow.task_runner.duplicate(),
            log_prints=prints_to_log(flow.log_prints, None if parent is None else parent.log_prints),
            parent=parent,
            memo={} if tracker is None and self.retries else None,
            keeping=keeping_of(flow.keeping, parent),
        )

    @property
    def run(self) -> FlowRun:
        return self.context.flow_run

    @property
    def log(self) -> RunLogger:
        """What the engine itself says in the run's log."""
        return logger_of_flow_run(self.run, self.tracker.session if self.tracker is not None else None)

    @property
    def owns_side(self) -> bool:
        """Whether this run is the outermost one tracked here: it closes what its children used."""
        above = self.context.parent.flow_context if self.context.parent is not None else None
        return above is None or above.tracker is None

    def close_side(self) -> None:
        if self.tracker is not None and self.owns_side:
            self.tracker.let_go()
            self.tracker.side.close()

    # --- the life -------------------------------------------------------------------------------------

    def life(self) -> Life:
        """The whole run. Returns its final state, or NotReady, or AwaitingRetry of a run left to its dispatcher.

        Raises:
            RunLost: another worker has the run.
            BaseException: what interrupted the run, after its end was written.
        """
        span = self.context.span = flow_span(self.flow, self.run)
        above = self.context.parent.flow_context if self.context.parent is not None else None
        if above is not None:
            above.subflows.add(self.context)
            if above.rests is not None:
                above.rests.go_on()
        try:
            state = yield from self._life()
        except BaseException as exc:
            tell_above(self.context)
            end_span(span, None, exc)
            raise
        finally:
            if above is not None:
                above.subflows.discard(self.context)
                if above.rests is not None:
                    above.rests.look()  # this may have been the last thing that was going on
        end_span(span, state)
        return state

    def _life(self) -> Life:
        if self.tracker is not None and self.tracker.undoing is not None:
            return (yield from self._undo(self.tracker, self.tracker.undoing))
        try:
            state = yield from self._begin()
            if state is None:
                state = yield from self._tries()
        except MoveRefused:
            # The one move that others make of a run that is ours: somebody asked for it to be cancelled.
            self.context.runner.stop()
            yield Drain(STOPPING_S)
            cancelled = yield from self._cancelled_meanwhile()
            if cancelled is None:
                raise
            return cancelled
        except RunLost:
            self.context.runner.stop(interrupt=True)
            yield Drain(STOPPING_S)
            raise
        except Exception:
            self.context.runner.stop()
            yield Drain(STOPPING_S)
            raise
        except BaseException as exc:
            suspend = suspension_in(exc)
            if suspend is not None:
                return (yield from self._leave(suspend))
            self.is_interrupted = True
            self.context.runner.stop(interrupt=True)
            try:
                yield Drain(STOPPING_S)
                yield from end_interrupted(self, exc)
            except RunLost:
                raise
            except HarkError as trouble:
                # The log cannot be asked or told now. The interruption still goes on up.
                self.log.warning("stopped, and its end could not be written: %s", trouble)
            raise
        return state

    def _undo(self, tracker: FlowTracker, undoing: Undoing) -> Life:
        """Go through the code of a run that has ended, so that its open transactions are rolled back; write no transition."""
        if self.context.parent is not None:
            there = yield OnBus(tracker.run_log.get, (self.run.id,))
            if there is None:
                undoing.stop()
            tracker.flow_run = there
            self.follow()
            if there.state_type is StateType.COMPLETED:
                return (yield from self._recorded_end())
            yield OnBus(resume_undoing, (tracker,))
        try:
            self._take((yield from self._inputs()))
            yield Body()
        except BaseException as exc:
            if is_passing(exc):
                raise
            if not undone_in(exc):
                self.log.info("what the run had begun is undone; its code ended with %s", describe(exc))
        self.context.runner.stop()
        yield Drain(STOPPING_S)
        yield OnBus(tracker.barrier)
        if self.context.parent is not None:
            undoing.stop()
        return self.state

    def _cancelled_meanwhile(self) -> Generator[Step, Any, State | None]:
        """End the run as CANCELLED if that was asked for; return None if it was not."""
        if self.tracker is None:
            return None
        now = yield OnBus(self.tracker.look)
        if now.state_type is not StateType.CANCELLING:
            return None
        return (yield from self.end(Cancelled(message=now.state_message or "cancelled")))

    def _leave(self, suspend: Suspend) -> Generator[Step, Any, State]:
        """Let the worker go: finish what was submitted, and write what the run waits for."""
        tracker = self.tracker
        assert tracker is not None, "only a tracked run can be taken up again"
        yield Drain()
        if self.context.rests is not None:
            # Calls and subflows that its code has begun in other branches, and does not wait for any more.
            yield WaitUntilQuiet(self.context.rests)
        yield OnBus(tracker.barrier)
        try:
            if is_over_above(self.context):
                # Nobody would take it up again: it was begun in a branch that nobody waited for, or in a hook.
                return (yield from self.end(Crashed(message="it was to wait, and the run above has ended")))
            if self.context.parent is not None:
                # Part of its parent's process: the parent leaves, and takes it up again when it gets here.
                yield from self.move(suspended_with_parent(self, suspend.state))
                if self.is_read_no_more:  # there is nobody to raise it in
                    tell_above(self.context)
                    return self.state
                raise suspend
            yield from self.move(suspend.state, scheduled_at=suspend.due_at)
        except MoveRefused:
            cancelled = yield from self._cancelled_meanwhile()
            if cancelled is None:
                raise
            return cancelled
        return self.state

    def _begin(self) -> Generator[Step, Any, State | None]:
        """Go to RUNNING; return a state if the run is over before it could."""
        tracker = self.tracker
        fit: tuple[str | None] | None = None
        if tracker is not None and self.run.state_type is StateType.SCHEDULED:
            if self.run.seq:
                yield from self.move(Pending(), attempt=self.run.attempt + 1)
            else:
                fit = None if self._may_have_begun else self._fit_at_once()
                first = (Pending(),) if fit is None else (Pending(), Running(), *fit)
                try:
                    is_new = yield from tracker.begin(*first)
                finally:
                    self.follow()
                if not is_new:
                    fit = None
                    state = yield from self._taken_up()
                    if state is not None:
                        return state
        elif tracker is None:
            self._set(Pending())
        if tracker is not None and self.run.attempt > 1:
            yield OnBus(tracker.resume)
        if fit is None:
            try:
                given = yield from self._inputs()
            except UpstreamFailed as exc:
                state = NotReady(message=str(exc), data=exc)
                yield from self.move(state)
                return state.replace(run_id=self.run.id)
            except ParameterError as exc:
                return (yield from self.end(state_of_unfit(exc)))
            try:
                name = self._take(given)
            except OF_THE_CODE as exc:
                return (yield from self.end(state_of_unfit(exc)))
            if self.run.state_type is not StateType.RUNNING:
                attempt = max(1, self.run.attempt)
                if tracker is not None and self.run.flow_version is None:  # asked for by a deployment's name
                    tracker.flow_run = self.run.changed(flow_version=self.flow.version)
                yield from self.move(Running(), attempt=attempt, name=name)
        if hooks := self.flow.hooks["on_running"]:
            yield CallHooks(hooks, Running(run_id=self.run.id))
        if tracker is not None and tracker.untold:
            from .owed_task_hooks import tell_owed

            yield from tell_owed(self.context, tracker.untold, is_anew=True)
        return None

    @property
    def _may_have_begun(self) -> bool:
        """Whether it is part of a run that an earlier attempt may have brought as far as here."""
        above = self.context.parent.flow_context if self.context.parent is not None else None
        return above is not None and above.flow_run.attempt > 1

    def _taken_up(self) -> Generator[Step, Any, State | None]:
        """A subflow's run exists: an earlier attempt of the parent began it. Reuse its end, or take it up."""
        tracker = self.tracker
        assert tracker is not None
        run = self.run
        hooks = self.flow.hooks.get(HOOK_OF_TYPE.get(run.state_type, ""), [])
        if hooks and is_owed(run, HERE) and (yield OnBus(tracker.begin_hooks)):
            self.context.parameters = recorded_parameters(self.flow, run)
            yield from self._call_hooks(hooks, run.state)
        if run.state_type is StateType.COMPLETED:
            return (yield from self._recorded_end())
        if stays_cancelled(self.context):
            return self.state
        if run.is_final:
            yield from self.move(Scheduled(message="taken up by its parent"), retry=True)
        if self.run.state_type is StateType.CANCELLING:
            state = Cancelled(message="cancelled before its parent took it up again")
            return (yield from self.end(state))
        if self.run.state_type in (StateType.SCHEDULED, StateType.PAUSED):
            yield from go_on_awaiting(self)
            if self.run.state_type is StateType.PAUSED:
                yield from self.move(Scheduled(message="taken up by its parent"))
            yield from self.move(Pending(), attempt=self.run.attempt + 1)
        else:
            yield from self.move(Running(message="taken up by its parent"), attempt=self.run.attempt + 1)
        return None

    def _recorded_end(self) -> Life:
        """Return the COMPLETED state of a subflow that an earlier attempt of its parent saw to its end."""
        tracker, run = self.tracker, self.run
        assert tracker is not None
        recorded = yield OnBus(tracker.recorded_flow_result)
        if recorded is None:
            recorded = {"format": "none", "missing": "the flow says persist_result=False"}
        stored = RecordedResult(tracker.session, recorded, run_id=run.id, key="flow result")
        value = yield ReadResult(stored)
        return Completed(data=value, name=run.state_name, message=run.state_message, run_id=run.id)

    def _inputs(self) -> Generator[Step, Any, dict[str, Any]]:
        given = self.given if self.given is not None else self.flow.shape.from_mapping(self.run.parameters)
        futures: list[TaskFuture[Any]] = []

        def note(leaf: Any) -> Any:
            if isinstance(leaf, TaskFuture):
                futures.append(leaf)
            elif hasattr(leaf, "unwrap"):
                replace_leaves(leaf.unwrap(), note)
            return leaf

        for value in (*given.values(), *self.wait_for):
            replace_leaves(value, note)
        if futures:
            yield WaitFor(futures)
        return resolve_inputs(given, self.wait_for, what=f"flow {self.flow.name!r}")

    def _fit_at_once(self) -> tuple[str | None] | None:
        """Return the name of a run that nothing keeps from RUNNING; None where something is to be waited for, or said.

        Nobody else knows of a run that begins here, so its first two transitions can be made in one step, which is an exchange with
        the broker less, and for a sync flow a change of threads.
        """
        inputs = self._inputs()
        try:
            next(inputs)
        except StopIteration as end:
            try:
                return (self._take(end.value),)
            except OF_THE_CODE:
                return None  # said once the run has begun
        except (UpstreamFailed, ParameterError):
            return None
        inputs.close()
        return None

    def _take(self, given: dict[str, Any]) -> str | None:
        """Take parameters, if they fit; return the name they give the run, if it has one of its own."""
        self._parameters = self.context.parameters = (
            self.flow.shape.validate(given) if self.flow.should_validate_parameters else given
        )
        return self._name()

    def _name(self) -> str | None:
        if self.flow.flow_run_name is None or self.run.attempt > 1:
            return None
        token = current_run.set(self.context)
        try:
            return render_name("flow_run_name", self.flow.flow_run_name, self._parameters)
        finally:
            current_run.reset(token)

    def _tries(self) -> Generator[Step, Any, State]:
        retry = self.tracker.retries_made if self.tracker is not None else 0
        while True:
            state = yield from self._try()
            if state.type is not StateType.FAILED or retry >= self.retries or isinstance(state.data, Abort):
                return (yield from self.end(state))
            retry += 1
            if (yield from leaves_for_next_try(self, state)):
                return self.state
            yield from await_next_try(self, state)

    def _try(self) -> Generator[Step, Any, State]:
        """Run the function once; return the state it comes to."""
        what, run_id = "Flow run", self.run.id
        body, began = Body(), time.monotonic()
        try:
            try:
                value = yield body
            except (RunLost, RunTimedOut):
                raise
            except BaseException as exc:
                yield from self._ended(body, began, exc)
                if not isinstance(exc, OF_THE_CODE):
                    raise
                if not isinstance(exc, Skip):
                    self.context.runner.stop()
                yield from self._drain(body, began)
                state = state_of_exception(exc, what=what, run_id=run_id)
            else:
                yield from self._ended(body, began, None)
                yield from self._drain(body, began, may_leave=True)
                state = state_of_value(resolve_futures_to_states(value), run_id=run_id)
        except RunTimedOut as exc:
            end_waits(self.context)
            self.context.runner.stop(interrupt=True)
            yield Drain(STOPPING_S)
            state = state_of_exception(exc, what=what, run_id=run_id)
        return state

    def _ended(self, body: Body, began: float, exc: BaseException | None) -> Generator[Step, Any, None]:
        """See to what the flow's code has left behind. Raises ``Suspend``: the run leaves its worker, whatever the code came to."""
        suspend = suspension_of(self.context, exc)
        if suspend is not None:
            yield from self._drain(body, began)
            raise suspend from exc
        if (exc is None or isinstance(exc, OF_THE_CODE)) and (rests := end_waits(self.context)) is not None:
            yield WaitUntilQuiet(rests, STOPPING_S)

    def _drain(self, body: Body, began: float, *, may_leave: bool = False) -> Generator[Step, Any, None]:
        """Wait for what was submitted, as long as the limit of the flow allows.

        Args:
            may_leave: whether a wait for nothing but retries is left to the worker that takes the run then.
        Raises:
            RunTimedOut: tasks still ran when the time of the try, which began then (monotonic), was up.
            Suspend: the run leaves its worker.
        """
        context, limit_s = self.context, self.flow.timeout_seconds
        left_s = left_of(limit_s, began if body.spent_s is None else time.monotonic() - body.spent_s)
        context.waiting += may_leave
        if context.rests is not None:
            context.rests.look()
        try:
            if context.runner.open_count:
                yield Drain(left_s)
        finally:
            context.waiting -= may_leave
        if limit_s is not None and (running := context.runner.unfinished()):
            self.log.warning(
                "its code had ended, and %d of its tasks had not when its time was up", len(running)
            )
            raise timed_out(self.limit_text, limit_s)
        if context.leaving is not None:
            raise context.leaving.again()

    def end(self, state: State) -> Generator[Step, Any, State]:
        """Write the final state, and tell the hooks."""
        tracker = self.tracker
        if tracker is not None and tracker.finished:
            state = compared(state, tracker, self.log)
        if self._has_successor and hooks_of_end(self.flow, state):
            # Said with the end itself: should this process die before they have run, others know that they have not.
            state = owing(state, HERE)
        if tracker is not None and self.context.left:
            # Before its own end, after which nobody would take them up.
            yield OnBus(tracker.close, (tuple(self.context.left), state))
        if state.type is StateType.FAILED:
            # Before the end is written, so that who sees the run over finds its last line too.
            self.log.error("%s", state.message, exc_info=shown_exception(state.data))
        if tracker is not None:
            keeping = self.context.keeping
            self.ending = state
            try:
                if state.type is StateType.COMPLETED and (keeping is None or keeping.persist is not False):
                    yield from tracker.finish_with(state, state.data, keeping)
                else:
                    yield from tracker.finish(state)
                if state.type is StateType.CANCELLING:
                    # Nothing of it goes on, so nobody else would bring it to an end.
                    self.ending = state.replace(type=StateType.CANCELLED, name="Cancelled")
                    yield from tracker.finish(self.ending)
            except MoveRefused:
                # PAUSED was returned, say: what the log cannot take, a run cannot end in.
                if state.type.is_terminal:
                    raise
                self.ending = Failed(message=f"the flow returned {state.name}, which is no end")
                yield from tracker.finish(self.ending)
            self.follow()
        else:
            self._set(state)
            self.ending = state
        state = state if state.run_id == self.run.id else state.replace(run_id=self.run.id)
        yield from self.call_hooks_of(state)
        return state

    @property
    def _has_successor(self) -> bool:
        """Whether somebody calls its hooks should this process die: a worker, or the next attempt of the run above."""
        run = self.run
        return self.tracker is not None and not (run.pool is run.parent is run.entrypoint is None)

    def call_hooks_of(self, state: State) -> Generator[Step, Any, None]:
        """Tell the hooks of an end that has been written."""
        self.has_told_end = True
        if hooks := hooks_of_end(self.flow, state):
            yield from self._call_hooks(hooks, state)

    def _call_hooks(self, hooks: list[Hook], state: State) -> Generator[Step, Any, None]:
        self.context.runner.reopen()  # hooks may submit tasks, too
        own, self.context.calls = self.context.calls, CallCounter(hooks_scope(self.run))
        yield CallHooks(hooks, state)
        yield Drain(STOPPING_S if self.is_interrupted else None)
        self.context.calls = own
        if self.tracker is None or not self._has_successor:
            return
        try:
            yield OnBus(self.tracker.note_hooks)
        except HarkError as trouble:
            # They have run, which is what counts; they may run once more.
            self.log.warning("hooks have run, and it could not be noted: %s", trouble)

    # --- moving ---------------------------------------------------------------------------------------

    def move(self, state: State, **changes: Any) -> Generator[Step, Any, None]:
        if self.tracker is None:
            self._set(state, **changes)
            return
        if changes.get("name") is None:
            changes.pop("name", None)
        yield OnBus(self.tracker.move, (state,), changes)
        self.follow()

    def follow(self) -> None:
        """Take over what the tracker knows of the run."""
        assert self.tracker is not None
        self.context.flow_run = self.tracker.flow_run

    def _set(self, state: State, *, attempt: int | None = None, name: str | None = None, **_: Any) -> None:
        self.context.flow_run = self.run.moved(state, attempt=attempt, name=name)

    # --- the author's function ------------------------------------------------------------------------

    def entering(self) -> AbstractContextManager[None]:
        """Return what surrounds the author's function: context, tags, cause of what it emits, prints."""
        return around_code(self.context)

    @property
    def limit_text(self) -> str:
        return f"flow {self.flow.name!r}"

    def call_function(self) -> Any:
        args, kwargs = self.flow.shape.spread(self._parameters)
        return self.flow.fn(*args, **kwargs)

    @property
    def state(self) -> State:
        run = self.run
        return State(run.state_type, name=run.state_name, message=run.state_message, run_id=run.id)
