"""Inputs sent to runs while they run: kept until somebody receives them, in order, typed, and answered."""

from __future__ import annotations

import asyncio

import pytest
from hark import flow, get_client
from hark.bus.event import Event
from hark.bus.session import Session
from hark.engine.pausing.kept_inputs import (
    INPUT_DELETED,
    FlowRunInput,
    create_flow_run_input,
    create_flow_run_input_from_model,
    filter_flow_run_input,
    keyset_from_base_key,
    keyset_from_paused_state,
    read_flow_run_input,
)
from hark.engine.pausing.mailbox import INPUT_SENT
from hark.engine.run_input import (
    AutomaticRunInput,
    RunInput,
    receive_input,
    run_input_subclass_from_type,
    send_input,
)
from hark.engine.runs.run import SOURCE
from hark.engine.states import Completed, Suspended
from hark.errors import InvalidNameError, MissingContextError, ParameterError, UnknownName
from hark.vocabulary import JsonObject, JsonValue


class Order(RunInput):
    item: str
    count: int = 1


class Accepted(RunInput):
    item: str


async def test_inputs_of_a_type_come_in_order_and_wait_for_who_receives(session: Session) -> None:
    """Those sent before anybody listened first; other types and other runs' are not among them."""
    ids: asyncio.Queue[str] = asyncio.Queue()
    sent = asyncio.Event()

    @flow
    async def receives() -> list[object]:
        from hark import runtime

        ids.put_nowait(str(runtime.flow_run.id))
        await sent.wait()
        numbers = [n async for n in receive_input(int, timeout=1.5)]
        orders = [order.item async for order in Order.receive(timeout=1.5)]
        texts = [text async for text in receive_input(list[str], timeout=1.5)]
        return [numbers, orders, texts]

    one, other = asyncio.ensure_future(receives()), asyncio.ensure_future(receives())
    id_, other_id = await ids.get(), await ids.get()
    for n in (3, 1, 2):
        await send_input(n, id_)
    await Order(item="tea").send_to(id_)
    await send_input(Order(item="cake", count=2), id_)
    await send_input(["a", "b"], id_)
    await send_input(7, other_id)
    sent.set()
    assert await one == [[3, 1, 2], ["tea", "cake"], [["a", "b"]]]
    assert await other == [[7], [], []]


async def test_a_run_answers_who_sent_it_an_input(session: Session) -> None:
    """Between two runs: the sender is the run, and `respond` goes back to it."""
    server_id: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @flow
    async def server() -> str | None:
        from hark import runtime

        server_id.set_result(str(runtime.flow_run.id))
        order: Order = await Order.receive().next()
        await order.respond(Accepted(item=order.item))
        number = await receive_input(int, with_metadata=True).next()
        assert isinstance(number, AutomaticRunInput)
        await number.respond(number.value + 1)
        return order.metadata.sender

    @flow
    async def client() -> tuple[str, int, str]:
        from hark import runtime

        await Order(item="tea").send_to(await server_id)
        accepted = await Accepted.receive().next()
        await send_input(41, await server_id)
        return accepted.item, await receive_input(int).next(), f"prefect.flow-run.{runtime.flow_run.id}"

    sender, (item, answer, client_id) = await asyncio.gather(server(), client())
    assert (item, answer, sender) == ("tea", 42, client_id)


async def test_sync_flows_receive_in_a_plain_loop(session: Session) -> None:
    """The same words without await; waiting ends with the loop, or with an error if that is wished."""

    @flow
    def talks_to_itself() -> list[int]:
        from hark import runtime

        for n in range(3):
            send_input(n, str(runtime.flow_run.id))
        found = list(receive_input(int, timeout=1.5))
        with pytest.raises(TimeoutError):
            list(receive_input(float, timeout=0.05, raise_timeout_error=True))
        return found

    assert await asyncio.to_thread(talks_to_itself) == [0, 1, 2]


async def test_an_input_that_does_not_fit_is_an_error_that_says_so(session: Session) -> None:
    """And so is one for nobody, or an answer to nobody."""
    ids: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @flow
    async def receives() -> None:
        from hark import runtime

        ids.set_result(str(runtime.flow_run.id))
        await receive_input(int, key_prefix="n").next()

    run = asyncio.ensure_future(receives())
    await send_input("no number", await ids, key_prefix="n", sender="ann")
    with pytest.raises(ParameterError, match="does not fit"):
        await run
    with pytest.raises(UnknownName):
        await send_input(1, "nobody")
    with pytest.raises(MissingContextError, match="nobody to receive"):
        receive_input(int)
    with pytest.raises(MissingContextError, match="was not received"):
        await Order(item="x").respond(1)
    found = await receive_input(str, key_prefix="n", flow_run_id=await ids, with_metadata=True).next()
    with pytest.raises(MissingContextError, match="its sender is ann"):
        await found.respond(1)


async def test_inputs_are_kept_under_keys_and_found_by_what_they_begin_with(session: Session) -> None:
    """One of a key at a time, until it is deleted; those that begin with what is received are received, too."""
    flow_run_id = await _over()
    other = await _over()
    await create_flow_run_input("key-1", {"a": 1}, flow_run_id)
    await create_flow_run_input_from_model("order-auto-7", Order(item="tea"), flow_run_id, sender="ann")
    await create_flow_run_input("key-1", 2, other)
    with pytest.raises(InvalidNameError, match="already"):
        await create_flow_run_input("key-1", 3, flow_run_id)
    with pytest.raises(InvalidNameError, match="no key"):
        await create_flow_run_input("key 1", 3, flow_run_id)
    with pytest.raises(MissingContextError):
        await create_flow_run_input("key-1", 3)
    assert await read_flow_run_input("key-1", flow_run_id) == {"a": 1}
    found = await filter_flow_run_input("", limit=9, flow_run_id=flow_run_id, exclude_keys={"key-1"})
    assert [(one.key, one.sender, one.decoded_value["item"]) for one in found] == [
        ("order-auto-7", "ann", "tea")
    ]
    assert (await Order.receive(flow_run_id=flow_run_id, timeout=5).next()).item == "tea"
    async with get_client() as client:
        assert await client.read_flow_run_input(flow_run_id, "key-1") == '{"a":1}'
        await client.delete_flow_run_input(flow_run_id, "key-1")
    assert await read_flow_run_input("key-1", flow_run_id) is None
    for _ in range(2):  # the second time by the flow that is run again
        await create_flow_run_input("key-1", 4, flow_run_id)
    assert await read_flow_run_input("key-1", flow_run_id) == 4
    with pytest.raises(InvalidNameError, match="another input"):
        await create_flow_run_input("key-1", 4, flow_run_id, sender="ann")


async def test_messages_that_are_no_inputs_are_passed_over(session: Session) -> None:
    """Anybody may publish there; those that say it as older versions did are inputs, and answered."""
    flow_run_id = await _over()
    said: JsonObject = {
        "run": {"id": flow_run_id},
        "prefix": None,
        "sender": f"flow-run/{flow_run_id}",
        "value": 1,
    }
    lacking: list[JsonValue] = [
        None, [], {"run": 1}, {**said, "key": 1}, {**said, "key": []}, {**said, "key": "int-auto-2", "sender": 3},
    ]  # fmt: skip
    for type_ in (INPUT_SENT, INPUT_DELETED):
        for data in lacking:
            await session.bus.log.append(Event(type=type_, source=SOURCE, data=data))
        await session.bus.publisher.publish_raw(f"hark.ev.{type_}", b'{"id"', f"{type_}-rubbish")
    await session.bus.log.append(Event(type=INPUT_SENT, source=SOURCE, data={**said, "key": "int-auto-1"}))
    assert [one.key for one in await filter_flow_run_input("", limit=9, flow_run_id=flow_run_id)] == [
        "int-auto-1"
    ]
    await asyncio.gather(*[create_flow_run_input("key", {"b": 1, "a": 2}, flow_run_id) for _ in range(3)])
    await create_flow_run_input("key", {"a": 2, "b": 1}, flow_run_id)
    async with session.bus.log.read([f"hark.ev.{INPUT_SENT}.{flow_run_id}"]) as batches:
        stored = [one.raw async for batch in batches for one in batch.records]
    assert sum(b'"key":"key"' in raw for raw in stored) == 1
    found = await receive_input(int, flow_run_id=flow_run_id, with_metadata=True).next()
    await found.respond("an answer")
    assert await receive_input(str, flow_run_id=flow_run_id).next() == "an answer"


async def test_a_form_is_saved_and_its_answer_loaded_by_a_set_of_keys(session: Session) -> None:
    """With what is filled in already, and its description; in a flow, of that run."""
    assert Order.keyset_from_type() == keyset_from_base_key("order")
    assert keyset_from_paused_state(Suspended(pause_key="1")) == keyset_from_base_key("suspended-1")
    with pytest.raises(RuntimeError, match="unsupported"):
        keyset_from_paused_state(Completed())

    @flow
    def asks() -> Order:
        keys = keyset_from_base_key("ask")
        Order.with_initial_data("Drink?", item="tea", sugar=2).save(keys)
        schema = read_flow_run_input(keys["schema"])["properties"]
        assert (schema["item"]["default"], schema["sugar"]["type"]) == ("tea", "integer")
        assert read_flow_run_input(keys["description"]) == "Drink?"
        create_flow_run_input(keys["response"], {"item": "milk"})
        order: Order = Order.load(keys)
        return order

    order = await asyncio.to_thread(asks)
    assert (order.item, order.metadata.key, order.metadata.sender) == ("milk", "ask-response", None)
    kept = FlowRunInput(
        flow_run_id=str(order.metadata.receiver), key="k", value='{"item": "rum"}', sender="bob"
    )
    assert (
        Order.load_from_flow_run_input(kept).item,
        Order.load_from_flow_run_input(kept).metadata.sender,
    ) == ("rum", "bob")
    made = run_input_subclass_from_type(int)
    assert issubclass(made, AutomaticRunInput)
    await made(value=3).send_to(order.metadata.receiver)
    assert await made.receive(flow_run_id=order.metadata.receiver).next() == 3


async def _over() -> str:
    """Return the id of a run that is over."""

    @flow
    async def done() -> str:
        from hark import runtime

        return str(runtime.flow_run.id)

    return await done()
