"""Where an event is stored: the mapping from event types and run ids to bus subjects, and matching.

Run ids stand in the subjects of run transitions only; everything else keeps a low cardinality, because the
broker holds about 220 bytes of memory for each distinct subject.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..vocabulary import StateType
from .event import Event, Recorded

STREAM = "HARK"
LOGS_STREAM = "HARK_LOGS"
WORK_STREAM = "HARK_WORK"
REQUESTS_STREAM = "HARK_REQUESTS"
PREFIX = "hark.ev."
ALL_EVENTS = "hark.ev.>"
FLOW_RUNS = "hark.ev.flow-run.>"
TASK_RUNS = "hark.ev.task-run.>"
BACKGROUND_RUNS = "hark.ev.task-run.background.*"
STATE_HEADER = "Hark-State"
RESTORED = "hark.restored"
"""The type of the event that ends what a restore put back into the log."""
RUN_DELETED = "hark.flow-run.deleted"
"""The type of the event that hides a run that is over. It is no state of the run."""
RUN_TAKEN = "hark.flow-run.taken-over"
"""The type of the event by which a worker tells the one before it, should that be alive, that the run is another's."""


def flow_run_subject(state: str, run_id: str) -> str:
    """``hark.ev.flow-run.<state>.<run_id>``; ``state`` is the event's last word, such as ``timed-out``."""
    return f"hark.ev.flow-run.{state}.{run_id}"


def flow_run_filter(run_id: str) -> str:
    """The filter that holds every transition of one flow run; the last message on it is its current state."""
    return f"hark.ev.flow-run.*.{run_id}"


def task_run_subject(flow_run_id: str) -> str:
    """``hark.ev.task-run.<flow_run_id>``: one subject for the task runs of a flow run, in order, until they complete."""
    return f"hark.ev.task-run.{flow_run_id}"


def background_subject(task_run_id: str) -> str:
    """``hark.ev.task-run.background.<id>``: a task run of ``delay``, which has a subject of its own to be guarded by."""
    return f"hark.ev.task-run.background.{task_run_id}"


def waits_subject(task_run_id: str) -> str:
    """``hark.ev.hark.task.waits.<id>``: which task runs of ``delay`` wait for the end of this one."""
    return f"hark.ev.hark.task.waits.{task_run_id}"


def completed_subject(flow_run_id: str) -> str:
    """``hark.ev.task-run.<flow_run_id>.completed``: the task runs of a flow run that came to COMPLETED, in order, and what
    became of the others from their first retry on.

    On a subject of their own because they are all that a resumed run reads, and a third of what its tasks wrote.
    """
    return f"hark.ev.task-run.{flow_run_id}.completed"


def is_for_resuming(type_: str, name: str, tries: int) -> bool:
    """Return whether a resumed run has to know of this state of a task run; ``tries`` are those it has begun."""
    return type_ == StateType.COMPLETED or tries > 1 or name == "AwaitingRetry"


def deleted_subject(flow_run_id: str) -> str:
    """``hark.ev.hark.flow-run.deleted.<run_id>``: that a run was deleted, beside the subjects of its transitions."""
    return f"{PREFIX}{RUN_DELETED}.{flow_run_id}"


def hooks_subject(word: str, flow_run_id: str) -> str:
    """``hark.ev.hark.hooks.<word>.<flow_run_id>``: what became of the hooks of a flow run and of its tasks."""
    return f"hark.ev.hark.hooks.{word}.{flow_run_id}"


def hooks_filter(flow_run_id: str) -> str:
    """The filter that holds all that was said of the hooks of one flow run."""
    return f"hark.ev.hark.hooks.*.{flow_run_id}"


def input_filters(type_: str, flow_run_id: str) -> list[str]:
    """Return the filters that hold the events of a type about the inputs of a run: of ``hark.input.sent``, say.

    The second is where those of all runs stand in older logs.
    """
    return [f"{PREFIX}{type_}.{flow_run_id}", PREFIX + type_]


def type_of_record(record: Recorded) -> str | None:
    """Return the event type that a record's subject and headers tell, without parsing it; None if they do not."""
    known = _run_types.get(record.subject.rpartition(".")[0])
    if known is not None:
        return known
    type_ = record.subject[_PREFIX_CHARS:]
    first = type_[:5]
    if first == "flow-":
        head = type_.rpartition(".")[0]
        if not head.startswith("flow-run.") or head.count(".") != 1:
            return type_
        if len(_run_types) >= 1000:
            _run_types.clear()
        _run_types[PREFIX + head] = head
        return head
    if first == "task-" and type_.startswith("task-run."):
        state = record.headers.get(STATE_HEADER)
        return f"task-run.{state}" if state else None
    # Some of Hark's own have an id behind their type.
    return None if first == "hark." else type_


_PREFIX_CHARS = len(PREFIX)
_run_types: dict[str, str] = {}  # by what stands before the run's id: a dozen, in most events of the log


def subject_of(event: Event) -> str:
    """Return the subject an event is stored under, by its type and, for runs, its subject.

    ``flow-run.failed`` about ``flow-run/<id>`` goes to ``hark.ev.flow-run.failed.<id>``;
    a ``task-run.*`` event must carry ``flow_run_id`` in ``data["flow_run"]["id"]``, and its state in ``data["state"]``.
    """
    type_ = event.type
    if type_.startswith("flow-run.") and event.subject and event.subject.startswith("flow-run/"):
        return flow_run_subject(type_[9:], event.subject[9:])
    if type_.startswith("hark.hooks.") and event.subject and event.subject.startswith("flow-run/"):
        return hooks_subject(type_[11:], event.subject[9:])
    if type_.startswith("hark.input.") and event.subject and event.subject.startswith("flow-run/"):
        return f"{PREFIX}{type_}.{event.subject[9:]}"
    if type_ == RUN_DELETED and event.subject and event.subject.startswith("flow-run/"):
        return deleted_subject(event.subject[9:])
    if type_ == "hark.task.waits" and event.subject and event.subject.startswith("task-run/"):
        return waits_subject(event.subject[9:])
    if type_.startswith("task-run.") and isinstance(event.data, dict):
        run = event.data.get("run")
        if isinstance(event.data.get("background"), dict) and isinstance(run, dict):
            return background_subject(str(run.get("id")))
        parent = event.data.get("flow_run")
        if isinstance(parent, dict) and isinstance(parent.get("id"), str):
            kept = is_for_resuming(*_state_and_tries(event.data.get("state"), run))
            return (completed_subject if kept else task_run_subject)(str(parent["id"]))
    return PREFIX + type_


def _state_and_tries(state: object, run: object) -> tuple[str, str, int]:
    said, about = (value if isinstance(value, dict) else {} for value in (state, run))
    tries = about.get("attempt")
    return str(said.get("type")), str(said.get("name")), tries if isinstance(tries, int) else 0


def matches(pattern: str, type_: str) -> bool:
    """Return whether a dotted ``type_`` fits ``pattern``, where ``*`` is one word and a last ``>`` the rest."""
    want, have = pattern.split("."), type_.split(".")
    for i, word in enumerate(want):
        if word == ">":
            return i == len(want) - 1 and len(have) > i
        if i >= len(have) or (word != "*" and word != have[i]):
            return False
    return len(want) == len(have)


def filters_for(pattern: str) -> list[str]:
    """Return the bus filters under which events of types fitting ``pattern`` may be stored.

    Flow-run subjects carry one more word (the run id) than the type, and task-run subjects carry the id in place
    of the state, so a filter may let through more than the pattern: match the type again after reading.
    """
    first = pattern.partition(".")[0]
    if first in ("*", ">"):
        return [ALL_EVENTS]
    if first == "task-run":
        return [TASK_RUNS]
    if first == "flow-run":
        words = pattern.split(".")
        return [PREFIX + pattern] if words[-1] == ">" else [PREFIX + pattern + ".*"]
    if first == "hark" and not pattern.endswith(">"):
        # Notes about hooks, inputs and deletions carry the id of their run.
        return [PREFIX + pattern, PREFIX + pattern + ".*"]
    return [PREFIX + pattern]


def covers(wide: str, narrow: str) -> bool:
    """Return whether every subject that fits the filter ``narrow`` fits ``wide`` too."""
    have, want = wide.split("."), narrow.split(".")
    for i, word in enumerate(have):
        if word == ">":
            return len(want) > i
        if i >= len(want) or want[i] == ">" or (word != "*" and word != want[i]):
            return False
    return len(have) == len(want)


def distinct_filters(filters: Iterable[str]) -> list[str]:
    """Return the filters without those that another one covers; the broker refuses overlapping ones."""
    kept: list[str] = []
    for one in dict.fromkeys(filters):
        if not any(covers(other, one) for other in kept):
            kept = [other for other in kept if not covers(one, other)] + [one]
    return kept
