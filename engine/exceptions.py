"""Errors of flows and tasks by the names a Prefect user knows; the errors themselves are those of ``hark.errors``."""

from __future__ import annotations

from ..errors import (
    FlowFailed,
    HarkError,
    HashError,
    InvalidNameError,
    MappingLengthMismatch,
    MappingMissingIterable,
    MissingContextError,
    ParameterBindError,
    ParameterTypeError,
    PauseTimedOut,
    ReservedArgumentError,
    ResultMissing,
    RunCancelled,
    RunCrashed,
    RunPaused,
    RunUnfinished,
    SignatureMismatchError,
    UnknownName,
    UpstreamFailed,
)
from .signals import Abort, Skip

__all__ = [
    "Abort", "CancelledRun", "CrashedRun", "FailedRun", "FlowPauseTimeout", "HashError", "InvalidNameError",
    "MappingLengthMismatch", "MappingMissingIterable", "MissingContextError", "MissingResult", "ObjectNotFound",
    "ParameterBindError", "ParameterTypeError", "PausedRun", "PrefectException", "ReservedArgumentError",
    "SignatureMismatchError", "Skip", "UnfinishedRun", "UpstreamTaskError",
]  # fmt: skip

PrefectException = HarkError
CancelledRun = RunCancelled
CrashedRun = RunCrashed
FailedRun = FlowFailed
PausedRun = RunPaused
UnfinishedRun = RunUnfinished
MissingResult = ResultMissing
UpstreamTaskError = UpstreamFailed
FlowPauseTimeout = PauseTimedOut
ObjectNotFound = UnknownName
