"""Inputs sent to runs while they run, and receiving them: ``send_input``, ``receive_input``, ``RunInput.receive``.

An input is an event ``hark.input.sent`` about the run it is for, so it is not lost when nobody listens yet, and a run that
is taken up again receives the same inputs in the same order from its beginning on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio

from ...bus.emit import CauseAttrs, current_cause
from ...bus.event import Event, Recorded, readable
from ...bus.subject import input_filters
from ...errors import MissingContextError, UnknownName
from ...vocabulary import FlowRunId, JsonObject, JsonValue, new_id
from ..context import FlowRunContext
from ..runs.run import SOURCE
from ..runs.run_log import RunLog
from ..sync_async.either import Either, blocking_session, is_async_here, session_here
from .input_metadata import RunInputMetadata

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["INPUT_SENT", "RUN_AS_SENDER", "Mailbox", "run_here", "run_of_sender", "send", "sender_here"]

T = TypeVar("T")

INPUT_SENT = "hark.input.sent"
RUN_AS_SENDER = "prefect.flow-run."
"""What a run is called as a sender: in Prefect's words, since flows read them."""
_RUN_AS_SENDER_BEFORE = "flow-run/"  # inputs in older logs


@Either
async def send(
    session: Session, flow_run_id: str, value: JsonValue, *, prefix: str, sender: str | None
) -> None:
    """Send an input to a run.

    Raises:
        UnknownName: there is no such run.
    """
    run_id = FlowRunId(str(flow_run_id))
    if await RunLog(session.bus).get(run_id) is None:
        raise UnknownName("flow run", run_id)
    sender = sender or sender_here()
    data: JsonObject = {
        "run": {"id": run_id}, "key": f"{prefix}-{new_id()}", "prefix": prefix, "sender": sender, "value": value,
    }  # fmt: skip
    cause = current_cause.get()
    attrs = cause if isinstance(cause, CauseAttrs) else CauseAttrs()
    await session.bus.log.append(
        Event(
            type=INPUT_SENT, source=SOURCE, subject=f"flow-run/{run_id}", data=data, correlationid=attrs.correlationid,
            causationid=attrs.causationid, causaldepth=attrs.causaldepth,
        )
    )  # fmt: skip


def sender_here() -> str | None:
    """Return what the run the code is in is called as a sender; None outside of runs."""
    here = FlowRunContext.get()
    return None if here is None else f"{RUN_AS_SENDER}{here.flow_run.id}"


def run_of_sender(sender: str | None) -> str | None:
    """Return the id of the run that a sender is; None for any other sender."""
    for beginning in (RUN_AS_SENDER, _RUN_AS_SENDER_BEFORE):
        if sender is not None and sender.startswith(beginning):
            return sender.removeprefix(beginning)
    return None


def run_here(flow_run_id: object) -> FlowRunId:
    """Return the run meant: the one given, or the one the code is in.

    Raises:
        MissingContextError: neither.
    """
    if flow_run_id is not None:
        return FlowRunId(str(flow_run_id))
    here = FlowRunContext.get()
    if here is None:
        raise MissingContextError(
            "outside a flow run there is nobody to receive inputs for",
            hint="say whose with flow_run_id=…, or receive them inside a flow",
        )
    return here.flow_run.id


class Mailbox(Generic[T]):
    """The inputs of one run with one prefix, in the order in which they were sent. ``for``, ``async for``, or ``next()``.

    It ends when none comes within the time limit. Nothing is held open between two of them.

    Attributes:
        timeout_s: how long to wait for the next one; None: for as long as it takes.
    """

    def __init__(
        self,
        run_id: FlowRunId,
        prefix: str,
        *,
        timeout_s: float | None,
        raises: bool,
        exclude: Iterable[str],
        read: Any,
    ) -> None:
        self._run_id, self._prefix, self._read = run_id, prefix, read
        self.timeout_s, self._raises = timeout_s, raises
        self._excluded = set(exclude)
        self._after: int | None = None
        self._ready: deque[tuple[JsonValue, RunInputMetadata]] = deque()

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return self.next_sync()
        except TimeoutError:
            if self._raises:
                raise
            raise StopIteration from None

    async def __anext__(self) -> T:
        try:
            return await self.anext()
        except TimeoutError:
            if self._raises:
                raise
            raise StopAsyncIteration from None

    def next(self) -> Any:
        """Return the next input; awaited in async code.

        Raises:
            TimeoutError: none came within the time limit.
            ParameterError: it does not fit what is received here.
        """
        return self.anext() if is_async_here() else self.next_sync()

    async def anext(self) -> T:
        """Do what ``next`` does, in async code.

        Raises:
            TimeoutError: none came within the time limit.
            ParameterError: it does not fit what is received here.
        """
        session = session_here("receiving inputs")
        value, about = await session.acall(self._next, session)
        found: T = self._read(value, about)
        return found

    def next_sync(self) -> T:
        """Do what ``next`` does, in sync code."""
        session = blocking_session("receiving inputs")
        value, about = session.call(self._next, session)
        found: T = self._read(value, about)
        return found

    async def _next(self, session: Session) -> tuple[JsonValue, RunInputMetadata]:
        if self._ready:
            return self._ready.popleft()
        if self._after is None:
            history = await RunLog(session.bus).history(self._run_id)
            if not history:
                raise UnknownName("flow run", self._run_id)
            self._after = history[0].seq
        with anyio.fail_after(self.timeout_s):
            filters = input_filters(INPUT_SENT, self._run_id)
            async with session.bus.log.follow(filters, after=self._after) as batches:
                async for batch in batches:
                    for recorded in readable(batch.records):
                        self._after = recorded.seq
                        with suppress(KeyError, TypeError):  # somebody's message that says too little
                            self._note(recorded)
                    if self._ready:
                        return self._ready.popleft()
        raise TimeoutError("the log ended before an input came")

    def _note(self, recorded: Recorded) -> None:
        data: Any = recorded.event.data
        if recorded.event.source != SOURCE or data["run"]["id"] != self._run_id:
            return
        key, sender = data["key"], data["sender"]
        if not isinstance(key, str) or not isinstance(sender, str | None) or key in self._excluded:
            return
        # One that was kept under a key of somebody's own has no prefix beside it.
        if data["prefix"] != self._prefix if data["prefix"] else not key.startswith(self._prefix):
            return
        about = RunInputMetadata(key=key, sender=sender, receiver=self._run_id)
        self._ready.append((data["value"], about))
