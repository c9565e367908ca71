"""Errors of flows and tasks by the names a Prefect user knows; the errors themselves are those of ``hark.errors``."""

from __future__ import annotations

from ..error_forms import MissingFlowError, MissingResult, NotPausedError, ObjectAlreadyExists, ObjectNotFound
from ..errors import (
    DefinitionError,
    EventTooLarge,
    FlowFailed,
    HarkError,
    HashError,
    InvalidNameError,
    LimitError,
    MappingLengthMismatch,
    MappingMissingIterable,
    MissingContextError,
    NotSerializable,
    ParameterBindError,
    ParameterTypeError,
    PauseTimedOut,
    RefusedError,
    ReservedArgumentError,
    RunCancelled,
    RunCrashed,
    RunPaused,
    RunUnfinished,
    RunWaitTimedOut,
    ScriptFailed,
    SignatureMismatchError,
    UpstreamFailed,
)
from .signals import Abort, Skip

__all__ = [
    "Abort", "BlockMissingCapabilities", "CancelledRun", "ConfigurationError", "CrashedRun", "EventTooLarge", "FailedRun",
    "FlowPauseTimeout", "FlowRunWaitTimeout", "HashError", "InfrastructureError", "InfrastructureNotAvailable",
    "InfrastructureNotFound", "InvalidNameError", "InvalidRepositoryURLError", "MappingLengthMismatch",
    "MappingMissingIterable", "MissingContextError", "MissingFlowError", "MissingResult", "NotPausedError",
    "ObjectAlreadyExists", "ObjectLimitReached", "ObjectNotFound", "ObjectUnsupported", "ParameterBindError",
    "ParameterTypeError", "PausedRun", "PrefectException", "ProtectedBlockError", "ReservedArgumentError", "ScriptError",
    "SerializationError", "SignatureMismatchError", "Skip", "UnfinishedRun", "UnspecifiedFlowError", "UpstreamTaskError",
]  # fmt: skip

PrefectException = HarkError
CancelledRun = RunCancelled
CrashedRun = RunCrashed
FailedRun = FlowFailed
PausedRun = RunPaused
UnfinishedRun = RunUnfinished
UpstreamTaskError = UpstreamFailed
FlowPauseTimeout = PauseTimedOut
FlowRunWaitTimeout = RunWaitTimedOut
ScriptError = ScriptFailed
SerializationError = NotSerializable

# Kinds that are not told apart here: who catches them catches what stands for them.
UnspecifiedFlowError = ConfigurationError = InvalidRepositoryURLError = DefinitionError
ObjectUnsupported = ProtectedBlockError = BlockMissingCapabilities = RefusedError
ObjectLimitReached = LimitError
InfrastructureError = InfrastructureNotAvailable = RunCrashed
InfrastructureNotFound = DefinitionError
