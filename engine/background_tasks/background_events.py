"""Writing the transitions of a task run that was given to a worker by ``delay``.

On its way they stream through the publisher, as those of any task. Its end is guarded: it is stored behind all of them, if
the run is still the worker's that writes it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.event import Event
from ...bus.outgoing import Outgoing
from ...bus.subject import background_subject
from ...errors import BusUnavailable, GuardFailed
from ...vocabulary import TERMINAL, JsonObject, StateType
from ..results import InlineResult, LargeResult
from ..runs.task_events import TaskEvents
from ..runs.task_run import TaskRun
from ..runs.upload import Upload
from ..signals import Interrupted
from .background import NOT_READY, BackgroundLog, BackgroundRun

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["BackgroundEvents"]

log = logging.getLogger(__name__)

_AGAIN_S = 0.5


class BackgroundEvents(TaskEvents):
    """Writes for one claim of one run.

    Attributes:
        is_lost: the run is another worker's, or over: what was written here last did not count.
        landed: the sequence of the end, once it is stored; 0 before.
    """

    is_guarded = True

    def __init__(self, session: Session, run: BackgroundRun, *, about: JsonObject, inline_bytes: int) -> None:
        data = run.data
        flow_run: Any = data["flow_run"]
        super().__init__(
            session, run_id=flow_run["id"], run_name=flow_run.get("name"), attempt=int(flow_run.get("attempt") or 1),
            flow_name=(data.get("flow") or {}).get("name"), deployment=(data.get("deployment") or {}).get("name"),
            correlationid=run.event.correlationid, causationid=run.event.causationid,
            causaldepth=run.event.causaldepth, inline_bytes=inline_bytes,
        )  # fmt: skip
        # All on one: it is what the end is guarded by.
        self._subject = self._completed_subject = background_subject(run.id)
        self._attributes += f'"background":{orjson.dumps(about).decode()},'
        self._run_id, self._claim = run.id, int(str(about["claim"]))
        self._runs = BackgroundLog(session.bus)
        self._ends: list[Outgoing | Upload] = []
        self._is_end = False
        self.is_lost = False
        self.landed = 0

    def write(
        self,
        run: TaskRun,
        type_: StateType,
        name: str,
        message: str | None = None,
        result: InlineResult | LargeResult | None = None,
        more: str = "",
    ) -> None:
        self._is_end = type_ in TERMINAL or name == NOT_READY
        if self._is_end and run.state is not None and isinstance(run.state.data, Exception):
            more += self._error(run, run.state.data)
        super().write(run, type_, name, message, result, more)

    def _error(self, run: TaskRun, exc: Exception) -> str:
        """Return what is recorded of an exception, for whoever asks for the result of the run."""
        from ..executors.shipment import packed_outcome

        # The packing takes the traceback off, which is still to be shown here.
        traceback = exc.__traceback__
        data = packed_outcome(None, exc, what=f"task {run.task.name!r}")
        exc.__traceback__ = traceback
        if len(data) > self.inline_bytes:
            return ""  # the message says what it was
        return f'"error":{{"inline":"{base64.b64encode(data).decode()}","format":"pickle"}},'

    def _give(self, *messages: Outgoing) -> None:
        for message in messages:
            if self._is_end and message.subject == self._subject:
                self._ends.append(message)
            else:
                super()._give(message)

    def _send_later(self, item: Outgoing | Upload) -> None:
        if isinstance(item, Upload):
            self._ends.append(item)  # only an end has a result
        else:
            super()._send_later(item)

    def give_way(self) -> None:
        """Store the end, where there is one.

        Raises:
            Interrupted: the run was lost: nothing that follows its end (hooks) is to be done here.
        """
        if self._ends:
            self.session.call(self.land)
            if self.is_lost:
                raise Interrupted
        else:
            super().give_way()

    async def give_way_async(self) -> None:
        """Do what ``give_way`` does, in async code."""
        if self._ends:
            await self.session.acall(self.land)
            if self.is_lost:
                raise Interrupted
        else:
            await super().give_way_async()

    async def land(self) -> None:
        """Store the end behind all that came before it, if the run is still ours. On the session's loop."""
        ends, self._ends = self._ends, []
        for item in ends:
            while not self.is_lost and not self.is_silent:
                try:
                    await self._land(item)
                except GuardFailed:
                    continue  # somebody wrote: look again whether it is ours
                except BusUnavailable as exc:
                    log.debug("task_worker.broker_away", extra={"error": str(exc)})
                    await asyncio.sleep(_AGAIN_S)
                    continue
                break

    async def _land(self, item: Outgoing | Upload) -> None:
        after = self.landed
        if not after:
            # What streams out must be in the log first: the end names the last of it.
            await self.settle()
            await self.session.bus.publisher.barrier(owner=self._owner)
            now = await self._runs.get(self._run_id)
            if now is None or now.is_over or now.claim != self._claim:
                self.is_lost = True
                self.silence()
                return
            after = now.seq
        message = item if isinstance(item, Outgoing) else await self._upload(item)
        event = Event.from_dict(orjson.loads(message.payload))
        try:
            self.landed = (await self.session.bus.log.append(event, after=after)).seq
        except GuardFailed:
            if self.landed:  # what is left of a worker that lost the run: our end stands all the same
                last = await self._runs.get(self._run_id)
                self.landed = last.seq if last is not None else 0
            raise
