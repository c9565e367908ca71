"""Functions and their parameters: binding calls, calling by names, schemas. For code written for Prefect.

Calls of flows and tasks themselves go through ``parameters.CallShape``, which works a signature out once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from ...errors import (
    MappingLengthMismatch,
    MappingMissingIterable,
    ParameterBindError,
    SignatureMismatchError,
)
from ..annotations import allow_failure, quote, unmapped
from ..calls.docstring import parameter_descriptions
from ..calls.parameters import CallShape, type_hints
from .iterables import isiterable

__all__ = [
    "ParameterSchema", "call_with_parameters", "cloudpickle_wrapped_call", "collapse_variadic_parameters",
    "expand_mapping_parameters", "explode_variadic_parameter", "generate_parameter_schema", "get_call_parameters",
    "get_parameter_defaults", "parameter_docstrings", "parameter_schema", "parameter_schema_from_entrypoint",
    "parameters_to_args_kwargs", "raise_for_reserved_arguments",
]  # fmt: skip

R = TypeVar("R")
_P = inspect.Parameter
parameter_docstrings = parameter_descriptions


def get_call_parameters(
    fn: Callable[..., Any],
    call_args: tuple[Any, ...],
    call_kwargs: Mapping[str, Any],
    apply_defaults: bool = True,
) -> dict[str, Any]:
    """Return the value of each parameter of a call by name, in the order of the signature, with defaults unless told not to.

    Raises:
        ParameterBindError: the arguments do not fit the function.
    """
    signature = inspect.signature(fn)
    try:
        bound = signature.bind(*call_args, **call_kwargs)
    except TypeError as exc:
        name = getattr(fn, "__name__", repr(fn))
        raise ParameterBindError(
            f"Error binding parameters for function {name!r}: {exc}; it takes {signature}, and was given "
            f"{call_args} and {list(call_kwargs)} by name"
        ) from exc
    if apply_defaults:
        bound.apply_defaults()
    return {name: _plain_default(value) for name, value in bound.arguments.items()}


def _plain_default(value: Any) -> Any:
    return value.default if isinstance(value, FieldInfo) else value


def get_parameter_defaults(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a function's parameters, by name."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(fn).parameters.items()
        if parameter.default is not _P.empty
    }


def parameters_to_args_kwargs(
    fn: Callable[..., Any], parameters: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how to call a function with parameters by name. Those that have a default are given by name.

    Raises:
        SignatureMismatchError: the function has no parameter of a name.
        TypeError: what is in ``**kwargs`` is the name of another parameter, too.
    """
    known = inspect.signature(fn).parameters
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise SignatureMismatchError(
            f"Function expects parameters {list(known)} but was provided with parameters {list(parameters)}"
        )
    takes_any = any(p.kind is _P.VAR_POSITIONAL for p in known.values())
    slots = _positions(fn, known)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_position = True
    position = 0
    for name, parameter in known.items():
        if parameter.kind is _P.POSITIONAL_OR_KEYWORD:
            position += 1
        if name not in parameters:
            # What comes after a gap can only be given by name.
            by_position = by_position and parameter.kind in (_P.VAR_POSITIONAL, _P.VAR_KEYWORD)
            continue
        value = parameters[name]
        if parameter.kind is _P.VAR_POSITIONAL:
            args.extend(value)
        elif parameter.kind is _P.VAR_KEYWORD:
            twice = sorted(
                word
                for word in value
                if word in parameters and word != name and known[word].kind is not _P.POSITIONAL_ONLY
            )
            if twice:
                raise TypeError(
                    f"{getattr(fn, '__name__', fn)}() got multiple values for argument(s): {', '.join(twice)}"
                )
            kwargs.update(value)
        elif parameter.kind is _P.POSITIONAL_ONLY or (
            parameter.kind is _P.POSITIONAL_OR_KEYWORD
            and by_position
            and (takes_any or (slots is None and parameter.default is _P.empty) or position <= (slots or 0))
        ):
            args.append(value)
        else:
            kwargs[name] = value
    return tuple(args), kwargs


def _positions(fn: Callable[..., Any], known: Mapping[str, inspect.Parameter]) -> int | None:
    """Return how many of its parameters a decorated function takes by position, whatever it shows; None: as it shows."""
    wrapped = hasattr(fn, "__wrapped__") or hasattr(getattr(fn, "func", None), "__wrapped__")
    if not wrapped:
        return None
    real = inspect.signature(fn, follow_wrapped=False).parameters.values()
    kinds = {p.kind for p in real}
    if _P.VAR_POSITIONAL in kinds or not kinds & {_P.VAR_KEYWORD, _P.KEYWORD_ONLY}:
        return len(known)
    only = sum(p.kind is _P.POSITIONAL_ONLY for p in known.values())
    return max(0, sum(p.kind in (_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD) for p in real) - only)


def call_with_parameters(fn: Callable[..., R], parameters: Mapping[str, Any]) -> R:
    """Call a function with parameters by name; raises what ``parameters_to_args_kwargs`` raises, and what the function does."""
    args, kwargs = parameters_to_args_kwargs(fn, parameters)
    return fn(*args, **kwargs)


def cloudpickle_wrapped_call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[[], bytes]:
    """Return a call as something that Python's own pickle takes, giving the cloudpickle of what the call returns."""
    from ..writing import pickled

    return _PickledCall(pickled((fn, args, kwargs)))


class _PickledCall:
    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def __call__(self) -> bytes:
        from ..writing import pickled, unpickled

        fn, args, kwargs = unpickled(self.packed)
        return pickled(fn(*args, **kwargs))


# --- **kwargs -----------------------------------------------------------------------------------------


def explode_variadic_parameter(fn: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with what is in the function's ``**kwargs`` beside the others."""
    varkw = _varkw(fn)
    if varkw is None:
        return parameters
    rest = {name: value for name, value in parameters.items() if name != varkw}
    return {**rest, **parameters.get(varkw, {})}


def collapse_variadic_parameters(fn: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with those that the function does not name in its ``**kwargs``.

    Raises:
        ValueError: there are such, and it has no ``**kwargs``.
    """
    known = inspect.signature(fn).parameters
    extra = {name: value for name, value in parameters.items() if name not in known}
    if not extra:
        return parameters
    varkw = _varkw(fn)
    if varkw is None:
        raise ValueError(
            f"{fn} takes no {', '.join(sorted(extra))}: its signature has no variadic keyword argument"
        )
    return {**{name: value for name, value in parameters.items() if name in known}, varkw: extra}


def _varkw(fn: Callable[..., Any]) -> str | None:
    return CallShape(fn, label=repr(fn), reserved=()).varkw


def raise_for_reserved_arguments(fn: Callable[..., Any], reserved_arguments: Iterable[str]) -> None:
    """Raise ``ReservedArgumentError`` if a parameter has one of the names."""
    CallShape(fn, label=repr(fn), reserved=reserved_arguments)


def expand_mapping_parameters(func: Callable[..., Any], parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each call, where every iterable parameter gives one value to each.

    Raises:
        MappingMissingIterable, MappingLengthMismatch: there is no iterable, or they differ in length.
    """
    given = explode_variadic_parameter(func, parameters)
    each: dict[str, list[Any]] = {}
    whole: dict[str, Any] = {}
    for name, value in given.items():
        inner = value.unwrap() if isinstance(value, allow_failure | quote) else value
        if isinstance(inner, unmapped):
            whole[name] = inner.value
        elif isiterable(inner):
            each[name] = [value.rewrap(item) if inner is not value else item for item in inner]
        else:
            whole[name] = value
    if not each:
        raise MappingMissingIterable(
            f"No iterable parameters were received: there is nothing to map {getattr(func, '__name__', func)} over"
        )
    lengths = {name: len(values) for name, values in each.items()}
    if len(set(lengths.values())) > 1:
        raise MappingLengthMismatch(f"Received iterable parameters with different lengths: {lengths}")
    defaults = get_parameter_defaults(func)
    return [
        collapse_variadic_parameters(
            func, {**{name: values[i] for name, values in each.items()}, **whole, **_missing(defaults, given)}
        )
        for i in range(next(iter(lengths.values())))
    ]


def _missing(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if name not in given}


# --- schemas ------------------------------------------------------------------------------------------


class ParameterSchema(BaseModel):
    """What a function takes, as an OpenAPI schema."""

    title: str = "Parameters"
    type: str = "object"
    properties: dict[str, Any] = Field(default_factory=dict)
    required: list[str] = Field(default_factory=list)
    definitions: dict[str, Any] = Field(default_factory=dict)

    def model_dump_for_openapi(self) -> dict[str, Any]:
        """Return it as a dict; where nothing is required, nothing is said of that."""
        said = self.model_dump(exclude_none=True)
        if not self.required:
            del said["required"]
        return said


def parameter_schema(fn: Callable[..., Any]) -> ParameterSchema:
    """Return what a function takes: types, defaults, which are required, in which order, and what its docstring says of them."""
    hints = type_hints(fn)
    signature = inspect.signature(fn)
    hinted = [
        parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in signature.parameters.items()
    ]
    return generate_parameter_schema(
        signature.replace(parameters=hinted), parameter_descriptions(inspect.getdoc(fn))
    )


def generate_parameter_schema(signature: inspect.Signature, docstrings: Mapping[str, str]) -> ParameterSchema:
    """Return the schema of a signature; ``docstrings`` describe parameters by name.

    A type that has no schema takes anything.
    """
    from ..calls.parameter_form import schema_of_signature

    return ParameterSchema(**schema_of_signature(signature, docstrings))


def parameter_schema_from_entrypoint(entrypoint: str) -> ParameterSchema:
    """Return what the function takes that ``path/file.py:function`` or ``package.module.function`` names.

    Raises:
        DefinitionError: there is no such file or function. ScriptFailed: the file raises when it is imported.
    """
    from ..flows import load_flow_from_entrypoint

    return parameter_schema(load_flow_from_entrypoint(entrypoint).fn)
