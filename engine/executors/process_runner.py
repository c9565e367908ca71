"""Tasks in processes of their own: CPU-bound work in parallel, limits that stop anything, crashes that stay where they are.

A thread of this process looks after each running task: it waits for its inputs, keeps its retries, its time limit, hooks and
events, and sends each try to a process. So what a process does not survive costs one try.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from ...errors import ProcessDied, RunTimedOut, Unpicklable
from ..futures import TaskFuture
from ..logging import run_loggers
from ..signals import Interrupted
from ..task_runners import TaskRunner, ThreadPoolTaskRunner
from ..writing import pickled, unpickled
from .far_wait import FarWaits
from .fork_server import ForkServer, how_it_ended
from .frame import Channel
from .shipment import packed_try, unpacked_outcome

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..calls.task_call import TaskCall

__all__ = ["ProcessPoolTaskRunner"]


class ProcessPoolTaskRunner(ThreadPoolTaskRunner):
    """Runs tasks in processes, at most ``max_workers`` at once; async ones too, in the process's own loop.

    Functions, arguments and results travel pickled (cloudpickle); what cannot travel fails its task with ``Unpicklable``.
    A task that takes longer than its ``timeout_seconds`` loses its process at once, whatever it is doing. A process that dies
    crashes the try that ran in it, and no other. Tasks that a task submits run in threads of its process, so a small pool
    never waits for itself.

    Args:
        max_workers: default: the number of CPUs.
        initializer: called in each new process, with ``initargs``.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(max_workers or os.cpu_count() or 1)
        self.initializer, self.initargs = initializer, tuple(initargs)
        self._forks: ForkServer | None = None
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()

    def duplicate(self) -> Self:
        return type(self)(self.max_workers, initializer=self.initializer, initargs=self.initargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), *self._settings())

    def _settings(self) -> tuple[Any, ...]:
        return self.max_workers, self.initializer, self.initargs

    def _begin(self, call: TaskCall, future: TaskFuture[Any], context: contextvars.Context) -> None:
        call.elsewhere = self._try
        super()._begin(call, future, context)

    def _try(self, call: TaskCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one try in a process; return what it returned, or raise what it raised."""
        data, session = packed_try(call, args, kwargs)
        child: _Child | None = None
        try:
            child = self._take(call)
            with FarWaits(call) as waits:
                value = child.run(call, data, session, waits)
        except _Ended as ended:
            self._drop(child)
            if self.is_interrupted(call):
                raise Interrupted from None
            if ended.timed_out:
                raise RunTimedOut(
                    f"task {call.task.name!r} timed out after {call.task.timeout_seconds:g} second(s)"
                ) from None
            raise ProcessDied(str(ended), run_id=call.run.id) from None
        except BaseException:
            self._give_back(child)
            raise
        self._give_back(child)
        return value

    def _take(self, call: TaskCall) -> _Child:
        with self._lock:
            if self.is_interrupted(call):
                raise Interrupted
            if self._idle:
                child = self._idle.pop()
                self._busy.add(child)
                return child
            if self._forks is None:
                self._forks = ForkServer()
            forks = self._forks
        child = _Child(forks, self._greeting())
        with self._lock:
            self._busy.add(child)
            if not self.is_interrupted(call):
                return child
        # While it was forked, so the stop did not find it.
        self._give_back(child)
        raise Interrupted

    def _greeting(self) -> bytes:
        first: bytes | None = None
        if self.initializer is not None:
            try:
                first = pickled((self.initializer, self.initargs))
            except Exception as exc:
                raise Unpicklable(
                    f"the initializer of {type(self).__name__} cannot be pickled: {exc}"
                ) from exc
        return pickled({"path": list(sys.path), "cwd": os.getcwd(), "first": first})

    def _give_back(self, child: _Child | None) -> None:
        """Keep a process for the next task, unless we have been closed meanwhile."""
        if child is None:
            return
        with self._lock:
            self._busy.discard(child)
            if child.forks is self._forks:
                self._idle.append(child)
                return
        child.retire()

    def _drop(self, child: _Child | None) -> None:
        if child is not None:
            with self._lock:
                self._busy.discard(child)

    def stop(self, *, interrupt: bool = False) -> None:
        # Not the threads: each of them waits for a process, and hears of its end.
        with self._lock:
            TaskRunner.stop(self, interrupt=interrupt)
            busy = list(self._busy) if interrupt else []
        for child in busy:
            child.kill()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
            forks, self._forks = self._forks, None
        for child in idle:
            child.retire()
        if self.unfinished():
            self._interrupted = self._opening
        if forks is not None:
            forks.close()
        super().close()


def _made(
    kind: type[ProcessPoolTaskRunner], max_workers: int, initializer: Any, initargs: tuple[Any, ...]
) -> ProcessPoolTaskRunner:
    return kind(max_workers, initializer=initializer, initargs=initargs)


class _Ended(Exception):
    """A process came to its end before the try in it did."""

    def __init__(self, how: str, *, timed_out: bool = False) -> None:
        super().__init__(how)
        self.timed_out = timed_out


class _Child:
    """A process, as the thread that gives it work sees it."""

    def __init__(self, forks: ForkServer, greeting: bytes) -> None:
        self.forks = forks
        self.pid, self._channel = forks.fork()
        self._say(greeting)

    def run(self, call: TaskCall, data: bytes, session: Session | None, waits: FarWaits) -> Any:
        """Return the value of a try, once it has ended there.

        Raises:
            _Ended: the process did first; or it was killed, as the time was up.
            BaseException: what the try raised.
        """
        from .task_child import BEGUN, LOGGED, WAITS

        self._say(data)
        deadline: float | None = None
        channel: Channel = self._channel
        while True:
            if deadline is not None:
                channel.wait_at_most(max(1e-3, deadline - time.monotonic()))
            try:
                said = channel.receive_bytes()
            except TimeoutError:
                self.kill()
                self._gone()
                raise _Ended("its time was up", timed_out=True) from None
            if said is None:
                raise _Ended(self._gone())
            what, rest = said[:1], said[1:]
            if what == BEGUN:
                # Starting a process and importing the task's module are not the task's time.
                limit_s = call.task.timeout_seconds
                deadline = None if limit_s is None else time.monotonic() + limit_s
            elif what == LOGGED:
                log_again(unpickled(rest), session)
            elif what == WAITS:
                waits.hear(unpickled(rest))
            else:
                channel.wait_at_most(None)
                return unpacked_outcome(rest)

    def kill(self) -> None:
        self.forks.kill(self.pid)

    def retire(self) -> None:
        self._channel.close()

    def _say(self, data: bytes) -> None:
        try:
            self._channel.send_bytes(data)
        except OSError:
            raise _Ended(self._gone()) from None

    def _gone(self) -> str:
        """Wait for the end of the process, and return how it came."""
        self._channel.close()
        return how_it_ended(self.pid, self.forks.code_of(self.pid))


def log_again(facts: dict[str, Any], session: Session | None) -> None:
    """Handle a record from another process as one of our own, sending it by ``session`` to the run's log."""
    run_loggers()
    logging.getLogger(facts["name"]).handle(logging.makeLogRecord({**facts, "hark_session": session}))
