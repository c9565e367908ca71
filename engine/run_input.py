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
from ..vocabulary import JsonObject, JsonValue
from .input_metadata import RunInputMetadata

if TYPE_CHECKING:
    from .mailbox import Mailbox

__all__ = [
    "AutomaticRunInput", "InputForm", "RunInput", "RunInputMetadata", "asend_input", "receive_input", "send_input",
]  # fmt: skip

T = TypeVar("T")


class RunInput(BaseModel):
    """Fields a person fills in to resume a run. Any pydantic model does; this one can be given initial data."""

    model_config = ConfigDict(extra="forbid")

    _description: ClassVar[str | None] = None
    _metadata: RunInputMetadata | None = PrivateAttr(None)

    @property
    def metadata(self) -> RunInputMetadata:
        """Where it came from. Raises ``MissingContextError`` for one that was not received."""
        return _metadata_of(self._metadata)

    def send_to(self, flow_run_id: str, sender: str | None = None, key_prefix: str | None = None) -> Any:
        """Send it to a run; awaited in async code.

        Args:
            sender: default: the run the code is in.
            key_prefix: what the receiver listens to; default: the name of the class.
        Raises:
            UnknownName: there is no such run.
        """
        from .mailbox import send

        return send(flow_run_id, _plain(self), prefix=key_prefix or _prefix(type(self)), sender=sender)

    def respond(self, run_input: Any, sender: str | None = None, key_prefix: str | None = None) -> Any:
        """Send an input to the run that sent this one; awaited in async code.

        Raises:
            MissingContextError: it was not sent by a run.
        """
        return send_input(run_input, _run_of(self.metadata), sender=sender, key_prefix=key_prefix)

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
        from .mailbox import Mailbox, run_here

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
    def with_initial_data(cls, description: str | None = None, **initial: Any) -> type[Self]:
        """Return a form like this one with values filled in, and a text to show above it."""
        fields: dict[str, Any] = {
            name: (cls.model_fields[name].annotation, value) for name, value in initial.items()
        }
        made: Any = create_model(cls.__name__, __base__=cls, **fields)
        made._description = description
        filled: type[Self] = made
        return filled


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


class AutomaticRunInput(Generic[T]):
    """An input of a type that is no ``RunInput``, with where it came from."""

    def __init__(self, value: T, metadata: RunInputMetadata) -> None:
        self.value, self.metadata = value, metadata

    def respond(self, run_input: Any, sender: str | None = None, key_prefix: str | None = None) -> Any:
        """Send an input to the run that sent this one; awaited in async code. Raises ``MissingContextError``."""
        return send_input(run_input, _run_of(self.metadata), sender=sender, key_prefix=key_prefix)

    def __repr__(self) -> str:
        return f"AutomaticRunInput({self.value!r}, sender={self.metadata.sender!r})"


def send_input(
    run_input: Any, flow_run_id: str, sender: str | None = None, key_prefix: str | None = None
) -> Any:
    """Send anything that is JSON, or a model, to a run that receives its type; awaited in async code.

    Raises:
        UnknownName: there is no such run.
    """
    from .mailbox import send

    return send(
        str(flow_run_id), _plain(run_input), prefix=key_prefix or _prefix(type(run_input)), sender=sender
    )


async def asend_input(
    run_input: Any, flow_run_id: str, sender: str | None = None, key_prefix: str | None = None
) -> None:
    """Do what ``send_input`` does, in async code."""
    from .mailbox import send

    prefix = key_prefix or _prefix(type(run_input))
    await send.aio(str(flow_run_id), _plain(run_input), prefix=prefix, sender=sender)


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
    from .mailbox import Mailbox, run_here

    if isinstance(input_type, type) and issubclass(input_type, RunInput):
        return input_type.receive(
            timeout=timeout, raise_timeout_error=raise_timeout_error, exclude_keys=exclude_keys, key_prefix=key_prefix,
            flow_run_id=flow_run_id,
        )  # fmt: skip
    del poll_interval
    form = InputForm(input_type)

    def read(value: JsonValue, about: RunInputMetadata) -> Any:
        found = form.read(value if form.is_model else {"value": value})
        return AutomaticRunInput(found, about) if with_metadata else found

    return Mailbox(
        run_here(flow_run_id), key_prefix or _prefix(input_type), timeout_s=timeout, raises=raise_timeout_error,
        exclude=exclude_keys, read=read,
    )  # fmt: skip


BaseRunInput = RunInput


def _prefix(input_type: Any) -> str:
    """Return what inputs of a type are sent under: ``list`` for ``list[str]``, so that any list fits."""
    name = getattr(input_type, "__name__", None) or getattr(input_type, "_name", None) or str(input_type)
    return f"{name.lower()}-auto"


def _plain(value: Any) -> JsonValue:
    from pydantic_core import to_jsonable_python

    plain: JsonValue = to_jsonable_python(value)
    return plain


def _metadata_of(metadata: RunInputMetadata | None) -> RunInputMetadata:
    if metadata is None:
        raise MissingContextError("this input was not received, so it has no sender")
    return metadata


def _run_of(metadata: RunInputMetadata) -> str:
    kind, slash, run_id = (metadata.sender or "").partition("/")
    if kind != "flow-run" or not slash:
        raise MissingContextError(
            "Cannot respond to an input that was not sent by a flow run: "
            f"its sender is {metadata.sender or 'nobody who said so'}"
        )
    return run_id
