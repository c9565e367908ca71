"""The read model: projector and queries over SQLite, folded from the log.

Begin with ``row.py`` (what can be asked for) and ``schema.sql`` (what is kept).
"""

from .projector import Projector, rebuild
from .queries import MAX_LIMIT, Queries
from .row import (
    ActionRow,
    AutomationActivity,
    Counts,
    DeploymentActivity,
    EventFilter,
    EventRow,
    FailingAddressRow,
    FiringDetail,
    FiringRow,
    FlowRunDetail,
    FlowRunRow,
    NotificationRow,
    Page,
    RunFilter,
    ScheduleFireRow,
    TaskRunRow,
    WebhookDeliveryRow,
    WorkerRow,
)

__all__ = [
    "MAX_LIMIT", "ActionRow", "AutomationActivity", "Counts", "DeploymentActivity", "EventFilter", "EventRow",
    "FailingAddressRow", "FiringDetail", "FiringRow", "FlowRunDetail", "FlowRunRow", "NotificationRow", "Page", "Projector", "Queries",
    "RunFilter", "ScheduleFireRow", "TaskRunRow", "WebhookDeliveryRow", "WorkerRow", "rebuild",
]  # fmt: skip
