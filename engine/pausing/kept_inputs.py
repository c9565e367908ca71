"""Inputs of runs under keys of one's own: what ``create_flow_run_input`` keeps, and what a form of ``RunInput`` is saved as.

They are events about the run they are for, as those that are sent (``mailbox.py``); one that is deleted stays in the log,
and is found no more. Keys of forms come in sets: ``keyset_from_base_key("order")``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import to_jsonable_python

from ...bus.event import Event, Recorded, readable
from ...bus.subject import input_filters
from ...errors import EventInvalid, InvalidNameError, UnknownName
from ...vocabulary import FlowRunId, JsonValue, derived_id, new_id
from ..runs.run import SOURCE
from ..runs.run_log import RunLog
from ..sync_async.either import Either
from .mailbox import INPUT_SENT, run_here, run_of_sender, sender_here

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..states import State

__all__ = [
    "FlowRunInput", "InputCalls", "acreate_flow_run_input", "acreate_flow_run_input_from_model", "adelete_flow_run_input",
    "afilter_flow_run_input", "aread_flow_run_input", "create_flow_run_input", "create_flow_run_input_from_model",
    "delete_flow_run_input", "filter_flow_run_input", "keyset_from_base_key", "keyset_from_paused_state", "read_flow_run_input",
]  # fmt: skip

T = TypeVar("T")

INPUT_DELETED = "hark.input.deleted"
_KEY = re.compile(r"[A-Za-z0-9_-]+")


class FlowRunInput(BaseModel):
    """An input of a run, as it is kept.

    Attributes:
        value: JSON.
    """

    id: str = Field(default_factory=new_id)
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    flow_run_id: str
    key: str
    value: str
    sender: str | None = None

    @field_validator("flow_run_id", mode="before")
    @classmethod
    def _as_text(cls, given: object) -> str:
        return str(given)  # a UUID, in code written for Prefect

    @property
    def decoded_value(self) -> Any:
        """What the JSON of ``value`` says."""
        return orjson.loads(self.value)


def keyset_from_base_key(base_key: str) -> dict[str, str]:
    """Return the keys that a form and its answer are kept under: ``description``, ``response``, ``schema``."""
    return {part: f"{base_key}-{part}" for part in ("description", "response", "schema")}


def keyset_from_paused_state(state: State) -> dict[str, str]:
    """Return the keys of the pause that a state tells of.

    Raises:
        InvalidNameError: the state is of no pause.
    """
    if not state.is_paused():
        raise UnsupportedState(f"{state.type.value!r} is unsupported: only a paused run waits for an input")
    return keyset_from_base_key(f"{(state.name or '').lower()}-{state.state_details.pause_key}")


class UnsupportedState(InvalidNameError, RuntimeError):
    """A state that has no keys of inputs. A ``RuntimeError`` too, as in Prefect."""


@dataclass(slots=True)
class _Kept:
    """The inputs a run has now, by key, oldest first; and where in the log those of a key were last deleted."""

    run_id: FlowRunId
    inputs: dict[str, FlowRunInput] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)

    def note(self, recorded: Recorded) -> None:
        """Take in an event. One that says too little, or not as we do, raises KeyError, TypeError or ValidationError."""
        event, data = recorded.event, cast("Any", recorded.event.data)
        if event.source != SOURCE or data["run"]["id"] != self.run_id:
            return
        key = data["key"]
        if event.type == INPUT_DELETED:
            self.inputs.pop(key, None)
            self.deleted[key] = recorded.seq
        else:
            self.inputs[key] = FlowRunInput(
                id=event.id, created=event.time, flow_run_id=self.run_id, key=key,
                value=orjson.dumps(data["value"]).decode(), sender=data["sender"],
            )  # fmt: skip


async def _look(session: Session, run_id: FlowRunId) -> _Kept:
    """Return what is kept for a run now. Raises ``UnknownName``: there is no such run."""
    history = await RunLog(session.bus).history(run_id)
    if not history:
        raise UnknownName("flow run", run_id)
    kept = _Kept(run_id)
    filters = [*input_filters(INPUT_SENT, run_id), *input_filters(INPUT_DELETED, run_id)]
    async with session.bus.log.read(filters, after=history[0].seq) as batches:
        async for batch in batches:
            for recorded in readable(batch.records):
                with suppress(
                    KeyError, TypeError, ValidationError
                ):  # somebody's message that says too little
                    kept.note(recorded)
    return kept


async def _kept(session: Session, run_id: FlowRunId) -> dict[str, FlowRunInput]:
    """Return the inputs a run has now, by key, oldest first."""
    return (await _look(session, run_id)).inputs


async def _create(
    session: Session, run_id: FlowRunId, key: str, value: JsonValue, *, sender: str | None
) -> None:
    if not _KEY.fullmatch(key):
        raise InvalidNameError(f"{key!r} is no key of an input: it may have letters, digits, '-' and '_'")
    written, kept = _written(value), await _look(session, run_id)
    there = kept.inputs.get(key)
    if there is not None:
        if (_written(there.decoded_value), _who(there.sender)) == (written, _who(sender)):
            return  # a flow that is run again from its beginning says the same again
        raise InvalidNameError(
            f"run {run_id} has another input under {key!r} already: use another key, or delete that one"
        )
    # Two that say the same at once store it once; what was deleted since is said anew.
    id_ = derived_id("input", run_id, key, written, sender or "", str(kept.deleted.get(key, 0)))
    data: dict[str, JsonValue] = {
        "run": {"id": run_id}, "key": key, "prefix": None, "sender": sender, "value": value,
    }  # fmt: skip
    await session.bus.log.append(
        Event(type=INPUT_SENT, source=SOURCE, id=id_, subject=f"flow-run/{run_id}", data=data)
    )


def _written(value: JsonValue) -> str:
    """Return the one text of a value, whatever the order of its keys. Raises ``EventInvalid``: it is not JSON."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError as exc:
        raise EventInvalid("data", f"must be JSON: {exc}") from exc


def _who(sender: str | None) -> str | None:
    return run_of_sender(sender) or sender


async def _delete(session: Session, run_id: FlowRunId, key: str) -> None:
    if key not in await _kept(session, run_id):
        raise UnknownName("input", key)
    data: dict[str, JsonValue] = {"run": {"id": run_id}, "key": key}
    await session.bus.log.append(
        Event(type=INPUT_DELETED, source=SOURCE, subject=f"flow-run/{run_id}", data=data)
    )


async def _filter(
    session: Session, run_id: FlowRunId, prefix: str, *, limit: int, exclude: Collection[str]
) -> list[FlowRunInput]:
    kept = (await _kept(session, run_id)).values()
    return [one for one in kept if one.key.startswith(prefix) and one.key not in exclude][:limit]


@Either
async def create_flow_run_input(
    session: Session, key: str, value: Any, flow_run_id: object = None, sender: str | None = None
) -> None:
    """Keep an input of a run under a key; awaited in async code.

    Args:
        value: whatever is JSON.
        flow_run_id: default: the run the code is in.
    Raises:
        InvalidNameError: the run has another of this key (the same value from the same sender is kept once), or the key has other characters than letters, digits, ``-``, ``_``.
        MissingContextError: outside a run without ``flow_run_id``. UnknownName: there is no such run.
    """
    await _create(session, run_here(flow_run_id), key, to_jsonable_python(value), sender=sender)


@Either
async def create_flow_run_input_from_model(
    session: Session,
    key: str,
    model_instance: BaseModel,
    flow_run_id: object = None,
    sender: str | None = None,
) -> None:
    """Do what ``create_flow_run_input`` does, with a pydantic model; the sender is the run the code is in."""
    value = model_instance.model_dump(mode="json")
    await _create(session, run_here(flow_run_id), key, value, sender=sender or sender_here())


@Either
async def read_flow_run_input(session: Session, key: str, flow_run_id: object = None) -> Any:
    """Return the value that is kept under a key; None if there is none."""
    found = (await _kept(session, run_here(flow_run_id))).get(key)
    return found.decoded_value if found is not None else None


@Either
async def filter_flow_run_input(
    session: Session,
    key_prefix: str,
    limit: int = 1,
    exclude_keys: Collection[str] | None = None,
    flow_run_id: object = None,
) -> list[FlowRunInput]:
    """Return the inputs of a run whose keys begin so, oldest first."""
    return await _filter(session, run_here(flow_run_id), key_prefix, limit=limit, exclude=exclude_keys or ())


@Either
async def delete_flow_run_input(session: Session, key: str, flow_run_id: object = None) -> None:
    """Delete the input of a key. Raises ``UnknownName``: there is none."""
    await _delete(session, run_here(flow_run_id), key)


acreate_flow_run_input = create_flow_run_input.aio
acreate_flow_run_input_from_model = create_flow_run_input_from_model.aio
aread_flow_run_input = read_flow_run_input.aio
afilter_flow_run_input = filter_flow_run_input.aio
adelete_flow_run_input = delete_flow_run_input.aio


class InputCalls(ABC):
    """What the client of ``get_client()`` does with inputs of runs. Their values are JSON texts there."""

    @abstractmethod
    async def _ask(self, what: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        """Do something with the session of whoever has these calls."""

    async def create_flow_run_input(
        self, flow_run_id: object, key: str, value: str, sender: str | None = None
    ) -> None:
        """Keep an input of a run under a key."""
        run_id = FlowRunId(str(flow_run_id))
        await self._ask(lambda session: _create(session, run_id, key, orjson.loads(value), sender=sender))

    async def filter_flow_run_input(
        self, flow_run_id: object, key_prefix: str, limit: int, exclude_keys: Collection[str] = ()
    ) -> list[FlowRunInput]:
        """Return the inputs of a run whose keys begin so, oldest first."""
        run_id = FlowRunId(str(flow_run_id))
        return await self._ask(
            lambda session: _filter(session, run_id, key_prefix, limit=limit, exclude=exclude_keys)
        )

    async def read_flow_run_input(self, flow_run_id: object, key: str) -> str:
        """Return the JSON that is kept under a key. Raises ``UnknownName``."""

        async def read(session: Session) -> str:
            kept: Mapping[str, FlowRunInput] = await _kept(session, FlowRunId(str(flow_run_id)))
            if key not in kept:
                raise UnknownName("input", key, known=list(kept))
            return kept[key].value

        return await self._ask(read)

    async def delete_flow_run_input(self, flow_run_id: object, key: str) -> None:
        """Delete the input of a key. Raises ``UnknownName``."""
        await self._ask(lambda session: _delete(session, FlowRunId(str(flow_run_id)), key))
