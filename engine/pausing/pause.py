"""What a paused run waits for: an input of some form, until some time. Pure; kept in the details of its state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from ...bus.event import parse_time
from ...errors import InputRefused
from ...vocabulary import JsonObject, JsonValue
from ..calls.schema_check import problems_in
from ..runs.run import FlowRun

__all__ = ["NEVER_RESUMED", "PauseSpec"]

NEVER_RESUMED = "This flow was paused and never resumed."


@dataclass(frozen=True, slots=True)
class PauseSpec:
    """
    Attributes:
        expires_at: when the run fails if nobody has resumed it; None: never.
        schema: JSON schema of the input it waits for; None: it waits for none.
    """

    expires_at: datetime | None = None
    schema: JsonObject | None = None

    @classmethod
    def of(cls, run: FlowRun) -> Self:
        """Read it out of a paused run; empty for one that somebody else has paused."""
        wait = run.state_details.get("wait")
        if not isinstance(wait, dict):
            return cls()
        expires, schema = wait.get("expires"), wait.get("schema")
        return cls(
            parse_time(expires) if isinstance(expires, str) else None,
            schema if isinstance(schema, dict) else None,
        )

    def check(self, run_id: str, given: JsonObject | None) -> JsonValue:
        """Return the input to hand to the run, None if it asked for none and got none.

        Raises:
            InputRefused: it does not fit what the run asked for.
        """
        if self.schema is None:
            return given
        schema: dict[str, Any] = self.schema
        problems = problems_in(given or {}, schema, what="input")
        if problems:
            raise InputRefused(
                f"run {run_id} cannot be resumed with this input: {'; '.join(problems)}",
                hint=f"it takes {', '.join(schema.get('properties') or {}) or 'no fields'}",
            )
        return given or {}
