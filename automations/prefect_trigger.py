"""Triggers in Prefect's words, as code has them: ``serve(triggers=[DeploymentEventTrigger(expect={"order.paid"})])``.

They are read by ``convert_prefect``'s rules, so that an automation means the same whether it was exported or written in code.
New code says it shorter with the classes of the same names in ``hark.automations``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, field_validator, model_validator
from pydantic_core import core_schema

from ..duration import format_duration
from .migrate.migrate_prefect import event_pattern, read_trigger
from .migrate.migration import Converted, NotConverted
from .model import Automation, parse_automation
from .problem import Problem, RuleInvalid, did_you_mean

__all__ = [
    "CompositeTrigger", "CompoundTrigger", "DeploymentCompoundTrigger", "DeploymentEventTrigger", "DeploymentMetricTrigger",
    "DeploymentSequenceTrigger", "DeploymentTriggerTypes", "EventTrigger", "MetricTrigger", "MetricTriggerOperator", "MetricTriggerQuery", "Posture",
    "PrefectMetric", "ResourceSpecification", "ResourceTrigger", "SequenceTrigger", "Trigger", "TriggerTypes",
    "written_trigger",
]  # fmt: skip

log = logging.getLogger("hark.automations")


class Posture(StrEnum):
    """Whether a trigger waits for events, for their absence, or watches a figure."""

    Reactive = "Reactive"
    Proactive = "Proactive"
    Metric = "Metric"


class MetricTriggerOperator(StrEnum):
    """How a figure is compared with its threshold."""

    LT = "<"
    LTE = "<="
    GT = ">"
    GTE = ">="


class PrefectMetric(StrEnum):
    """The figures there are."""

    lateness = "lateness"
    duration = "duration"
    successes = "successes"


class ResourceSpecification(dict[str, Any]):
    """Labels that events must have: ``{"prefect.resource.id": "prefect.flow-run.*"}``.

    A value is one text or several, of which one has to fit: ``*`` at its end stands for anything, ``!`` before it for all
    others. A label that is not there fits none.
    """

    def __init__(
        self, labels: Mapping[str, Any] | None = None, /, *, root: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(labels or root or {})

    @classmethod
    def model_validate(cls, labels: Mapping[str, Any]) -> ResourceSpecification:
        return cls(labels)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.dict_schema(core_schema.str_schema(), handler(str | list[str]))
        )

    def matches_every_resource(self) -> bool:
        """Return whether nothing is asked for."""
        return not self

    def matches_every_resource_of_kind(self, prefix: str) -> bool:
        """Return whether all that is asked for is the kind, as ``prefix.*``."""
        asked = self.get("prefect.resource.id")
        return not self or (
            len(self) == 1 and f"{prefix}.*" in ([asked] if isinstance(asked, str) else asked or [])
        )

    def matches(self, resource: Mapping[str, str]) -> bool:
        """Return whether a resource has these labels."""
        return all(
            any(_fits(one, resource.get(label)) for one in ([wanted] if isinstance(wanted, str) else wanted))
            for label, wanted in self.items()
        )

    def includes(self, candidates: Iterable[Mapping[str, str]]) -> bool:
        """Return whether one of these has them, or nothing is asked for."""
        return not self or any(self.matches(one) for one in candidates)


def _fits(wanted: str, value: str | None) -> bool:
    if value is None:
        return False
    plain = wanted.removeprefix("!")
    is_it = value.startswith(plain[:-1]) if plain.endswith("*") else value == plain
    return is_it != wanted.startswith("!")


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, ser_json_timedelta="float")

    @model_validator(mode="before")
    @classmethod
    def _known_words_only(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            known = sorted(cls.model_fields)
            for word in value:
                if word in _HARKS and word not in known:
                    raise ValueError(
                        f"{word!r} is a word of hark.automations, not of Prefect's {cls.__name__}: "
                        f"import {cls.__name__ if cls.__name__.startswith('Deployment') else 'Automation'} from there"
                    )
                if word not in known:
                    raise ValueError(f"unknown {word!r}{did_you_mean(str(word), known)}")
        return value

    def written(self) -> dict[str, Any]:
        """Return it as an export has it."""
        return self.model_dump(mode="json", exclude_none=True)


_HARKS = frozenset({"on", "where", "count", "any_of", "all_of", "sequence", "debounce", "cooldown", "do"})


class Trigger(_Written):
    """What an automation waits for."""

    def automation(self, deployment: str, number: int) -> Automation:
        """Return the rule that runs a deployment when this fires.

        Args:
            number: its place among the triggers of the deployment, from 1.
        Raises:
            RuleInvalid: it has no equivalent, or asks for what makes no rule; the message says why.
        """
        written = self.written()
        own = {word: written.pop(word) for word in _OF_DEPLOYMENTS if word in written}
        out = Converted()
        run: dict[str, Any] = {"run": deployment}
        name = own.get("name") or f"{deployment}__automation_{number}"
        try:
            fields, parameters = read_trigger(out, written, own.get("parameters"))
        except NotConverted as exc:
            raise RuleInvalid([Problem(exc.note.loc, exc.note.message)], name=name) from None
        for note in out.notes:
            where = ".".join(str(part) for part in note.loc)
            log.warning("trigger %r of deployment %r: %s: %s", name, deployment, where, note.message)
        if parameters:
            run["parameters"] = parameters
        later = getattr(self, "schedule_after", None)
        if later:
            run["delay"] = format_duration(later.total_seconds())
        fields |= {"name": name, "owner": f"deployment/{deployment}", "do": [run]}
        if own.get("description"):
            fields["description"] = own["description"]
        if own.get("enabled") is False:
            fields["paused"] = True
        return parse_automation(fields)


_OF_DEPLOYMENTS = ("name", "description", "enabled", "parameters", "job_variables", "schedule_after")


class ResourceTrigger(Trigger):
    """One that looks at what events are about."""

    match: ResourceSpecification = Field(default_factory=ResourceSpecification)
    match_related: ResourceSpecification | list[ResourceSpecification] = Field(
        default_factory=ResourceSpecification
    )


# Written in order, so that the rule is the same each time the program runs.
_Texts = Annotated[set[str], PlainSerializer(sorted, return_type=list[str], when_used="json")]


class EventTrigger(ResourceTrigger):
    """Fires when events have come, or (``posture=Posture.Proactive``) when they have not.

    Args:
        expect: types of events, such as ``prefect.flow-run.Completed`` or ``order.*``. after: those that must come first.
        match, match_related: labels they must have. for_each: labels by whose values they are looked at apart.
        threshold: how many. within: seconds or a ``timedelta``.
    """

    type: Literal["event"] = "event"
    after: _Texts = Field(default_factory=set)
    expect: _Texts = Field(default_factory=set)
    for_each: _Texts = Field(default_factory=set)
    posture: Literal[Posture.Reactive, Posture.Proactive] = Posture.Reactive
    threshold: int = Field(1, ge=1)
    within: timedelta = Field(timedelta(0), ge=timedelta(0))

    @field_validator("after", "expect")
    @classmethod
    def _types(cls, given: set[str]) -> set[str]:
        for one in given:
            try:
                event_pattern(one, ())
            except NotConverted as exc:
                raise ValueError(exc.note.message) from None
        return given

    @model_validator(mode="after")
    def _time_to_be_absent(self) -> Self:
        least = timedelta(seconds=10)
        if self.posture == Posture.Proactive and self.within < least:
            if self.within:
                raise ValueError("`within` of a Proactive trigger is 10 seconds or more")
            # Not by assignment, which would say that somebody has set it.
            self.__dict__["within"] = least
        return self


class MetricTriggerQuery(_Written):
    """A figure over a time, and what of it fires: ``successes``, ``duration`` or ``lateness`` of flow runs."""

    name: PrefectMetric
    threshold: float
    operator: MetricTriggerOperator
    range: timedelta = Field(timedelta(minutes=5), ge=timedelta(minutes=5))
    firing_for: timedelta = Field(timedelta(minutes=5), ge=timedelta(minutes=5))


class MetricTrigger(ResourceTrigger):
    """Fires when a figure is too high or too low."""

    type: Literal["metric"] = "metric"
    posture: Literal[Posture.Metric] = Posture.Metric
    metric: MetricTriggerQuery


class CompositeTrigger(Trigger):
    """One made of others."""

    triggers: list[TriggerTypes]
    within: timedelta | None = None


class CompoundTrigger(CompositeTrigger):
    """Fires when so many of its triggers have fired: ``require`` is ``"any"``, ``"all"`` or a number."""

    type: Literal["compound"] = "compound"
    require: int | Literal["any", "all"]

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if isinstance(self.require, int) and not 1 <= self.require <= len(self.triggers):
            raise ValueError(f"`require` is from 1 to the number of triggers, {len(self.triggers)}")
        return self


class SequenceTrigger(CompositeTrigger):
    """Fires when its triggers have fired in their order."""

    type: Literal["sequence"] = "sequence"


TriggerTypes = EventTrigger | MetricTrigger | CompoundTrigger | SequenceTrigger


class _OfDeployment(Trigger):
    """What triggers written at a deployment say besides.

    Args:
        name: of the automation; default: made of the deployment's. enabled: False: it waits to be resumed.
        parameters: of the run, templates over the event among them. schedule_after: how long to wait before it starts.
        job_variables: does nothing here.
    """

    name: str | None = None
    description: str = ""
    enabled: bool = True
    parameters: dict[str, Any] | None = None
    job_variables: dict[str, Any] | None = None
    schedule_after: timedelta = Field(timedelta(0), ge=timedelta(0))


class DeploymentEventTrigger(_OfDeployment, EventTrigger):
    """Runs the deployment when events come, come too often, or do not come."""


class DeploymentMetricTrigger(_OfDeployment, MetricTrigger):
    """Runs the deployment when a figure is too high or too low."""


class DeploymentCompoundTrigger(_OfDeployment, CompoundTrigger):
    """Runs the deployment when so many of several triggers have fired."""


class DeploymentSequenceTrigger(_OfDeployment, SequenceTrigger):
    """Runs the deployment when one trigger has fired after another."""


DeploymentTriggerTypes = (
    DeploymentEventTrigger | DeploymentMetricTrigger | DeploymentCompoundTrigger | DeploymentSequenceTrigger
)

for _model in (
    CompositeTrigger,
    CompoundTrigger,
    SequenceTrigger,
    DeploymentCompoundTrigger,
    DeploymentSequenceTrigger,
):
    _model.model_rebuild()


def written_trigger(written: Mapping[str, Any]) -> _OfDeployment:
    """Return the trigger a mapping describes, as a ``prefect.yaml`` has it.

    Raises:
        ValidationError: it does not stand.
    """
    kind = written.get("type")
    if kind is None:
        kind = "metric" if written.get("posture") == "Metric" else "event"
    classes: dict[object, type[_OfDeployment]] = {
        "event": DeploymentEventTrigger, "metric": DeploymentMetricTrigger, "compound": DeploymentCompoundTrigger,
        "sequence": DeploymentSequenceTrigger,
    }  # fmt: skip
    return classes.get(kind, DeploymentEventTrigger).model_validate(written)
