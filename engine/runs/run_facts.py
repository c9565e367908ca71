"""Facts of a task run that follow from its state and its times, by the names that hooks written for Prefect read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..states import State

__all__ = ["RunFacts"]


class RunFacts(ABC):
    """What a task run, going on or over, is asked for beside its state."""

    flow_run_id: str | None
    state: State | None

    @property
    @abstractmethod
    def started_at(self) -> datetime | None:
        """When its first try began."""

    @property
    def state_id(self) -> str | None:
        return self.state.id if self.state else None

    @property
    def created(self) -> datetime | None:
        """When it began, as far as is known here; None: it has not."""
        return self.started_at

    expected_start_time = created

    @property
    def updated(self) -> datetime | None:
        """When it came to its present state."""
        return self.state.timestamp if self.state else None

    @property
    def end_time(self) -> datetime | None:
        """When it ended; None: it has not."""
        return self.state.timestamp if self.state is not None and self.state.is_final() else None

    @property
    def next_scheduled_start_time(self) -> datetime | None:
        """When it is to be tried again; None where it does not wait for that."""
        return (
            self.state.state_details.scheduled_time
            if self.state is not None and self.state.is_scheduled()
            else None
        )

    @property
    def total_run_time(self) -> timedelta:
        """From its first try to its end, or to now."""
        began = self.started_at
        return timedelta(0) if began is None else (self.end_time or datetime.now(UTC)) - began

    @property
    def estimated_run_time(self) -> timedelta:
        return self.total_run_time

    @property
    def estimated_start_time_delta(self) -> timedelta:
        return timedelta(0)

    @property
    def cache_key(self) -> str | None:
        return self.state.state_details.cache_key if self.state is not None else None

    @property
    def cache_expiration(self) -> None:
        """Not known of a run: how long what is cached holds, its task says."""
        return

    @property
    def labels(self) -> dict[str, str]:
        return {} if self.flow_run_id is None else {"prefect.flow-run.id": self.flow_run_id}

    @property
    def flow_run_run_count(self) -> int:
        """Which attempt its flow run is at, from 1; 0 outside of its flow run."""
        from ..context import FlowRunContext

        here = FlowRunContext.get()
        return here.flow_run.attempt if here is not None and here.flow_run.id == self.flow_run_id else 0
