"""What is there under Prefect's names, and does what a flow written for Prefect expects of it."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import hark
import pytest
from anyio import to_thread
from hark import Variable, allow_failure, flow, get_run_logger, tags, task
from hark.bus import Bus
from hark.bus.session import Session, use_session
from hark.config import load_settings
from hark.engine.annotations import NotSet, freeze, opaque, quote, unmapped
from hark.engine.artifacts import LinkArtifact, MarkdownArtifact, ProgressArtifact, TableArtifact
from hark.engine.block_kinds import CredentialsBlock, SecretDict, Webhook
from hark.engine.blocks import Block
from hark.engine.context import (
    FlowRunContext,
    RunContext,
    TagsContext,
    TaskRunContext,
    get_settings_context,
    with_context,
)
from hark.engine.event_view import Event
from hark.engine.events import RelatedResource, Resource, emit_event
from hark.engine.events_client import get_events_client
from hark.engine.exceptions import (
    FlowRunWaitTimeout,
    MissingFlowError,
    NotPausedError,
    ObjectAlreadyExists,
    ScriptError,
    SerializationError,
    UnspecifiedFlowError,
)
from hark.engine.flow_runs import resume_flow_run, wait_for_flow_run
from hark.engine.flows import Flow, load_flow_from_entrypoint, select_flow
from hark.engine.logging import (
    LogEavesdropper,
    disable_run_logger,
    flow_run_logger,
    print_as_log,
    task_run_logger,
)
from hark.engine.persistence.result_store import ResultStore
from hark.engine.runs.state_conversion import (
    exception_to_crashed_state,
    exception_to_failed_state,
    format_exception,
    is_state_iterable,
    return_value_to_state,
)
from hark.engine.serializers import CompressedJSONSerializer, CompressedPickleSerializer, JSONSerializer
from hark.engine.states import Completed, Failed
from hark.errors import EventInvalid, MissingContextError
from pydantic import BaseModel, SecretStr

from .conftest import events

pytestmark = pytest.mark.usefixtures("keys_at_home")


# --- artifacts ------------------------------------------------------------------------------------------


async def test_artifacts_as_objects_are_made_and_found_again(session: Session) -> None:
    """What is shown under a key now is what was made last; one that is there is not made again."""

    @flow
    async def shows() -> Any:
        await MarkdownArtifact(key="report", markdown="# One", description="d").create()
        return await MarkdownArtifact(key="report", markdown="# Two").acreate()

    made = await shows()
    found = await MarkdownArtifact.aget("report")
    assert found is not None
    assert found == made
    assert (found.data, found.type, found.description) == ("# Two", "markdown", None)
    assert found.flow_run_id is not None
    assert await MarkdownArtifact.aget("nothing") is None
    assert await MarkdownArtifact.aget_or_create("report", markdown="# Three") == (made, False)
    table, is_new = await TableArtifact.aget_or_create("numbers", table=[{"a": 1}])
    assert (is_new, table.content, table.data) == (True, [{"a": 1}], '[{"a": 1}]')
    assert table == await TableArtifact.aget("numbers")


def test_the_contents_of_artifacts(caplog: pytest.LogCaptureFixture) -> None:
    """A link without a text is shown by its address; a percentage stays within its bounds, and that is said."""
    link = LinkArtifact(link="https://example.org")
    assert link.content() == {"href": "https://example.org", "text": "https://example.org"}
    assert link.format() == "[https://example.org](https://example.org)"
    assert ProgressArtifact(progress=120).format() == 100.0
    assert ProgressArtifact(progress=-1.5).format() == 0.0
    assert "120" in caplog.text


# --- errors ---------------------------------------------------------------------------------------------


async def test_what_is_there_already_is_a_value_error(session: Session) -> None:
    """As Prefect's; a block that is not there is one too, and a name that is none."""

    class Tiny(Block):
        size: int = 1

    await Variable.set("region", "eu", tags=["a"])
    with pytest.raises(ValueError, match="exists") as caught:
        await Variable.set("region", "us")
    assert isinstance(caught.value, ObjectAlreadyExists)
    assert await Variable.set("region", "us", overwrite=True) == Variable("region", "us")
    with pytest.raises(ValueError, match="no name for a variable"):
        await Variable.set("no name", 1)
    await Tiny().save("a")
    with pytest.raises(ValueError, match="exists"):
        await Tiny().save("a")
    with pytest.raises(ValueError, match="no block named"):
        await Tiny.load("b")
    assert (await Tiny.aload("a", validate=False)).size == 1
    assert Tiny.get_description() is None
    Tiny.register_type_and_schema()


async def test_waiting_for_a_run_in_vain_is_a_timeout(stage: Any) -> None:
    """And resuming what is not paused says so."""
    stage.write("@flow\ndef never(): pass")
    await stage.deploy("never")
    with use_session(stage.bus):
        run = await stage.ask("never")
        with pytest.raises(FlowRunWaitTimeout, match="has not ended within 0") as caught:
            await wait_for_flow_run(run.id, timeout=0.01, log_states=True)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(NotPausedError, match="not paused"):
            await resume_flow_run(run.id)


def test_a_result_that_cannot_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    """It says which result, and as what it could not be written."""
    store = ResultStore(tmp_path, serializer=JSONSerializer(object_encoder=None))
    with pytest.raises(SerializationError, match="'k', a object, cannot be written as json"):
        store.write(object(), "k")


def test_a_flow_is_loaded_by_its_entrypoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there, and a file that raises, are told apart."""
    (tmp_path / "some_flows.py").write_text(
        "from hark import flow\n@flow\ndef here(): return 1\nx = print\nfrom hark import task\n@task\ndef step(): ...\n"
    )
    (tmp_path / "broken_flows.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_flow_from_entrypoint("some_flows.py:here")() == 1
    with pytest.raises(MissingFlowError, match="did you mean 'here'"):
        load_flow_from_entrypoint("some_flows.py:hare")
    for other in ("x", "step"):
        with pytest.raises(MissingFlowError, match=f"Function with name '{other}' is not a flow"):
            load_flow_from_entrypoint(f"some_flows.py:{other}")
    with pytest.raises(ScriptError, match="ZeroDivisionError") as caught:
        load_flow_from_entrypoint("broken_flows.py:here")
    assert isinstance(caught.value.user_exc, ZeroDivisionError)


def test_the_only_flow_or_one_by_name_is_selected() -> None:
    """Several without a name, and none, are errors of their own."""

    @flow
    def one() -> None: ...

    @flow
    def two() -> None: ...

    assert select_flow([one]) is one
    assert select_flow([one, two], "two") is two
    with pytest.raises(UnspecifiedFlowError, match="one, two"):
        select_flow([one, two])
    with pytest.raises(MissingFlowError, match="'three' not found in 'this file'"):
        select_flow([one, two], "three", from_message="in this file")
    with pytest.raises(MissingFlowError, match="No flows found in this file"):
        select_flow([], from_message="in this file")


# --- states ---------------------------------------------------------------------------------------------


async def test_states_are_made_of_exceptions_and_values() -> None:
    """By the rules of runs."""
    failed = await exception_to_failed_state(ValueError("no"), message="It did not work:")
    assert (failed.name, failed.message) == ("Failed", "It did not work: ValueError: no")
    assert isinstance(await failed.aresult(raise_on_failure=False), ValueError)
    try:
        raise KeyError("k")
    except KeyError:
        assert (await exception_to_failed_state()).message == "KeyError: 'k'"
    with pytest.raises(ValueError, match="no active exception"):
        await exception_to_failed_state()
    crashed = await exception_to_crashed_state(KeyboardInterrupt())
    assert crashed.is_crashed()
    assert crashed.message == "Execution was aborted by an interrupt signal."
    assert format_exception(ValueError("x")) == "ValueError: x"
    assert (await return_value_to_state(3)).result() == 3
    mixed = await return_value_to_state([Completed(), Failed()])
    assert (mixed.name, mixed.message) == ("Failed", "1/2 states failed.")
    assert is_state_iterable([Completed()])
    assert not is_state_iterable([])
    assert not is_state_iterable([Completed(), 1])


# --- context --------------------------------------------------------------------------------------------


def test_contexts_have_prefects_names() -> None:
    """``TagsContext.get()`` works anywhere, the others say None outside of runs."""

    @task
    def inner() -> bool:
        context = TaskRunContext.get()
        return isinstance(context, RunContext)

    @flow
    def outer() -> tuple[bool, set[str], bool]:
        context = FlowRunContext.get()
        assert context is not None
        assert context.start_time is not None
        with tags("b"):
            return inner(), TagsContext.get().current_tags, isinstance(context, RunContext)

    with tags("a"):
        assert outer() == (True, {"a", "b"}, True)
    with TagsContext(current_tags={"x"}):
        assert TagsContext.get().current_tags == {"x"}
    assert TagsContext.get().current_tags == set()
    assert get_settings_context().settings == load_settings()


def test_a_function_with_context_is_in_the_run_in_any_thread() -> None:
    """So that it can log, and submit tasks; several threads at once."""

    @task
    def double(x: int) -> int:
        return 2 * x

    @flow
    def spreads() -> list[int]:
        found: list[int] = []

        @with_context
        def work(x: int) -> None:
            get_run_logger().info("in a thread")
            found.append(double.submit(x).result())

        threads = [threading.Thread(target=work, args=(x,)) for x in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(found)

    assert spreads() == [2, 4]


# --- marks on arguments ---------------------------------------------------------------------------------


def test_opaque_waits_for_a_future_and_looks_no_further() -> None:
    """Neither in its result nor in what is around it; a failure still counts."""

    @task
    def make(fail: bool = False) -> dict[str, Any]:
        if fail:
            raise ValueError("no")
        return {"inner": Completed(data=1)}

    @task
    def see(x: Any) -> Any:
        return quote(x)

    @flow
    def uses() -> Any:
        whole = see(opaque(make.submit()))
        kept = see(opaque([make]))
        failed = see(opaque(make.submit(fail=True)), return_state=True)
        allowed = see(allow_failure(make.submit(fail=True)))
        return quote((whole, kept, failed, allowed))

    whole, kept, failed, allowed = uses().unquote()
    assert isinstance(whole.unquote()["inner"], hark.State)
    assert kept.unquote()[0].name == "make"
    assert failed.name == "NotReady"
    assert isinstance(allowed.unquote(), ValueError)


def test_marks_can_be_put_on_other_values() -> None:
    """``rewrap``; ``freeze`` takes JSON only."""
    assert unmapped([1]).rewrap([2]) == unmapped([2])
    as_it_is: object = quote([1])
    assert unmapped([1]) != as_it_is
    assert unmapped(3)[7] == 3
    assert freeze({"a": 1}).unfreeze() == {"a": 1}
    with pytest.raises(ValueError, match="JSON"):
        freeze(object())
    assert isinstance(NotSet, type)


# --- loggers --------------------------------------------------------------------------------------------


def test_hooks_log_for_the_run_they_are_told_of() -> None:
    """Outside of it, as Prefect's hooks do."""
    seen: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append({"message": record.getMessage(), **vars(record)})

    def flow_hook(flow: Any, flow_run: Any, state: Any) -> None:
        flow_run_logger(flow_run, flow).info("flow hook", extra={"more": 1})

    def task_hook(task: Any, task_run: Any, state: Any) -> None:
        task_run_logger(task_run, task).info("task hook")

    @task(on_completion=[task_hook])
    def step() -> None: ...

    @flow(on_completion=[flow_hook])
    def whole() -> str:
        step()
        return str(hark.runtime.flow_run.id)

    keep = Keep()
    for name in ("hark.flow_runs", "hark.task_runs"):
        logging.getLogger(name).addHandler(keep)
    try:
        run_id = whole()
        flow_run_logger(flow_run_id="some-id").info("by id")
    finally:
        for name in ("hark.flow_runs", "hark.task_runs"):
            logging.getLogger(name).removeHandler(keep)
    found = {line["message"]: line for line in seen}
    assert found["flow hook"]["flow_run_id"] == found["task hook"]["flow_run_id"] == run_id
    assert found["flow hook"]["more"] == 1
    assert found["task hook"]["task_name"] == "step"
    assert found["by id"]["flow_run_id"] == "some-id"


def test_run_loggers_can_be_had_in_tests_and_say_nothing() -> None:
    """``task.fn`` that logs can be called outside of runs, inside ``disable_run_logger()``."""

    @task
    def logs() -> int:
        get_run_logger().info("heard by nobody")
        return 1

    with pytest.raises(MissingContextError):
        logs.fn()
    with LogEavesdropper("hark.flow_runs") as heard:
        with disable_run_logger():
            assert logs.fn() == 1
        get_run_logger(None) if FlowRunContext.get() else logging.getLogger("hark.flow_runs").info("after")
    assert heard.text() == "[INFO]: after"
    with pytest.raises(MissingContextError):
        logs.fn()


def test_printing_into_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that asks for it; elsewhere it is a print."""

    @flow(log_prints=True)
    def prints() -> None:
        print_as_log("for", "the log")

    with LogEavesdropper("hark.flow_runs") as heard:
        prints()
    print_as_log("plain")
    assert heard.text() == "[INFO]: for the log"
    assert capsys.readouterr().out == "plain\n"


# --- events ---------------------------------------------------------------------------------------------


async def test_events_are_emitted_as_prefect_emits_them(bus: Bus) -> None:
    """The resource is the subject, the payload the data; labels and related resources are not lost."""
    when = datetime(2026, 1, 2, tzinfo=UTC)
    with use_session(bus):
        first = emit_event("Order Paid!", resource={"prefect.resource.id": "order/42"}, occurred=when)
        second = emit_event(
            "order.shipped",
            resource=Resource({"prefect.resource.id": "order/42", "kind": "web"}),
            related=[
                RelatedResource({"prefect.resource.id": "customer/7", "prefect.resource.role": "customer"})
            ],
            payload={"amount": 3},
            follows=first,
        )
        await bus.publisher.barrier()
    assert (first.type, first.subject, first.time, first.data) == ("order-paid", "order/42", when, {})
    assert second.data == {
        "amount": 3,
        "resource": {"kind": "web"},
        "related": [{"prefect.resource.id": "customer/7", "prefect.resource.role": "customer"}],
    }
    assert second.causationid == first.id


def test_resources_say_what_they_are() -> None:
    """Labels, of which the id has to be there, and of related ones the role."""
    about = Resource(root={"prefect.resource.id": "a", "prefect.resource.name": "A"})
    assert (about.id, about.name, about["prefect.resource.id"]) == ("a", "A", "a")
    with pytest.raises(EventInvalid, match=r"prefect\.resource\.id"):
        Resource({"kind": "x"})
    with pytest.raises(EventInvalid, match="role"):
        RelatedResource.model_validate({"prefect.resource.id": "a"})


async def test_an_event_that_was_made_beforehand_is_emitted(session: Session) -> None:
    """As it is, with its id and its time; sent twice it is stored once."""
    when = datetime(2026, 1, 2, tzinfo=UTC)
    made = Event(
        event="order.paid", resource={"prefect.resource.id": "order/42", "kind": "web"}, payload={"amount": 3},
        occurred=when, id="o-1",
    )  # fmt: skip
    async with get_events_client(checkpoint_every=1) as client:
        await client.emit(made)
        await client.emit(made)
    (stored,) = await events(session.bus, "hark.ev.order.paid")
    assert (stored.event.id, stored.event.subject, stored.event.time) == ("o-1", "order/42", when)
    assert stored.event.data == {"amount": 3, "resource": {"kind": "web"}}


@flow
def etl(day: str = "mon", size: int = 1) -> None: ...


def test_parameters_are_written_as_json() -> None:
    """What has no such form is named by its type; a bound object is left out."""

    class Point(BaseModel):
        x: int

    class Plant:
        @flow
        def grow(self, by: Any) -> None: ...

    assert etl.serialize_parameters({"a": Point(x=1), "b": Completed(), "c": object(), "d": {1}}) == {
        "a": {"x": 1},
        "b": "<State>",
        "c": "<object>",
        "d": [1],
    }
    plant = Plant()
    assert plant.grow.serialize_parameters({"self": plant, "by": 2}) == {"by": 2}


def test_the_decorator_is_an_object() -> None:
    """``@flow``, ``@flow()`` and ``flow(fn, …)`` are the same."""

    def plain() -> int:
        return 1

    assert flow(plain)() == flow()(plain)() == flow(plain, name="x")() == 1
    assert isinstance(flow(plain), Flow)


# --- blocks ---------------------------------------------------------------------------------------------


async def test_kinds_of_blocks_to_build_on(session: Session) -> None:
    """Their secrets are kept as such, and the logger is that of the run."""

    class Login(CredentialsBlock):
        token: SecretStr
        more: SecretDict

        def get_client(self) -> str:
            self.logger.info("asked for a client")
            return self.token.get_secret_value()

    await Login(token=SecretStr("t"), more={"a": "b"}).asave("one")
    found = await Login.aload("one")
    assert found.get_client() == "t"
    assert found.more["a"].get_secret_value() == "b"
    assert "b" not in repr(found.more)


async def test_a_webhook_block_calls_its_address(session: Session) -> None:
    """Sync and async, with its headers; the address is a secret."""
    heard: list[bytes] = []

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            raw = b""
            while b"\r\n\r\n" not in raw or not raw.endswith(b"}"):
                raw += await stream.receive()
            heard.append(raw)
            await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        hook = Webhook(url=SecretStr(f"http://127.0.0.1:{port}/x"), headers={"x-key": "k"})
        assert str(port) not in repr(hook)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, answer)
            assert (await hook.call({"a": 1})).text == "ok"
            assert (await to_thread.run_sync(hook._call, {"a": 2})).text == "ok"
            group.cancel_scope.cancel()
    assert [raw.startswith(b"POST /x") and b"x-key: k" in raw for raw in heard] == [True, True]


def test_compressed_serializers_have_names_of_their_own() -> None:
    """And read what the general one writes."""
    for made in (CompressedPickleSerializer(), CompressedJSONSerializer(compressionlib="bz2")):
        assert made.loads(made.dumps({"a": [1]})) == {"a": [1]}
