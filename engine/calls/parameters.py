"""Parameters: from the arguments of a call to a mapping by name, checked and coerced by pydantic for flows."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from ...errors import ParameterBindError, ParameterTypeError, ReservedArgumentError, SignatureMismatchError
from ...vocabulary import JsonObject
from .docstring import parameter_descriptions

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..flows import Flow
    from ..runs.run import FlowRun

__all__ = [
    "MAX_PARAMETER_BYTES",
    "RESERVED",
    "CallShape",
    "parameters_json",
    "recorded_parameters",
    "type_hints",
]

RESERVED = frozenset({"return_state", "wait_for"})
"""Words a call of a flow or task takes for itself."""

MAX_PARAMETER_BYTES = 512 * 1024
"""Parameters larger than this are told by their size in the log, not by their value."""

_P = inspect.Parameter


class CallShape:
    """What a function takes, worked out once, so that binding the arguments of a call is quick."""

    __slots__ = (
        "_defaults",
        "_fn",
        "_label",
        "_model",
        "_names",
        "is_simple",
        "signature",
        "varkw",
        "varpos",
    )

    def __init__(self, fn: Callable[..., Any], *, label: str, reserved: Iterable[str] = RESERVED) -> None:
        """Read the signature of ``fn``; ``label`` (``flow 'etl'``) begins the messages of errors.

        Raises:
            ReservedArgumentError: a parameter has a name that calls keep for themselves.
        """
        self._fn = fn
        self._label = label
        self.signature = inspect.signature(fn)
        parameters = self.signature.parameters
        taken = sorted(parameters.keys() & set(reserved))
        if taken:
            raise ReservedArgumentError(
                f"{taken[0]!r} is a reserved argument name and cannot be used: calls of {label} keep it for themselves",
                hint="give the parameter another name",
            )
        self.varpos = next((p.name for p in parameters.values() if p.kind is _P.VAR_POSITIONAL), None)
        self.varkw = next((p.name for p in parameters.values() if p.kind is _P.VAR_KEYWORD), None)
        self._names = tuple(parameters)
        self._defaults = {p.name: p.default for p in parameters.values() if p.default is not _P.empty}
        self.is_simple = all(p.kind is _P.POSITIONAL_OR_KEYWORD for p in parameters.values())
        self._model: type[BaseModel] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in order."""
        return self._names

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each parameter by name, defaults filled in, in the order of the signature.

        Raises:
            ParameterBindError: an argument is missing, unknown, given twice, or there are too many.
        """
        if self.is_simple:
            names = self._names
            if not kwargs and len(args) == len(names):
                return dict(zip(names, args, strict=True))
            if len(args) <= len(names):
                bound = dict(zip(names, args, strict=False))
                for name, value in kwargs.items():
                    if name in bound or name not in names:
                        break
                    bound[name] = value
                else:
                    if len(bound) == len(names):
                        return bound
                    bound = {**self._defaults, **bound}
                    if len(bound) == len(names):
                        return {name: bound[name] for name in names}
        try:
            found = self.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise self._unbound(exc) from exc
        found.apply_defaults()
        return dict(found.arguments)

    def bind_given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given arguments by name, without defaults; see ``bind``."""
        try:
            return dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError as exc:
            raise self._unbound(exc) from exc

    def _unbound(self, exc: TypeError) -> ParameterBindError:
        name = getattr(self._fn, "__name__", self._label)
        return ParameterBindError(
            f"Error binding parameters for function {name!r}: {exc} ({self._label})",
            hint=f"it takes {self.signature}",
        )

    def with_defaults(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters with the defaults of those that are not among them."""
        filled = {**self._defaults, **parameters}
        return {name: filled[name] for name in self._names if name in filled}

    def spread(self, parameters: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments with which to call the function."""
        if self.is_simple:
            return (), dict(parameters)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        seen_varpos = False
        for name, parameter in self.signature.parameters.items():
            if name not in parameters:
                continue
            match parameter.kind:
                case _P.VAR_POSITIONAL:
                    args.extend(parameters[name])
                    seen_varpos = True
                case _P.VAR_KEYWORD:
                    kwargs.update(parameters[name])
                case _P.KEYWORD_ONLY:
                    kwargs[name] = parameters[name]
                case _ if seen_varpos:
                    kwargs[name] = parameters[name]
                case _:
                    args.append(parameters[name])
        return tuple(args), kwargs

    def from_mapping(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return bound parameters from names and values, as a deployment or a form gives them.

        Raises:
            SignatureMismatchError: one is unknown.
            ParameterTypeError: one is missing.
        """
        names = set(self._names)
        if self.varkw is None:
            unknown = [name for name in given if name not in names]
            if unknown:
                raise SignatureMismatchError(
                    f"Function expects parameters {list(self._names)} but was provided with parameters {list(given)}: "
                    f"{self._label} takes no parameter {unknown[0]!r}",
                    hint=f"it takes {', '.join(self._names) or 'none'}",
                )
        bound = {**self._defaults, **{k: v for k, v in given.items() if k in names}}
        if self.varpos is not None:
            bound.setdefault(self.varpos, ())
        if self.varkw is not None:
            extra = {k: v for k, v in given.items() if k not in names}
            bound[self.varkw] = {**bound.get(self.varkw, {}), **extra}
        missing = [name for name in self._names if name not in bound]
        if missing:
            raise ParameterTypeError(
                f"Flow run received invalid parameters: {self._label} needs the parameter{'s' if len(missing) > 1 else ''} "
                f"{', '.join(repr(name) for name in missing)}",
                hint=f"it takes {self.signature}",
            )
        return {name: bound[name] for name in self._names}

    def validate(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters checked against the type hints and coerced to them.

        Raises:
            ParameterTypeError: some do not fit; the message names each with its value and what is wrong.
        """
        from pydantic import ValidationError

        model = self._model
        if model is None:
            model = self._model = self._build_model()
        try:
            checked = model.model_validate(dict(parameters))
        except ValidationError as exc:
            lines = [
                f"{'.'.join(str(p) for p in error['loc'])}: {error['msg']} (got {_short(error.get('input'))})"
                for error in exc.errors(include_url=False)
            ]
            raise ParameterTypeError(
                f"Flow run received invalid parameters, which do not fit {self._label}: {'; '.join(lines)}"
            ) from exc
        found = {name: getattr(checked, f"p{i}") for i, name in enumerate(self._names)}
        if self.varpos is not None:  # as in Prefect, where code reads the parameters of its run
            found[self.varpos] = list(found[self.varpos])
        return found

    def json_schema(self) -> JsonObject:
        """Return the JSON schema of the parameters, for forms and for checking a deployment before it runs."""
        if self._model is None:
            self._model = self._build_model()
        schema = self._model.model_json_schema(by_alias=True)
        described = parameter_descriptions(inspect.getdoc(self._fn))
        for position, name in enumerate(self._names):
            about = schema.get("properties", {}).get(name)
            if about is not None:
                # For forms: what to call it, where to show it, what it is for.
                about.update(title=name, position=position)
                if name in described:
                    about.setdefault("description", described[name])
        return schema

    def _build_model(self) -> type[BaseModel]:
        from pydantic import ConfigDict, Field, create_model
        from pydantic.fields import FieldInfo

        hints = type_hints(self._fn)
        fields: dict[str, Any] = {}
        # The fields are called p0, p1, …: a parameter may be called `json`, `copy` or `_x`, which a model cannot take.
        for i, (name, parameter) in enumerate(self.signature.parameters.items()):
            hint: Any = hints.get(name, Any)
            default: Any = ... if parameter.default is _P.empty else parameter.default
            if parameter.kind is _P.VAR_POSITIONAL:
                hint, default = tuple.__class_getitem__((hint, ...)), ()
            elif parameter.kind is _P.VAR_KEYWORD:
                hint, default = dict.__class_getitem__((str, hint)), {}
            if isinstance(default, FieldInfo):
                default.alias = default.validation_alias = default.serialization_alias = name
                fields[f"p{i}"] = (hint, default)
            else:
                fields[f"p{i}"] = (hint, Field(default, alias=name))
        config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())
        return create_model("Parameters", __config__=config, **fields)


def recorded_parameters(flow: Flow[..., Any], run: FlowRun) -> dict[str, Any]:
    """Return the parameters of a run as its flow takes them; as they are recorded where they do not fit."""
    try:
        given = flow.shape.from_mapping(run.parameters)
        return flow.shape.validate(given) if flow.should_validate_parameters else given
    except Exception:
        # Which may be what the run ended of; or the code has changed since.
        return dict(run.parameters)


def parameters_json(parameters: Mapping[str, Any]) -> JsonObject:
    """Return parameters as JSON for the log: what is no JSON by its ``repr``, what is too large by its size."""
    try:
        raw = orjson.dumps(dict(parameters), default=_json_form, option=_LOG_OPTIONS)
        if len(raw) <= MAX_PARAMETER_BYTES:
            value: JsonObject = orjson.loads(raw)
            return value
    except (TypeError, RecursionError):
        pass
    return {name: _one_json(value) for name, value in parameters.items()}


_LOG_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


def _one_json(value: Any) -> Any:
    try:
        raw = orjson.dumps(value, default=_json_form, option=_LOG_OPTIONS)
    except (TypeError, RecursionError):
        return _short(value)
    if len(raw) > 16_384:
        return f"<{type(value).__qualname__}, {len(raw)} bytes as JSON>"
    return orjson.loads(raw)


def _json_form(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None and not isinstance(value, type):
        return dump(mode="json")
    if isinstance(value, set | frozenset):
        return list(value)
    return _short(value)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a broken __repr__ must not hide the error it is shown in
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 200 else text[:197] + "..."


def type_hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a function by parameter; Any for one that names what is not there."""
    try:
        return typing.get_type_hints(fn, include_extras=True)
    except Exception:
        # A hint that names something unknown (an import under TYPE_CHECKING) checks nothing; the others still do.
        raw = getattr(fn, "__annotations__", {})
        scope = getattr(inspect.unwrap(fn), "__globals__", {})
        hints: dict[str, Any] = {}
        for name, hint in raw.items():
            if not isinstance(hint, str):
                hints[name] = hint
                continue
            probe = type("probe", (), {"__annotations__": {name: hint}})
            try:
                hints.update(typing.get_type_hints(probe, globalns=scope, include_extras=True))
            except Exception:
                hints[name] = Any
        return hints
