"""Streams and buckets are as configured once a bus is entered, on new brokers, old ones and changed ones."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hark.bus import BUCKETS, Bus, EmbeddedBroker, Event
from hark.bus.connection import Connection
from hark.bus.streams import Features, all_specs, changes, features_of, losses_of
from hark.config import BusConfig
from hark.errors import DefinitionError, StreamFull, UnknownName

DAY_NS = 86_400 * 10**9


async def config_of(bus: Bus, stream: str) -> dict[str, Any]:
    """Return what the broker says a stream is."""
    found = (await bus.connection.api(f"STREAM.INFO.{stream}"))["config"]
    assert isinstance(found, dict)
    return found


async def test_the_streams_are_those_of_the_design(bus: Bus) -> None:
    """HARK, HARK_LOGS and HARK_WORK, with the abilities the rooms build on."""
    events = await config_of(bus, "HARK")
    assert events["subjects"] == ["hark.ev.>", "hark.timer.>"]
    assert events["retention"] == "limits"
    assert events["discard"] == "old"
    assert events["max_bytes"] == 8 << 30
    assert events["max_age"] == 365 * DAY_NS
    assert events["duplicate_window"] == 120 * 10**9
    assert events["allow_direct"]
    assert events["allow_msg_ttl"]
    assert events["allow_msg_schedules"]
    assert events["allow_batched"]
    assert events["compression"] == "none"
    logs = await config_of(bus, "HARK_LOGS")
    assert (logs["subjects"], logs["max_bytes"], logs["max_age"]) == (["hark.log.>"], 1 << 30, 14 * DAY_NS)
    work = await config_of(bus, "HARK_WORK")
    assert (work["subjects"], work["retention"]) == (["hark.work.>"], "workqueue")


async def test_every_bucket_is_there(bus: Bus) -> None:
    """All buckets of the contract, each with one value per key; others are refused with a suggestion."""
    answer = await bus.connection.api("STREAM.NAMES", {})
    names = answer["streams"]
    assert isinstance(names, list)
    for bucket in BUCKETS:
        assert f"KV_hark_{bucket}" in names
        assert bus.bucket(bucket) is bus.bucket(bucket)
    with pytest.raises(UnknownName, match="did you mean 'variables'"):
        bus.bucket("variable")


async def test_the_broker_is_described(bus: Bus) -> None:
    """Version, limits and abilities, without the password."""
    info = bus.info
    assert info.version.startswith("2.")
    assert info.max_payload == 1 << 20
    assert info.fast_ingest
    assert info.schedules
    assert info.message_ttl
    assert info.losses == ()
    assert info.url.startswith("nats://127.0.0.1:")
    assert "@" not in info.url


async def test_changed_limits_are_applied_at_the_next_start(broker: EmbeddedBroker) -> None:
    """``max_bytes`` and the like follow the configuration; what is stored stays."""
    async with Bus(broker.address, BusConfig()) as bus:
        await bus.log.append(Event(type="order.paid", source="/t"))
    changed = BusConfig(max_bytes=1 << 28, max_age_days=7, logs_max_age_days=1, dedup_window_s=60)
    async with Bus(broker.address, changed) as bus:
        events = await config_of(bus, "HARK")
        assert (events["max_bytes"], events["max_age"]) == (1 << 28, 7 * DAY_NS)
        assert events["duplicate_window"] == 60 * 10**9
        assert (await config_of(bus, "HARK_LOGS"))["max_age"] == DAY_NS
        assert await bus.log.head() == 1


async def test_a_guest_changes_nothing(broker: EmbeddedBroker) -> None:
    """User code and workers have their own defaults; those must not undo the server's settings."""
    async with Bus(broker.address, BusConfig(max_bytes=1 << 28)):
        pass
    async with Bus(broker.address, BusConfig(), manage=False) as bus:
        assert (await config_of(bus, "HARK"))["max_bytes"] == 1 << 28
        await bus.log.append(Event(type="order.paid", source="/t"))


async def test_what_an_operator_added_stays(broker: EmbeddedBroker) -> None:
    """A field Hark has no opinion on is left as it is when another one changes."""
    async with Bus(broker.address, BusConfig()) as bus:
        found = await config_of(bus, "HARK")
        await bus.connection.api(
            "STREAM.UPDATE.HARK", {**found, "metadata": {"team": "data"}, "max_msg_size": 500_000}
        )
    async with Bus(broker.address, BusConfig(max_bytes=1 << 28)) as bus:
        found = await config_of(bus, "HARK")
        assert found["max_bytes"] == 1 << 28
        assert found["metadata"]["team"] == "data"
        assert found["max_msg_size"] == 500_000


async def test_a_stream_that_cannot_be_changed_is_said(broker: EmbeddedBroker) -> None:
    """The error names the stream, the field, both values, and what to do."""
    async with Connection(broker.address, BusConfig()) as connection:
        await connection.api(
            "STREAM.CREATE.HARK_WORK", {"name": "HARK_WORK", "subjects": ["hark.work.>"], "storage": "memory"}
        )
    with pytest.raises(DefinitionError, match=r"HARK_WORK .*storage: 'memory' -> 'file'") as caught:
        async with Bus(broker.address, BusConfig()):
            pass
    assert "nats stream rm HARK_WORK" in caught.value.hint


SMALL = BusConfig(work_max_bytes=1 << 20, buckets_max_bytes=1 << 20, objects_max_bytes=1 << 20)


async def test_everything_on_the_broker_has_a_bound(broker: EmbeddedBroker) -> None:
    """Streams made without one get theirs at the next start."""
    async with Connection(broker.address, BusConfig()) as connection:
        await connection.api(
            "STREAM.CREATE.HARK_WORK",
            {"name": "HARK_WORK", "subjects": ["hark.work.>"], "retention": "workqueue", "storage": "file"},
        )
        for spec in all_specs(BusConfig(), features_of((2, 14, 0), BusConfig())):
            if spec["name"].startswith(("KV_", "OBJ_")):
                await connection.api(
                    f"STREAM.CREATE.{spec['name']}",
                    {
                        **spec,
                        "max_bytes": -1,
                        "max_age": 0,
                        "allow_msg_ttl": False,
                        "subject_delete_marker_ttl": 0,
                    },
                )
    async with Bus(broker.address, SMALL) as bus:
        for spec in all_specs(SMALL, features_of((2, 14, 0), SMALL)):
            found = await config_of(bus, spec["name"])
            assert found["max_bytes"] > 0 or found["max_msgs"] > 0, spec["name"]
        work, objects = await config_of(bus, "HARK_WORK"), await config_of(bus, "OBJ_hark_objects")
        assert (work["max_bytes"], work["discard"]) == (1 << 20, "new")
        assert (objects["max_age"], objects["allow_msg_ttl"]) == (365 * DAY_NS, True)


async def test_what_is_full_says_so_at_once_and_takes_more_when_something_has_left(
    broker: EmbeddedBroker,
) -> None:
    """Work, buckets and objects refuse rather than forget."""
    big = b"x" * 300_000
    async with Bus(broker.address, SMALL) as bus:
        blocks = bus.bucket("blocks")
        for n in range(3):
            await bus.work.push("p", "q", big, msg_id=str(n))
            await blocks.put(f"k{n}", big)
            await bus.objects.put(f"o{n}", big)
        with pytest.raises(StreamFull, match=r"no room for 'hark\.work\.p\.q'"):
            await bus.work.push("p", "q", big, msg_id="more")
        with pytest.raises(StreamFull, match="maximum bytes") as caught:
            await blocks.put("more", big)
        assert "HARK_BUS__BUCKETS_MAX_BYTES" in caught.value.hint
        with pytest.raises(StreamFull):
            await bus.objects.put("more", big)
        await blocks.put("k0", b"y" * 300_000)
        await blocks.delete("k0")
        await blocks.put("more", big)
        await bus.objects.delete("o0")
        await bus.objects.put("more", big)
        assert await bus.objects.get("more") == big


async def test_subjects_taken_by_another_stream_are_said(broker: EmbeddedBroker) -> None:
    """Two streams cannot hold one subject."""
    async with Connection(broker.address, BusConfig()) as connection:
        await connection.api("STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["hark.ev.order.>"]})
    with pytest.raises(DefinitionError, match="HARK ") as caught:
        async with Bus(broker.address, BusConfig()):
            pass
    assert "hark.ev.>" in caught.value.hint


async def test_copies_that_one_server_cannot_hold_are_said(broker: EmbeddedBroker) -> None:
    """``replicas: 3`` needs a cluster."""
    with pytest.raises(DefinitionError, match="cannot be set up") as caught:
        async with Bus(broker.address, BusConfig(replicas=3)):
            pass
    assert "HARK_BUS__REPLICAS" in caught.value.hint


async def test_more_room_than_the_broker_has_is_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The hint names the settings."""
    async with EmbeddedBroker(tmp_path_factory.mktemp("home"), BusConfig(max_bytes=1 << 20)) as broker:
        with pytest.raises(DefinitionError) as caught:
            async with Bus(broker.address, BusConfig(max_bytes=1 << 50)):
                pass
        assert "HARK_BUS__MAX_BYTES" in caught.value.hint


async def test_an_older_broker_works_with_a_stated_loss(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Without fast ingest and schedules everything works, slower, and it is said once, at the start."""
    old = BusConfig(fast_ingest=False, schedules=False)
    with caplog.at_level(logging.WARNING, "hark.bus"):
        async with Bus(broker.address, old) as bus:
            assert not bus.info.fast_ingest
            assert not bus.info.schedules
            assert len(bus.info.losses) == 2
            found = await config_of(bus, "HARK")
            assert not found.get("allow_batched")
            assert not found.get("allow_msg_schedules")
            for number in range(100):
                bus.publisher.publish_nowait(Event(type="order.paid", source="/t", data=number))
            await bus.publisher.barrier()
            assert await bus.log.head() == 100
    assert [r.getMessage() for r in caplog.records].count("bus.older_broker") == 2


async def test_an_upgraded_broker_gets_its_abilities(broker: EmbeddedBroker) -> None:
    """Streams made by an older broker are changed at the first start on a newer one."""
    async with Bus(broker.address, BusConfig(fast_ingest=False, schedules=False)):
        pass
    async with Bus(broker.address, BusConfig()) as bus:
        found = await config_of(bus, "HARK")
        assert found["allow_batched"]
        assert found["allow_msg_schedules"]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((2, 10, 29), Features(message_ttl=False, schedules=False, fast_ingest=False)),
        ((2, 11, 0), Features(message_ttl=True, schedules=False, fast_ingest=False)),
        ((2, 12, 4), Features(message_ttl=True, schedules=True, fast_ingest=False)),
        ((2, 14, 0), Features(message_ttl=True, schedules=True, fast_ingest=True)),
        ((3, 0, 0), Features(message_ttl=True, schedules=True, fast_ingest=True)),
    ],
)
def test_abilities_follow_the_version(version: tuple[int, int, int], expected: Features) -> None:
    """Each came with a release."""
    assert features_of(version, BusConfig()) == expected
    assert len(losses_of(expected)) == 3 - sum(
        (expected.message_ttl, expected.schedules, expected.fast_ingest)
    )


def test_an_old_broker_is_asked_for_nothing_it_does_not_know() -> None:
    """Fields of later releases are left out of every stream."""
    specs = all_specs(BusConfig(), features_of((2, 10, 0), BusConfig()))
    known_later = {"allow_batched", "allow_msg_schedules", "allow_msg_ttl", "subject_delete_marker_ttl"}
    assert all(not known_later & spec.keys() for spec in specs)


def test_copies_are_not_taken_away_by_a_default() -> None:
    """An operator's three copies stay until the configuration says one, in so many words."""
    assert changes({"num_replicas": 1}, {"num_replicas": 3}, shrink_replicas=False) == {}
    assert changes({"num_replicas": 1}, {"num_replicas": 3}, shrink_replicas=True) == {"num_replicas": 1}
    assert changes({"num_replicas": 3}, {"num_replicas": 1}, shrink_replicas=False) == {"num_replicas": 3}


def test_left_out_fields_stand_for_their_zero() -> None:
    """The broker leaves false and zero out of its answers; that is no difference."""
    assert changes({"max_bytes": -1, "max_age": 0, "allow_direct": False}, {}, shrink_replicas=False) == {}
