"""Typed input to a run: of a person when it is paused (``wait_for_input``), or of anybody while it runs.

::

    class Order(RunInput):
        item: str

    await Order(item="tea").send_to(run_id)          # in one place
    async for order in Order.receive(timeout=60):    # in the run
        await order.respond(Accepted(item=order.item))

    await send_input(3, run_id)                      # any type that is JSON
    async for number in receive_input(int): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, create_model

from ..errors import MissingContextError, ParameterError
from ..vocabulary import FlowRunId, JsonObject, JsonValue
from .pausing.input_metadata import RunInputMetadata
from .sync_async.either import is_async_here

if TYPE_CHECKING:
    from .pausing.kept_inputs import FlowRunInput
    from .pausing.mailbox import Mailbox

__all__ = [
    "AutomaticRunInput", "BaseRunInput", "InputForm", "RunInput", "RunInputMetadata", "asend_input", "receive_input",
    "run_input_subclass_from_type", "send_input",
]  # fmt: skip

T = TypeVar("T")


class BaseRunInput(BaseModel):
    """What inputs of all kinds have in common."""

    model_config = ConfigDict(extra="forbid")

    _description: ClassVar[str | None] = None
    _metadata: RunInputMetadata | None = PrivateAttr(None)

    @property
    def metadata(self) -> RunInputMetadata:
        """Where it came from. Raises ``MissingContextError`` for one that was not received."""
        if self._metadata is None:
            raise MissingContextError("this input was not received, so it has no sender")
        return self._metadata

    def send_to(self, flow_run_id: object, sender: str | None = None, key_prefix: str | None = None) -> Any:
        """Send it to a run; awaited in async code.

        Args:
            sender: default: the run the code is in.
            key_prefix: what the receiver listens to; default: the name of the class.
        Raises:
            UnknownName: there is no such run.
        """
        return send_input(self, flow_run_id, sender=sender, key_prefix=key_prefix)

    async def asend_to(
        self, flow_run_id: object, sender: str | None = None, key_prefix: str | None = None
    ) -> None:
        """Do what ``send_to`` does, in async code."""
        await asend_input(self, flow_run_id, sender=sender, key_prefix=key_prefix)

    def respond(self, run_input: Any, sender: str | None = None, key_prefix: str | None = None) -> Any:
        """Send an input to the run that sent this one; awaited in async code.

        Raises:
            MissingContextError: it was not sent by a run.
        """
        return send_input(run_input, _run_of(self.metadata), sender=sender, key_prefix=key_prefix)

    async def arespond(
        self, run_input: Any, sender: str | None = None, key_prefix: str | None = None
    ) -> None:
        """Do what ``respond`` does, in async code."""
        await asend_input(run_input, _run_of(self.metadata), sender=sender, key_prefix=key_prefix)

    @classmethod
    def keyset_from_type(cls) -> dict[str, str]:
        """Return the keys that a form of this class and its answer are kept under."""
        from .pausing.kept_inputs import keyset_from_base_key

        return keyset_from_base_key(cls.__name__.lower())

    @classmethod
    def save(cls, keyset: Mapping[str, str], flow_run_id: object = None) -> Any:
        """Keep the form, its schema and its description, with a run; awaited in async code."""
        from .pausing.kept_inputs import create_flow_run_input

        if is_async_here():
            return cls.asave(keyset, flow_run_id)
        for key, value in cls._to_keep(keyset):
            create_flow_run_input.blocking(key, value, flow_run_id)
        return None

    @classmethod
    async def asave(cls, keyset: Mapping[str, str], flow_run_id: object = None) -> None:
        """Do what ``save`` does, in async code."""
        from .pausing.kept_inputs import acreate_flow_run_input

        for key, value in cls._to_keep(keyset):
            await acreate_flow_run_input(key, value, flow_run_id)

    @classmethod
    def load(cls, keyset: Mapping[str, str], flow_run_id: object = None) -> Any:
        """Return the answer that is kept with a run, or a form with nothing filled in; awaited in async code.

        Raises:
            pydantic.ValidationError: it does not fit.
        """
        from .pausing.kept_inputs import read_flow_run_input

        if is_async_here():
            return cls.aload(keyset, flow_run_id)
        return cls._filled(read_flow_run_input.blocking(keyset["response"], flow_run_id), keyset, flow_run_id)

    @classmethod
    async def aload(cls, keyset: Mapping[str, str], flow_run_id: object = None) -> Any:
        """Do what ``load`` does, in async code."""
        from .pausing.kept_inputs import aread_flow_run_input

        return cls._filled(await aread_flow_run_input(keyset["response"], flow_run_id), keyset, flow_run_id)

    @classmethod
    def load_from_flow_run_input(cls, flow_run_input: FlowRunInput) -> Self:
        """Return the input that a record of one stands for. Raises ``pydantic.ValidationError``: it does not fit."""
        found = cls(**flow_run_input.decoded_value)
        receiver = FlowRunId(flow_run_input.flow_run_id)
        found._metadata = RunInputMetadata(flow_run_input.key, flow_run_input.sender, receiver)
        return found

    @classmethod
    def with_initial_data(cls, description: str | None = None, **initial: Any) -> type[Self]:
        """Return a form like this one with values filled in, and a text to show above it; other names become fields."""
        known = cls.model_fields
        fields: dict[str, Any] = {
            name: (known[name].annotation if name in known else type(value), value)
            for name, value in initial.items()
        }
        made: Any = create_model(cls.__name__, __base__=cls, **fields)
        if description is not None:
            made._description = description
        filled: type[Self] = made
        return filled

    @classmethod
    def _to_keep(cls, keyset: Mapping[str, str]) -> list[tuple[str, Any]]:
        told = [(keyset["description"], cls._description)] if cls._description else []
        return [(keyset["schema"], cls.model_json_schema()), *told]

    @classmethod
    def _filled(cls, value: Any, keyset: Mapping[str, str], flow_run_id: object) -> Any:
        from .pausing.mailbox import run_here

        found = cls(**(value or {}))
        found._metadata = RunInputMetadata(keyset["response"], None, run_here(flow_run_id))
        return found


class RunInput(BaseRunInput):
    """Fields a person fills in to resume a run. Any pydantic model does; this one can be given initial data."""

    @classmethod
    def receive(
        cls,
        timeout: float | None = 3600.0,
        poll_interval: float | None = None,
        raise_timeout_error: bool = False,
        exclude_keys: Iterable[str] = (),
        key_prefix: str | None = None,
        flow_run_id: str | None = None,
    ) -> Mailbox[Self]:
        """Return the inputs of this class sent to a run, those sent before it began to listen first.

        Args:
            timeout: seconds to wait for the next one; then it ends, or raises if ``raise_timeout_error``. None: for ever.
            poll_interval: does nothing here: inputs are heard of from the log. For flows written for Prefect.
            exclude_keys: of inputs to pass over (``metadata.key``).
            flow_run_id: default: the run the code is in.
        """
        from .pausing.mailbox import Mailbox, run_here

        del poll_interval
        form = InputForm(cls)

        def read(value: JsonValue, about: RunInputMetadata) -> Any:
            found = form.read(value)
            found._metadata = about
            return found

        return Mailbox(
            run_here(flow_run_id), key_prefix or _prefix(cls), timeout_s=timeout, raises=raise_timeout_error,
            exclude=exclude_keys, read=read,
        )  # fmt: skip

    @classmethod
    def subclass_from_base_model_type(cls, model_cls: type[BaseModel]) -> type[RunInput]:
        """Return an input that has the fields of a model."""
        return type(f"{model_cls.__name__}RunInput", (RunInput, model_cls), {})


class InputForm:
    """What ``wait_for_input=`` was given, as a form: its schema, and how an answer becomes a value.

    A pydantic model is filled in field by field; any other type has one field, ``value``.
    """

    def __init__(self, wanted: Any) -> None:
        self.is_model = isinstance(wanted, type) and issubclass(wanted, BaseModel)
        self._model: type[BaseModel] = (
            wanted
            if self.is_model
            else create_model(
                getattr(wanted, "__name__", "Input"),
                __config__=ConfigDict(arbitrary_types_allowed=True),
                value=(wanted, ...),
            )
        )

    @property
    def schema(self) -> JsonObject:
        """JSON schema of the answer; ``description`` is the text to show."""
        schema: JsonObject = self._model.model_json_schema()
        description = getattr(self._model, "_description", None)
        if isinstance(description, str):
            schema["description"] = description
        return schema

    def read(self, given: Any) -> Any:
        """Return the value an answer stands for.

        Raises:
            ParameterError: it does not fit.
        """
        try:
            answer = self._model.model_validate(
                dict(given or {}) if isinstance(given, Mapping | None) else given
            )
        except ValidationError as exc:
            raise ParameterError(f"this input does not fit the run: {exc}") from exc
        return answer if self.is_model else answer.value  # type: ignore[attr-defined]


class AutomaticRunInput(BaseRunInput, Generic[T]):
    """An input of a type that is no ``RunInput``, with where it came from."""

    value: T

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r}, sender={self._metadata.sender if self._metadata else None!r})"

    @classmethod
    def subclass_from_type(cls, _type: Any) -> type[AutomaticRunInput[Any]]:
        """Return the input that holds a value of a type."""
        made: Any = create_model(
            f"{_name_of(_type)}AutomaticRunInput", __base__=AutomaticRunInput, value=(_type, ...)
        )
        automatic: type[AutomaticRunInput[Any]] = made
        return automatic

    @classmethod
    def receive(cls, *args: Any, **kwargs: Any) -> Mailbox[Any]:
        """Return the values of this type sent to a run; the arguments are those of ``receive_input``."""
        return receive_input(cls.model_fields["value"].annotation, *args, **kwargs)

    @classmethod
    def _filled(cls, value: Any, keyset: Mapping[str, str], flow_run_id: object) -> Any:
        return super()._filled(value, keyset, flow_run_id).value


def run_input_subclass_from_type(_type: Any) -> type[BaseRunInput]:
    """Return the input for a type: a ``RunInput`` itself, one with the fields of a model, or one with a ``value``."""
    if isinstance(_type, type) and issubclass(_type, RunInput):
        return _type
    if isinstance(_type, type) and issubclass(_type, BaseModel):
        return RunInput.subclass_from_base_model_type(_type)
    return AutomaticRunInput.subclass_from_type(_type)


def send_input(
    run_input: Any, flow_run_id: object, sender: str | None = None, key_prefix: str | None = None
) -> Any:
    """Send anything that is JSON, or a model, to a run that receives its type; awaited in async code.

    Raises:
        UnknownName: there is no such run.
    """
    from .pausing.mailbox import send

    value, prefix = _packed(run_input)
    return send(str(flow_run_id), value, prefix=key_prefix or prefix, sender=sender)


async def asend_input(
    run_input: Any, flow_run_id: object, sender: str | None = None, key_prefix: str | None = None
) -> None:
    """Do what ``send_input`` does, in async code."""
    from .pausing.mailbox import send

    value, prefix = _packed(run_input)
    await send.aio(str(flow_run_id), value, prefix=key_prefix or prefix, sender=sender)


def receive_input(
    input_type: Any,
    timeout: float | None = 3600.0,
    poll_interval: float | None = None,
    raise_timeout_error: bool = False,
    exclude_keys: Iterable[str] = (),
    key_prefix: str | None = None,
    flow_run_id: str | None = None,
    with_metadata: bool = False,
) -> Mailbox[Any]:
    """Return the inputs of a type that are sent to a run; the arguments are those of ``RunInput.receive``.

    Args:
        input_type: a ``RunInput``, a model, or any type such as ``int`` or ``list[str]``.
        with_metadata: give ``AutomaticRunInput``: with ``value``, ``metadata`` and ``respond``. A ``RunInput`` has these.
    """
    from .pausing.mailbox import Mailbox, run_here

    if isinstance(input_type, type) and issubclass(input_type, RunInput):
        return input_type.receive(
            timeout=timeout, raise_timeout_error=raise_timeout_error, exclude_keys=exclude_keys, key_prefix=key_prefix,
            flow_run_id=flow_run_id,
        )  # fmt: skip
    del poll_interval
    form = InputForm(input_type)

    def read(value: JsonValue, about: RunInputMetadata) -> Any:
        found = form.read(value if form.is_model else {"value": value})
        if not with_metadata:
            return found
        if isinstance(found, BaseModel):
            automatic: Any = AutomaticRunInput.model_construct(value=found)
        else:
            automatic = AutomaticRunInput.subclass_from_type(input_type)(value=found)
        automatic._metadata = about
        return automatic

    return Mailbox(
        run_here(flow_run_id), key_prefix or _prefix(input_type), timeout_s=timeout, raises=raise_timeout_error,
        exclude=exclude_keys, read=read,
    )  # fmt: skip


def _name_of(input_type: Any) -> str:
    """Return ``list`` for ``list[str]``, so that any list fits."""
    name = getattr(input_type, "__name__", None) or getattr(input_type, "_name", None) or str(input_type)
    return str(name).lower()


def _prefix(input_type: Any) -> str:
    """Return what inputs of a type are sent under."""
    return f"{_name_of(input_type)}-auto"


def _packed(run_input: Any) -> tuple[JsonValue, str]:
    """Return what is sent of an input, and under which prefix: of an automatic one its value, as if that were sent."""
    from pydantic_core import to_jsonable_python

    value = run_input.value if isinstance(run_input, AutomaticRunInput) else run_input
    plain: JsonValue = to_jsonable_python(value)
    return plain, _prefix(type(value))


def _run_of(metadata: RunInputMetadata) -> str:
    from .pausing.mailbox import run_of_sender

    run_id = run_of_sender(metadata.sender)
    if run_id is None:
        raise MissingContextError(
            "Cannot respond to an input that was not sent by a flow run: "
            f"its sender is {metadata.sender or 'nobody who said so'}"
        )
    return run_id
