"""Ends for the task runs of a flow run whose process has died."""

from __future__ import annotations

from hark.bus import Bus, Event
from hark.bus.subject import completed_subject, task_run_subject
from hark.engine import RunLog, RunRequest
from hark.engine.runs.open_tasks import end_open_tasks
from hark.engine.states import Crashed
from hark.vocabulary import FlowRunId, JsonValue


async def test_rubbish_among_the_tasks_of_a_run_keeps_none_of_them_from_its_end(bus: Bus) -> None:
    """Anybody may publish there: what is no event, or says nothing of a task of this run, is passed over."""
    run = await RunLog(bus).request(RunRequest(flow_name="sums"))
    about: JsonValue = {"id": "t-1", "name": "add", "started_at": "yesterday"}

    async def say(run_: JsonValue, state: JsonValue, of: FlowRunId = run.id) -> None:
        data: JsonValue = {"run": run_, "state": state, "flow_run": {"id": of}}
        event = Event(type="task-run.running", source="/anybody", data=data)
        await bus.publisher.publish_raw(task_run_subject(run.id), event.to_json(), event.id)

    await say(about, {"type": "RUNNING"})
    for number, raw in enumerate((b'{"id"', b"3", b"[]", b'{"data": {"run": 1}}')):
        await bus.publisher.publish_raw(completed_subject(run.id), raw, f"rubbish-{number}")
    await say(about, {"type": ["COMPLETED"]})
    await say({"id": 7}, {"type": "RUNNING"})
    await say({"id": "t-2"}, {"type": "DREAMING"})
    await say({"id": "t-3"}, {"type": "RUNNING"}, of=FlowRunId("another"))
    ended = await RunLog(bus).change(run.id, lambda _: Crashed(message="its process died"))
    assert await end_open_tasks(bus, ended) == 1
    assert await end_open_tasks(bus, ended) == 0


async def test_a_task_that_began_with_all_an_event_can_hold_comes_to_an_end(bus: Bus) -> None:
    """Its end has no room for as many tags; one whose very name leaves none keeps no other from its end."""
    run = await RunLog(bus).request(RunRequest(flow_name="sums"))
    room = 1_048_000  # of the 1 MiB that the broker takes
    for name, tags in (("a" * room, []), ("tagged", ["t" * room]), ("small", [])):
        data: JsonValue = {
            "run": {"id": name[:9], "name": name}, "state": {"type": "RUNNING"}, "flow_run": {"id": run.id}, "tags": [*tags]
        }  # fmt: skip
        event = Event(type="task-run.running", source="/t", data=data)
        await bus.publisher.publish_raw(task_run_subject(run.id), event.to_json(), event.id)
    ended = await RunLog(bus).change(run.id, lambda _: Crashed(message="its process died"))
    assert await end_open_tasks(bus, ended) == 3
    ends: list[str] = []
    async with bus.log.read([task_run_subject(run.id)]) as batches:
        async for batch in batches:
            ends += [r.event.subject or "" for r in batch.records if r.event.type == "task-run.crashed"]
    assert ends == ["task-run/tagged", "task-run/small"]
