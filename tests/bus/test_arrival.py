"""Reading the protocol from the socket: however the bytes are cut, the messages are the same."""

from __future__ import annotations

import asyncio

import pytest
from hark.bus import Bus
from hark.bus.arrival import Arrival, DirectClient, _DirectParser, parse_headers, subscribe, unsubscribe
from hark.bus.fast_ingest import Ended, FastBatch, Gap, Plain, Progress, Refused, read_answer
from hark.bus.lane import Outgoing
from hark.bus.wire import Wire, _frames, frame, header_lines
from hark.errors import EventInvalid
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import ProtocolError

MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["a", "hark.ev.x.y"]),
        st.sampled_from(["", "_INBOX.reply"]),
        st.binary(max_size=300) | st.just(b"\r\nMSG x 1 0\r\n") | st.integers(70_000, 90_000).map(bytes),
        st.sampled_from([b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n"]),
    ),
    max_size=6,
)


def as_sent(subject: str, reply: str, data: bytes, block: bytes) -> bytes:
    """Return a message as the broker writes it."""
    middle = f" {reply}" if reply else ""
    if block:
        line = f"HMSG {subject} 7{middle} {len(block)} {len(block) + len(data)}\r\n"
    else:
        line = f"MSG {subject} 7{middle} {len(data)}\r\n"
    return line.encode() + block + data + b"\r\n"


@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_however_the_bytes_are_cut_the_messages_are_the_same(
    messages: list[tuple[str, str, bytes, bytes]], cuts: list[int]
) -> None:
    """Any cut of the stream, with other lines between, gives every message once and in order."""
    got: list[tuple[str, str, bytes, bytes]] = []

    async def feed() -> None:
        client = DirectClient()
        parser = client._ps
        assert isinstance(parser, _DirectParser)

        class _Subscription:
            _jsi = None
            _received = _max_msgs = 0

        def taken(arrival: Arrival) -> None:
            got.append((arrival.subject, arrival.reply, arrival.data, arrival.block))

        client.direct[7] = taken

        async def slow_way(sid: int, subject: bytes, reply: bytes, data: bytes, block: bytes | None) -> None:
            assert sid == 7
            taken(Arrival(subject.decode(), reply.decode(), data, block or b""))

        client._process_msg = slow_way  # type: ignore[assignment]
        stream = b"".join(as_sent(*message) + b"+OK\r\n" * (i % 2) for i, message in enumerate(messages))
        at = 0
        for cut in cuts:
            await parser.parse(stream[at : at + cut])
            at += cut
        await parser.parse(stream[at:])
        assert not parser.buf

    asyncio.run(feed())
    assert got == messages


def test_nonsense_ends_the_connection_and_not_the_reader() -> None:
    """A malformed line is a protocol error, upon which the client reconnects."""

    async def feed() -> None:
        await DirectClient()._ps.parse(b"MSG a b c\r\n")

    with pytest.raises(ProtocolError):
        asyncio.run(feed())


def test_headers_are_read_as_the_broker_writes_them() -> None:
    """Names, values, and the status that stands in the first line."""
    assert parse_headers(b"NATS/1.0\r\nA: b\r\nC:d: e \r\n\r\n") == {"A": "b", "C": "d: e"}
    assert parse_headers(b"NATS/1.0 404 No Messages\r\n\r\n") == {
        "Status": "404",
        "Description": "No Messages",
    }
    assert parse_headers(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}
    arrival = Arrival("a", "", b"", b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 3\r\n\r\n")
    assert arrival.status == 100
    assert dict(arrival.headers) == {
        "Status": "100",
        "Description": "Idle Heartbeat",
        "Nats-Last-Consumer": "3",
    }
    assert Arrival("a", "", b"", b"").status == 0


def test_headers_cannot_smuggle_lines() -> None:
    """Line breaks in values become blanks; names that are none are refused."""
    assert header_lines({"A": "b\r\nX: y"}) == "A: b X: y\r\n"
    with pytest.raises(EventInvalid):
        header_lines({"A\r\nX": "y"})
    with pytest.raises(EventInvalid, match="percent-encode"):
        header_lines({"A": "ü"})


def test_frames_can_be_taken_apart_for_the_detour() -> None:
    """What is written in one go can be published one by one."""
    data = frame("a.b", "r", "A: b\r\n", b"xy") + frame("c", "r", "", b"") + frame("d", "r", "", b"\r\nPUB")
    assert list(_frames(data)) == [
        ("a.b", "r", {"A": "b"}, b"xy"),
        ("c", "r", None, b""),
        ("d", "r", None, b"\r\nPUB"),
    ]


async def test_a_client_of_another_make_is_served_the_public_way(bus: Bus) -> None:
    """Without our client and its insides everything still works: frames through ``publish``, messages by callback."""
    options = bus.connection.address
    nc = Client()
    await nc.connect(
        servers=list(options.urls), user=options.user, password=options.password, token=options.token
    )
    try:
        got: list[Arrival] = []
        some, failed = asyncio.Event(), ValueError("a handler that fails")

        def on_arrival(arrival: Arrival) -> None:
            got.append(arrival)
            some.set()
            raise failed

        subscription = await subscribe(nc, "here.>", on_arrival)
        wire = Wire(nc)
        wire._direct = False
        wire.send(frame("here.x", "reply", "A: b\r\n", b"hello"))
        wire.send_parts([frame("here.y", "reply", "", b"")])
        async with asyncio.timeout(60):
            while len(got) < 2:
                some.clear()
                await some.wait()
        assert (got[0].subject, got[0].reply, got[0].data, dict(got[0].headers)) == (
            "here.x",
            "reply",
            b"hello",
            {"A": "b"},
        )
        assert got[1].status == 0
        await unsubscribe(subscription)
    finally:
        await nc.close()


def test_answers_of_the_broker_are_understood() -> None:
    """The answers seen on nats-server 2.15.1, word for word."""
    assert read_answer(b'{"type":"ack","seq":0,"msgs":200}') == Progress(0, 200)
    assert read_answer(b'{"stream":"HARK","seq":8,"batch":"b1","count":8}') == Ended(8)
    assert read_answer(b'{"type":"gap","last_seq":2,"seq":3}') == Gap()
    assert read_answer(b'{"stream":"HARK","seq":5}') == Plain()
    refused = read_answer(
        b'{"type":"err","seq":2,"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 12"}}'
    )
    assert isinstance(refused, Refused)
    assert refused.refusal.err_code == 10071
    assert isinstance(read_answer(b"nonsense"), Refused)


def test_a_batch_never_owes_more_than_its_window() -> None:
    """One message until it is opened, then three answers' worth; what is acknowledged leaves."""
    batch = FastBatch("inbox", "b3", 10)
    messages = [Outgoing("hark.ev.a", "Nats-Msg-Id: 1\r\n", b"x", "1") for _ in range(50)]
    assert batch.room == 1
    parts = batch.frames(messages[:1])
    assert parts[0].startswith(
        b"HPUB hark.ev.a inbox.b3.10.fail.1.0.$FI 28 29\r\nNATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n"
    )
    assert not batch.is_open
    assert batch.room == 0
    batch.flow = 10
    assert batch.room == 29
    batch.frames(messages[1:30])
    assert batch.room == 0
    assert batch.stored(20) == messages[:20]
    assert batch.stored(15) == []
    assert batch.room == 20
    assert batch.stored(99) == messages[20:30]
    assert batch.end_frame("hark.ev.end") == b"PUB hark.ev.end inbox.b3.10.fail.31.3.$FI 0\r\n\r\n"
    assert batch.room == 0
