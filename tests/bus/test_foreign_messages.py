"""What others publish under ``hark.ev.``: events in any mode are events, and the rest stops nobody."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import anyio
import orjson
import pytest
from hark.bus import Bus
from hark.bus.event import Recorded, lacking, readable
from hark.errors import EventInvalid
from hypothesis import given
from hypothesis import strategies as st

BINARY = {
    "ce-specversion": "1.0", "ce-id": "7", "ce-source": "/shop", "ce-type": "order.paid", "ce-subject": "order/42",
    "ce-shop": "eu", "content-type": "application/json",
}  # fmt: skip
AT = datetime(2026, 1, 1, tzinfo=UTC)
GOOD: dict[str, Any] = {"type": "order.paid", "source": "/shop", "id": "7"}


def a_record(raw: bytes, seq: int = 1) -> Recorded:
    return Recorded(seq, "hark.ev.order.paid", AT, raw)


async def put(bus: Bus, payload: bytes, headers: dict[str, str] | None = None) -> None:
    await bus.publisher.publish_raw("hark.ev.order.paid", payload, str(len(payload)), headers)
    await bus.publisher.barrier()


async def test_a_cloudevent_in_binary_mode_is_an_event_to_every_reader(bus: Bus) -> None:
    """However it is read, and as often as it is read, it is the same event, in JSON."""
    await put(bus, b'{"n": 1}', BINARY)
    found = [await bus.log.get(1), await bus.log.last("hark.ev.order.>")]
    async with bus.log.read() as batches:
        async for batch in batches:
            found += batch.records
    with anyio.fail_after(60):
        async with bus.log.follow(after=0) as batches:
            found += (await anext(batches)).records
        async with bus.log.consume("test", ["hark.ev.>"], deliver_after=0) as items:
            found += [item.recorded for item in await items.fetch(1)]
    assert len(found) == 5
    for record in found:
        assert record is not None
        event = record.event
        assert (event.id, event.source, event.type, event.subject) == ("7", "/shop", "order.paid", "order/42")
        assert (event.data, event.extensions) == ({"n": 1}, {"shop": "eu"})
        assert event.time == record.recorded_at, "it has no time of its own"
        assert orjson.loads(record.raw)["data"] == {"n": 1}
        assert record.raw == found[0].raw  # type: ignore[union-attr]


async def test_what_is_no_event_is_passed_over_and_told_once(
    bus: Bus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads the events of the log does not meet it; the process's log names its place and what is wrong."""
    # Other tests have told of such places in logs of their own.
    monkeypatch.setattr("hark.bus.event._told", set())
    await put(bus, b"\0not json")
    await put(bus, b'{"type": "order.paid", "data": 1}')
    await put(bus, b"body", {"ce-specversion": "1.0", "ce-type": "order.paid"})
    await put(bus, orjson.dumps(GOOD))
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        async with bus.log.read() as batches:
            seqs = [r.seq async for batch in batches for r in readable(batch.records)]
        assert seqs == [4]
    told = [record for record in caplog.records if record.message == "log.not_an_event"]
    assert [record.seq for record in told] == [1, 2, 3]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": ""}, "id and source"),
        ({"id": None}, "id and source"),
        ({"source": 5}, "id and source"),
        ({"type": "Order Paid"}, "lower-case dotted words"),
        ({"type": None}, "lower-case dotted words"),
        ({"type": ["a"]}, "lower-case dotted words"),
        ({"specversion": "0.3"}, "specversion"),
    ],
)
def test_an_event_has_a_type_a_source_and_an_id(change: dict[str, Any], says: str) -> None:
    """One without them is refused by all readers alike."""
    row = {**GOOD, **change}
    assert says in (lacking(row) or "")
    with pytest.raises(EventInvalid):
        a_record(orjson.dumps(row)).event  # noqa: B018


def test_the_rest_of_an_event_may_be_wrong() -> None:
    """What breaks the specification is left out; without a time it occurred when it was recorded."""
    row = {
        **GOOD,
        "time": "yesterday",
        "causaldepth": -1,
        "Bad-Name": 1,
        "list": [1],
        "subject": "s",
        "ok": 1,
    }
    event = a_record(orjson.dumps(row)).event
    assert (event.id, event.subject, event.causaldepth, event.extensions) == ("7", "s", 0, {"ok": 1})
    assert a_record(orjson.dumps(GOOD)).event.time == AT


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4), lambda v: st.lists(v, max_size=2)
)
NAMES = st.sampled_from([
    "type", "source", "id", "specversion", "time", "subject", "causaldepth", "data", "data_base64", "X", "ext",
])  # fmt: skip


@given(st.dictionaries(NAMES, VALUES))
def test_an_event_can_be_read_exactly_if_it_lacks_nothing(change: dict[str, Any]) -> None:
    """Rules ask the one and others the other; they never disagree."""
    row = {**GOOD, **change}
    assert [r.seq for r in readable([a_record(orjson.dumps(row))])] == ([] if lacking(row) else [1])
