"""The errors that code may well make itself, in the forms that are published for them; the rest of the tree is in ``errors.py``.

What Prefect's API answered is the first argument of some. Our own errors of those kinds are made in another way, and are caught
under the same names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "DefinitionError", "HarkError", "InputRefused", "MissingFlowError", "MissingResult", "NotPausedError", "ObjectAlreadyExists",
    "ObjectNotFound", "ParameterBindError", "ParameterError", "ParameterTypeError",
    "ReservedArgumentError", "SignatureMismatchError",
]  # fmt: skip


def _made(kind: type[HarkError], args: tuple[object, ...], facts: dict[str, object]) -> HarkError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class HarkError(Exception):
    """Base of every error raised by Hark. ``hint`` says what to do next, or is empty."""

    hint: str = ""

    def __init__(self, *args: object, hint: str = "") -> None:
        super().__init__(*args)
        if hint:
            self.hint = hint
            self.add_note(f"→ {hint}")  # tracebacks show it, too

    def __reduce__(self) -> tuple[Any, ...]:
        # Not made anew: what the makers of its kinds take is not what is left in its args.
        return _made, (type(self), self.args, self.__dict__)


class DefinitionError(HarkError):
    """Something that was written down (flow, rule, YAML, settings) is wrong."""


class ParameterError(DefinitionError):
    """A flow or task was called with parameters it does not take."""


class InputRefused(ParameterError, RuntimeError):
    """What a paused run was to be resumed with is not what it asked for."""


class ParameterBindError(ParameterError, TypeError):
    """The arguments of a call do not fit the function: one is missing, unknown, or given twice."""

    @classmethod
    def from_bind_failure(
        cls, fn: Callable[..., Any], exc: TypeError, call_args: Sequence[Any], call_kwargs: Mapping[str, Any]
    ) -> Self:
        """Return the error of a call that ``inspect.signature(fn).bind`` has refused."""
        taken = str(inspect.signature(fn)).strip("()")
        return cls(
            f"Error binding parameters for function '{fn.__name__}': {exc}.\n"
            f"Function '{fn.__name__}' has signature '{taken}' but received args: {call_args} and kwargs: {list(call_kwargs)}."
        )


class ParameterTypeError(ParameterError):
    """Parameters do not fit the type hints; the message names each with its value and what is wrong."""

    @classmethod
    def from_validation_error(cls, exc: ValidationError) -> Self:
        """Return the error that says what pydantic has found."""
        found = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors()]
        return cls("Flow run received invalid parameters:\n - " + "\n - ".join(found))


class SignatureMismatchError(ParameterError, TypeError):
    """Parameters given by name are missing, or are none of the function's."""

    @classmethod
    def from_bad_params(cls, expected_params: list[str], provided_params: list[str]) -> Self:
        """Return the error of a call with other parameters than the function has."""
        return cls(
            f"Function expects parameters {expected_params} but was provided with parameters {provided_params}"
        )


class ReservedArgumentError(DefinitionError, TypeError):
    """A function has a parameter with a name that calls of flows and tasks keep for themselves."""


class ObjectNotFound(DefinitionError):
    """Something asked for does not exist. Ours are ``UnknownName``."""

    http_exc: Exception | None = None
    help_message: str | None = None

    def __init__(self, http_exc: Exception, help_message: str | None = None, *args: object) -> None:
        super().__init__(help_message, *args)
        self.http_exc, self.help_message = http_exc, help_message


class ObjectAlreadyExists(HarkError):
    """Something of this name is there already. Ours are ``AlreadyExists``."""

    http_exc: Exception | None = None

    def __init__(self, http_exc: Exception, *args: object) -> None:
        super().__init__(*args)
        self.http_exc = http_exc


class MissingFlowError(DefinitionError):
    """A file or module has no flow of the name asked for, which are ``MissingFlow``; or what has that name is no flow."""


class MissingResult(HarkError):
    """A result is not there to be read. Ours are ``ResultMissing``."""


class NotPausedError(HarkError):
    """A run that is not paused was to be resumed. Ours are ``NotPaused``."""
