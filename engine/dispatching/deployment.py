"""A deployment: a flow with a name, parameters, tags, a pool and limits. Kept in the bucket ``deployments``.

A deployment holds no code, only where a worker finds it: an entrypoint and the folder, or the git repository, it is relative to.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from ...errors import DefinitionError
from ...template import check_template, render
from ...vocabulary import JsonObject
from ..code.entrypoint import split_entrypoint
from ..code_source import GitSource

__all__ = [
    "BUCKET",
    "ConcurrencySpec",
    "Deployment",
    "Entrypoint",
    "Name",
    "check_name",
    "is_name",
    "read_deployment",
]

BUCKET = "deployments"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
MAX_NAME_CHARS = 100


def check_name(text: str) -> str:
    """Return ``text`` if it can name a deployment, pool or queue; raise ``ValueError`` saying the rule if not."""
    if not is_name(text):
        raise ValueError(
            f"{text!r} is not a name: use letters, digits, '_', '-' and single dots between them, beginning with a letter"
            f" or digit, {MAX_NAME_CHARS} at most"
        )
    return text


def is_name(text: str) -> bool:
    """Whether ``text`` can be a name at all; one that cannot is the name of nothing."""
    return bool(_NAME.fullmatch(text)) and len(text) <= MAX_NAME_CHARS


def _check_entrypoint(text: str) -> str:
    split_entrypoint(text)
    return text


Name = Annotated[str, AfterValidator(check_name)]
Entrypoint = Annotated[str, AfterValidator(_check_entrypoint)]


class ConcurrencySpec(BaseModel):
    """How many runs of one deployment (or of one ``key`` of it) may be in progress at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    limit: int = Field(ge=1, description="runs in progress at once, for each key")
    key: str | None = Field(None, description="template over `parameters` and `tags`; one limit per value")
    on_conflict: Literal["queue", "skip", "cancel-running"] = Field(
        "queue",
        description="what a run past the limit does: wait, end as cancelled, or cancel the oldest to make room",
    )

    @field_validator("key")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_template(value)
            except DefinitionError as exc:
                raise ValueError(str(exc)) from exc
        return value


def _limit_alone(value: Any) -> Any:
    return {"limit": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Deployment(BaseModel):
    """A flow that can be run by name.

    Attributes:
        flow: entrypoint; relative files are looked for in ``path``.
        path: the folder the flow is imported from and, in a process of its own, runs in; None is the worker's.
        source: a git repository that a worker fetches before it runs the flow, in place of ``path``.
        executor: ``auto`` runs async flows in the worker's loop and sync ones in a process of their own;
            ``process`` forces the latter, for async flows that block.
        parameter_schema: JSON schema of the flow's parameters, where known; requests are checked against it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: Name
    flow: Entrypoint
    flow_name: str | None = None
    flow_version: str | None = None
    path: str | None = None
    source: GitSource | None = None
    description: str | None = None
    # JSON; the recursive type of `vocabulary` is a name that pydantic cannot resolve.
    parameters: dict[str, Any] = Field(default_factory=dict)
    parameter_schema: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    pool: Name = "default"
    queue: Name = "default"
    concurrency: Annotated[ConcurrencySpec, BeforeValidator(_limit_alone)] | None = None
    retries: int | None = Field(None, ge=0, le=1000, description="overrides the flow's own retries")
    crash_retries: int | None = Field(
        None, ge=0, le=100, description="how often a run whose process died is taken up again"
    )
    executor: Literal["auto", "process"] = "auto"
    paused: bool = False

    @property
    def id(self) -> str:
        """Its name, by which everything finds it. For flows written for Prefect."""
        return self.name

    @property
    def flow_id(self) -> str:
        return self.shown_flow_name

    @property
    def entrypoint(self) -> str:
        return self.flow

    @property
    def version(self) -> str | None:
        return self.flow_version

    @property
    def work_pool_name(self) -> str:
        return self.pool

    @property
    def work_queue_name(self) -> str:
        return self.queue

    @property
    def concurrency_limit(self) -> int | None:
        return self.concurrency.limit if self.concurrency is not None else None

    @property
    def parameter_openapi_schema(self) -> dict[str, Any] | None:
        return self.parameter_schema

    @property
    def enforce_parameter_schema(self) -> bool:
        return self.parameter_schema is not None

    @property
    def job_variables(self) -> dict[str, Any]:
        """Nothing: there are no jobs to configure."""
        return {}

    @property
    def labels(self) -> dict[str, str]:
        return {"prefect.flow.id": self.shown_flow_name}

    @property
    def shown_flow_name(self) -> str:
        """The flow's name, or what its entrypoint calls it when nobody has looked inside yet."""
        return self.flow_name or split_entrypoint(self.flow)[1].replace("_", "-")

    def concurrency_key(self, parameters: JsonObject, tags: tuple[str, ...]) -> str | None:
        """Return the key under which a run with these parameters is limited; None where there is no key.

        Raises:
            TemplateError: the key's template reads something that is missing.
        """
        if self.concurrency is None or self.concurrency.key is None:
            return None
        return render(self.concurrency.key, {"parameters": parameters, "tags": list(tags)})


@lru_cache(maxsize=1024)
def read_deployment(raw: bytes) -> Deployment:
    """Return a deployment as the bucket holds it; of many runs most are of few.

    Raises:
        ValidationError: it is none.
    """
    return Deployment.model_validate_json(raw)
