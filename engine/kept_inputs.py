"""Inputs of runs under keys of one's own: what ``create_flow_run_input`` keeps, and what a form of ``RunInput`` is saved as.

They are events about the run they are for, as those that are sent (``mailbox.py``); one that is deleted stays in the log,
and is found no more. Keys of forms come in sets: ``keyset_from_base_key("order")``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Coroutine, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, Field, field_validator
from pydantic_core import to_jsonable_python

from ..bus.event import Event
from ..errors import InvalidNameError, UnknownName
from ..vocabulary import FlowRunId, JsonValue, new_id
from .either import Either
from .mailbox import INPUT_SENT, run_here, sender_here
from .run import SOURCE
from .run_log import RunLog

if TYPE_CHECKING:
    from ..bus.session import Session
    from .states import State

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


async def _kept(session: Session, run_id: FlowRunId) -> dict[str, FlowRunInput]:
    """Return the inputs a run has now, by key, oldest first."""
    history = await RunLog(session.bus).history(run_id)
    if not history:
        raise UnknownName("flow run", run_id)
    found: dict[str, FlowRunInput] = {}
    filters = [f"hark.ev.{INPUT_SENT}", f"hark.ev.{INPUT_DELETED}"]
    async with session.bus.log.read(filters, after=history[0].seq) as batches:
        async for batch in batches:
            for recorded in batch.records:
                event = recorded.event
                data: Any = event.data
                if event.source != SOURCE or data["run"]["id"] != run_id:
                    continue
                if event.type == INPUT_DELETED:
                    found.pop(data["key"], None)
                else:
                    found[data["key"]] = FlowRunInput(
                        id=event.id, created=event.time, flow_run_id=run_id, key=data["key"],
                        value=orjson.dumps(data["value"]).decode(), sender=data["sender"],
                    )  # fmt: skip
    return found


async def _create(
    session: Session, run_id: FlowRunId, key: str, value: JsonValue, *, sender: str | None
) -> None:
    if not _KEY.fullmatch(key):
        raise InvalidNameError(f"{key!r} is no key of an input: it may have letters, digits, '-' and '_'")
    if key in await _kept(session, run_id):
        raise InvalidNameError(
            f"run {run_id} has an input under {key!r} already: use another key, or delete that one"
        )
    data: dict[str, JsonValue] = {
        "run": {"id": run_id}, "key": key, "prefix": None, "sender": sender, "value": value,
    }  # fmt: skip
    await session.bus.log.append(
        Event(type=INPUT_SENT, source=SOURCE, subject=f"flow-run/{run_id}", data=data)
    )


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
        InvalidNameError: the run has one of this key, or the key has other characters than letters, digits, ``-``, ``_``.
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


class InputCalls:
    """What the client of ``get_client()`` does with inputs of runs. Their values are JSON texts there."""

    async def _ask(self, what: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        raise NotImplementedError

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
