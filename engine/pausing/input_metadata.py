"""Who sent an input of a run, and under which key."""

from __future__ import annotations

from dataclasses import dataclass

from ...vocabulary import FlowRunId

__all__ = ["RunInputMetadata"]


@dataclass(frozen=True, slots=True)
class RunInputMetadata:
    """About an input that was received.

    Attributes:
        sender: who sent it: ``prefect.flow-run.<id>`` for a run, else what the sender called itself; None if it did not say.
        receiver: the run it was sent to.
    """

    key: str
    sender: str | None = None
    receiver: FlowRunId | None = None
