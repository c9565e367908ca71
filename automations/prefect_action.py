"""Actions in Prefect's words: ``Automation(…, actions=[RunDeployment(deployment_id="nightly")])``.

They are read by ``convert_prefect``'s rules. The id of a deployment, a pool, a queue or an automation is its name.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Action", "ActionTypes", "CallWebhook", "CancelFlowRun", "ChangeFlowRunState", "DeclareIncident", "DeleteFlowRun",
    "DoNothing", "PauseAutomation", "PauseDeployment", "PauseWorkPool", "PauseWorkQueue", "ResumeAutomation",
    "ResumeDeployment", "ResumeFlowRun", "ResumeWorkPool", "ResumeWorkQueue", "RunDeployment", "SendNotification",
    "SuspendFlowRun",
]  # fmt: skip

Id = str | UUID


class Action(BaseModel):
    """What an automation does."""

    model_config = ConfigDict(extra="forbid", ser_json_timedelta="float")

    type: str

    def describe_for_cli(self) -> str:
        """Return it in words."""
        return self.type.replace("-", " ").capitalize()


class DoNothing(Action):
    """Nothing: that it fired is all that is wanted."""

    type: Literal["do-nothing"] = "do-nothing"


class _Selecting(Action):
    """One that has a target, which it names or (``source="inferred"``) takes from the event."""

    target: ClassVar[str]

    source: Literal["selected", "inferred"] = "selected"

    @model_validator(mode="after")
    def _names_what_it_selects(self) -> Self:
        has_one = bool(getattr(self, self.target))
        if has_one != (self.source == "selected"):
            raise ValueError(f"{self.target} is {'not allowed' if has_one else 'required'}")
        return self


class _OfDeployment(_Selecting):
    target: ClassVar[str] = "deployment_id"
    deployment_id: Id | None = None


class RunDeployment(_OfDeployment):
    """Run a deployment, with these parameters, after this time. ``job_variables`` do nothing here."""

    type: Literal["run-deployment"] = "run-deployment"
    parameters: dict[str, Any] | None = None
    job_variables: dict[str, Any] | None = None
    schedule_after: timedelta = Field(timedelta(0), ge=timedelta(0))


class PauseDeployment(_OfDeployment):
    """Pause a deployment."""

    type: Literal["pause-deployment"] = "pause-deployment"


class ResumeDeployment(_OfDeployment):
    """Resume a deployment."""

    type: Literal["resume-deployment"] = "resume-deployment"


class ChangeFlowRunState(Action):
    """Move the flow run of the event to another state."""

    type: Literal["change-flow-run-state"] = "change-flow-run-state"
    name: str | None = None
    state: Literal[
        "SCHEDULED",
        "PENDING",
        "RUNNING",
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "CRASHED",
        "PAUSED",
        "CANCELLING",
    ]
    message: str | None = None
    force: bool = False


class CancelFlowRun(Action):
    """Cancel the flow run of the event."""

    type: Literal["cancel-flow-run"] = "cancel-flow-run"


class DeleteFlowRun(Action):
    """Delete the flow run of the event. Nothing here does that: the log keeps what happened."""

    type: Literal["delete-flow-run"] = "delete-flow-run"


class ResumeFlowRun(Action):
    """Resume the flow run of the event."""

    type: Literal["resume-flow-run"] = "resume-flow-run"


class SuspendFlowRun(Action):
    """Suspend the flow run of the event."""

    type: Literal["suspend-flow-run"] = "suspend-flow-run"


class CallWebhook(Action):
    """Call the address that the secret ``webhook_<name of the block>`` holds."""

    type: Literal["call-webhook"] = "call-webhook"
    block_document_id: Id
    payload: str = ""


class SendNotification(Action):
    """Tell people by the channel that has the name of the block."""

    type: Literal["send-notification"] = "send-notification"
    block_document_id: Id
    subject: str = "Automated notification"
    body: str


class _OfPool(_Selecting):
    target: ClassVar[str] = "work_pool_id"
    work_pool_id: Id | None = None


class PauseWorkPool(_OfPool):
    """Pause a pool."""

    type: Literal["pause-work-pool"] = "pause-work-pool"


class ResumeWorkPool(_OfPool):
    """Resume a pool."""

    type: Literal["resume-work-pool"] = "resume-work-pool"


class _OfQueue(_Selecting):
    target: ClassVar[str] = "work_queue_id"
    work_queue_id: Id | None = None


class PauseWorkQueue(_OfQueue):
    """Pause a queue, ``pool/queue``."""

    type: Literal["pause-work-queue"] = "pause-work-queue"


class ResumeWorkQueue(_OfQueue):
    """Resume a queue, ``pool/queue``."""

    type: Literal["resume-work-queue"] = "resume-work-queue"


class _OfAutomation(_Selecting):
    target: ClassVar[str] = "automation_id"
    automation_id: Id | None = None


class PauseAutomation(_OfAutomation):
    """Pause an automation."""

    type: Literal["pause-automation"] = "pause-automation"


class ResumeAutomation(_OfAutomation):
    """Resume an automation."""

    type: Literal["resume-automation"] = "resume-automation"


class DeclareIncident(Action):
    """Declare an incident, which nothing here does."""

    type: Literal["declare-incident"] = "declare-incident"


ActionTypes = (
    DoNothing
    | RunDeployment
    | PauseDeployment
    | ResumeDeployment
    | ResumeFlowRun
    | CancelFlowRun
    | DeleteFlowRun
    | ChangeFlowRunState
    | PauseWorkQueue
    | ResumeWorkQueue
    | SendNotification
    | CallWebhook
    | PauseAutomation
    | ResumeAutomation
    | SuspendFlowRun
    | PauseWorkPool
    | ResumeWorkPool
    | DeclareIncident
)
