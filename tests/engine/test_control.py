"""Requests of people, rules and schedules: what they become, and what is said to a wrong one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.bus.event import Event
from hark.bus.subject import RUN_DELETED, flow_run_filter
from hark.config import BusConfig
from hark.engine.code.entrypoint import split_entrypoint
from hark.engine.dispatching.control import Control, check_parameters
from hark.engine.dispatching.deployment import ConcurrencySpec, Deployment
from hark.engine.dispatching.pool import Pool
from hark.engine.runs.run import Cause, RunRequest
from hark.engine.states import Completed, Pending, Running
from hark.errors import (
    DefinitionError,
    GuardFailed,
    MoveRefused,
    NotPaused,
    NotRunning,
    ParameterError,
    RefusedError,
    SuspendRefused,
    TemplateError,
    UnknownName,
)
from hark.vocabulary import FlowRunId, StateType
from pydantic import ValidationError

CAUSE = Cause("api", "somebody")
SCHEMA = {
    "properties": {
        "day": {"type": "string"},
        "full": {"type": "boolean"},
        "n": {"type": "integer"},
        "any": {},
    },
    "required": ["day"],
}


async def a_deployment(control: Control, **fields: Any) -> Deployment:
    deployment = Deployment(**{"name": "nightly", "flow": "etl.py:run_etl", **fields})
    await control.put_deployment(deployment)
    return deployment


async def test_a_request_carries_what_the_deployment_says(bus: Bus) -> None:
    """Parameters and tags merged, the key of the limit rendered, the cause and the event that led to it kept."""
    control = Control(bus)
    spec = ConcurrencySpec(limit=1, key="{{ parameters.source }}-{{ tags[0] }}")
    await a_deployment(
        control, parameters={"source": "a", "n": 1}, tags=("prod",), queue="high", concurrency=spec
    )
    event = Event(type="order.paid", source="/shop")
    run = await control.run_deployment(
        "nightly", parameters={"source": "b"}, tags=["x", "prod"], cause=CAUSE, trigger_event=event
    )
    assert run.parameters == {"source": "b", "n": 1}
    assert run.tags == ("prod", "x")
    assert (run.pool, run.queue, run.concurrency_key) == ("default", "high", "b-prod")
    assert (run.flow_name, run.entrypoint) == ("run-etl", "etl.py:run_etl")
    assert (run.causationid, run.correlationid, run.causaldepth) == (event.id, event.id, 1)
    assert await control.get(run.id) == run


async def test_an_unknown_deployment_is_named_with_the_nearest_one(bus: Bus) -> None:
    """Also one that could not be a name at all."""
    control = Control(bus)
    await a_deployment(control)
    with pytest.raises(UnknownName, match="did you mean 'nightly'"):
        await control.run_deployment("nightli", cause=CAUSE)
    with pytest.raises(UnknownName):
        await control.run_deployment("no such * name", cause=CAUSE)
    with pytest.raises(UnknownName):
        await control.pause_deployment("nothing")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "missing: day"),
        ({"day": "mon", "dya": 1}, "no parameter named 'dya'; did you mean 'day'"),
        ({"day": 5}, "'day' takes a string, got 5"),
        ({"day": "mon", "n": [1]}, "'n' takes an integer, got"),
    ],
)
def test_parameters_that_cannot_fit_are_refused_before_anything_runs(parameters: Any, says: str) -> None:
    """The answer comes at the request, not from a failed run."""
    deployment = Deployment(name="d", flow="f.py:f", parameter_schema=SCHEMA)
    with pytest.raises(ParameterError, match=says.replace("[", r"\[")):
        check_parameters(deployment, parameters)


def test_parameters_that_may_fit_are_left_to_the_flow() -> None:
    """Numbers as text, nulls in free fields: the flow's own annotations decide."""
    deployment = Deployment(name="d", flow="f.py:f", parameter_schema=SCHEMA)
    check_parameters(deployment, {"day": "mon", "n": "5", "full": "yes", "any": None})
    check_parameters(Deployment(name="d", flow="f.py:f"), {"whatever": 1})


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "missing: day"),
        ({"day": "mon", "dya": 1}, "did you mean 'day'"),
        ({"day": 5}, "'day' takes a string, got 5"),
        ({"day": "mon", "n": "many"}, "'n' takes an integer, got 'many'"),
    ],
)
async def test_what_a_flow_takes_is_read_from_its_text(
    bus: Bus, tmp_path: Path, parameters: Any, says: str
) -> None:
    """Nothing is imported, and a change of the file counts from the next request on."""
    file = tmp_path / "flows.py"
    head = "raise SystemExit\n@hark.flow(name='x')\n"
    file.write_text(head + "def etl(day: str, n: int = 3, *, at: datetime | None = None):\n    pass\n")
    control = Control(bus)
    await control.put_deployment(Deployment(name="nightly", flow="flows.py:etl", path=str(tmp_path)))
    with pytest.raises(ParameterError, match=says):
        await control.run_deployment("nightly", cause=CAUSE, parameters=parameters)
    good: list[Any] = [{"day": "mon"}, {"day": "mon", "n": "5", "at": None}]
    for each in good:
        await control.run_deployment("nightly", cause=CAUSE, parameters=each)
    file.write_text(head + "async def etl(**anything):\n    pass\n")
    await control.run_deployment("nightly", cause=CAUSE, parameters=parameters)


@pytest.mark.parametrize(
    "text",
    [
        "@cached\n@flow\ndef etl(day): pass",
        "@ours\ndef etl(day): pass",
        "class etl:\n    pass",
        "etl = make()",
        "def etl(",
        None,
    ],
)
def test_what_the_text_of_a_flow_does_not_tell_is_left_to_the_flow(tmp_path: Path, text: str | None) -> None:
    """What wraps a function may change what it takes."""
    if text is not None:
        (tmp_path / "flows.py").write_text(text)
    check_parameters(Deployment(name="d", flow="flows.py:etl", path=str(tmp_path)), {"whatever": 1})


async def test_a_key_that_cannot_be_made_refuses_the_request(bus: Bus) -> None:
    """A run without its key would escape its limit."""
    control = Control(bus)
    await a_deployment(control, concurrency=ConcurrencySpec(limit=1, key="{{ parameters.nope }}"))
    with pytest.raises(TemplateError):
        await control.run_deployment("nightly", cause=CAUSE)


async def test_pausing_is_one_guarded_write_that_loses_nothing(bus: Bus) -> None:
    """Ten who pause and resume at once leave a whole definition; pausing twice writes once."""
    control = Control(bus)
    deployment = await a_deployment(control, tags=("a",))
    await asyncio.gather(*(control.pause_deployment("nightly") for _ in range(10)))
    assert await control.deployment("nightly") == deployment.model_copy(update={"paused": True})
    entry = await bus.bucket("deployments").get("nightly")
    await control.pause_deployment("nightly")
    again = await bus.bucket("deployments").get("nightly")
    assert entry is not None
    assert again is not None
    assert entry.revision == again.revision
    assert not (await control.resume_deployment("nightly")).paused


async def test_a_pool_that_nobody_defined_can_be_paused(bus: Bus) -> None:
    """It exists without limits; pausing it writes it down, and so does pausing one queue of it."""
    control = Control(bus)
    assert await control.pool("default") == Pool(name="default")
    assert (await control.pause_pool("default")).paused
    assert (await control.pool("default")).paused
    assert not (await control.resume_pool("default")).paused
    pool = await control.pause_pool("default", queue="high")
    assert pool.queue("high").paused
    assert not pool.queue("default").paused
    await bus.bucket("pools").delete("default")
    assert (await control.pause_pool("default")).paused, "also after it was removed"


async def test_what_may_be_asked_of_a_run_depends_on_its_state(bus: Bus) -> None:
    """Each refusal says why."""
    control = Control(bus)
    await a_deployment(control)
    run = await control.run_deployment("nightly", cause=CAUSE)
    with pytest.raises(MoveRefused, match="it is not paused"):
        await control.resume(run.id)
    with pytest.raises(MoveRefused, match="it has not ended"):
        await control.retry(run.id)
    suspended = await control.suspend(run.id)
    assert (await control.suspend(run.id)).seq == suspended.seq
    assert (await control.resume(run.id)).state_name == "Resuming"
    run = await control.runs.move(await control.get(run.id) or run, Pending(), attempt=1)
    run = await control.runs.move(run, Running())
    assert (await control.cancel(run.id, cause=CAUSE)).state_details == {"by": CAUSE.to_json()}
    with pytest.raises(NotRunning, match="it is not running"):
        await control.suspend(run.id)
    run = await control.runs.move(run, Completed())
    for kind in (MoveRefused, SuspendRefused, RuntimeError):
        with pytest.raises(kind, match="it is not running"):
            await control.suspend(run.id)
    with pytest.raises(NotPaused):
        await control.resume(run.id)
    assert (await control.cancel(run.id)).state_type is StateType.COMPLETED
    with pytest.raises(MoveRefused, match="it completed"):
        await control.retry(run.id)
    for ask in (control.cancel, control.resume, control.retry, control.suspend):
        with pytest.raises(UnknownName):
            await ask(FlowRunId("nobody"))


async def test_a_plain_call_can_be_cancelled_but_not_suspended_or_retried(bus: Bus) -> None:
    """No worker has its code."""
    control = Control(bus)
    run = await control.runs.request(RunRequest(flow_name="f"))
    with pytest.raises(RefusedError, match="was not started by a worker"):
        await control.suspend(run.id)
    await control.cancel(run.id)
    with pytest.raises(RefusedError, match="was not started by a worker"):
        await control.retry(run.id)


async def test_a_stored_deployment_that_cannot_be_read_says_which_and_why(bus: Bus) -> None:
    """Somebody wrote to the bucket by hand, or with another version."""
    await bus.bucket("deployments").put("nightly", b'{"name": "nightly", "flow": "f.py:f", "colour": 1}')
    with pytest.raises(DefinitionError, match="colour"):
        await Control(bus).run_deployment("nightly", cause=CAUSE)


def test_names_and_entrypoints_are_checked_where_they_are_written() -> None:
    """A wrong one is refused with the form a right one has."""
    for name in ("", "-a", "a b", "a..b", "a.", "x" * 101, "ä"):
        with pytest.raises(ValidationError, match="is not a name"):
            Deployment(name=name, flow="f.py:f")
    for flow in ("f.py", "f.py:", ":f", "f.py:a-b", "f.py:a.1"):
        with pytest.raises(ValidationError, match="is not an entrypoint"):
            Deployment(name="a", flow=flow)
    with pytest.raises(ValidationError, match="does not parse"):
        ConcurrencySpec(limit=1, key="{{ oops")
    assert split_entrypoint("a/b.py:C.f") == ("a/b.py", "C.f")


async def test_two_thousand_wait_for_runs_at_once(broker: EmbeddedBroker) -> None:
    """Each hears the end of its own run; the broker's bound on consumers is not in their way."""
    async with Bus(broker.address, BusConfig(request_timeout_s=60)) as bus:
        control = Control(bus)
        runs = await asyncio.gather(*(control.runs.request(RunRequest(flow_name="f")) for _ in range(2_000)))
        waits = [asyncio.create_task(control.wait(run.id, timeout_s=300)) for run in runs]
        for run in runs:
            await control.cancel(run.id)
        ended = await asyncio.gather(*waits)
    assert [run.id for run in ended] == [run.id for run in runs]
    assert {run.state_type for run in ended} == {StateType.CANCELLED}


async def test_what_only_a_deleted_run_refers_to_is_freed(bus: Bus) -> None:
    """Its large results go, those of others stay; and it can neither be retried nor deleted while it goes on."""
    control = Control(bus)
    await a_deployment(control)
    run = await control.run_deployment("nightly", cause=CAUSE)
    for state in (Pending(), Running()):
        run = await control.runs.move(run, state)
    own, others = f"results/{run.id}/1", "results/cache/x"
    for name in (own, others):
        await bus.objects.put(name, b"x" * 100)
    with pytest.raises(RefusedError, match="only what is over"):
        await control.delete(run.id)
    before = run
    run = await control.runs.move(run, Completed(), result={"object": own, "size": 100, "format": "json"})
    note = Event(type=RUN_DELETED, source="/x", subject=f"flow-run/{run.id}")
    with pytest.raises(GuardFailed):  # it went on in between
        await bus.log.append(note, after=before.seq, guard=flow_run_filter(run.id))
    assert (await control.present(run.id)).seq == run.seq
    assert (await control.delete(run.id, cause=CAUSE)).id == run.id
    assert [await bus.objects.exists(name) for name in (own, others)] == [False, True]
    for refused in (control.present(run.id), control.delete(run.id), control.retry(run.id)):
        with pytest.raises(UnknownName):
            await refused
    assert await control.get(run.id) is not None  # the log keeps what happened
