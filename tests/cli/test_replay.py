"""`hark events replay`, against a real service; how an event is repeated, without one."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hark.bus.event import Event
from hark.server.replay import replayed

from tests.cli.conftest import Run, Serve, as_json

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_replay_is_a_new_event_that_names_the_first() -> None:
    """All that the first said is in it, under an id and at a time of its own; no chain becomes longer."""
    first = Event(
        type="order.paid", source="/shop", id="o1", subject="order/1", data={"n": 1.5}, causaldepth=3,
        partitionkey="p", correlationid="story", expirytime=NOON, extensions={"tenant": "a"},
    )  # fmt: skip
    again = replayed(first, replay_id="r", at=NOON)
    assert again.id != "o1"
    assert again == first.replace(
        id=again.id, time=NOON, replayof="o1", replayid="r", causationid="o1", expirytime=None
    )
    assert replayed(again, replay_id="s", at=NOON).replayof == again.id


async def test_past_events_are_emitted_again_and_rules_act_on_them(serve: Serve, hark: Run) -> None:
    """First it is shown, and nothing happens without a yes; then each is a new event, which no later replay repeats."""
    async with serve() as service:
        for number in ("1", "2"):
            await hark(
                "emit",
                "order.paid",
                "--subject",
                f"order/{number}",
                "--data",
                '{"shop": "eu"}',
                "--id",
                f"o{number}",
            )
        projector = service.parts.running("projector")
        await projector.caught_up(await service.bus.log.head(), timeout_s=60)
        words = ("events", "replay", "--type", "order.*", "--type", "hark.>", "--since", "1h")
        shown = await hark(*words, "--dry-run")
        assert shown.exit_code == 0, shown.output
        assert "2 to emit again: 2 order.paid" in shown.stdout
        unsure = await hark(*words)
        assert (unsure.exit_code, "add --yes" in unsure.stderr) == (0, True)

        done = as_json(await hark(*words, "--yes", "--json"))
        assert [one["replayof"] for one in done["emitted"]] == ["o1", "o2"]
        fired = await hark(
            "events", "watch", "automation.triggered", "--after", "0", "--count", "4", "--json"
        )
        assert len(fired.stdout.splitlines()) == 4
        await projector.caught_up(await service.bus.log.head(), timeout_s=60)
        event = as_json(await hark("events", "show", done["emitted"][0]["id"], "--json"))["event"]
        assert (event["replayof"], event["replayid"], event["causationid"]) == ("o1", done["replayid"], "o1")
        assert (event["type"], event["subject"], event["data"]) == ("order.paid", "order/1", {"shop": "eu"})

        later = as_json(await hark(*words, "--dry-run", "--json"))
        assert [one["id"] for one in later["events"]] == ["o1", "o2"]
        assert later["left_out"]["replays"] == 2
        one = as_json(await hark("events", "replay", "o2", "--yes", "--json"))
        assert [e["replayof"] for e in one["emitted"]] == ["o2"]
        own = json.loads(fired.stdout.splitlines()[0])["event"]["id"]
        for wrong, said in (
            ((), "say which events"), (("o1", "--since", "1h"), "say which events"), (("nope",), "nope"),
            ((own,), "Hark's own"), (("--type", "order.*", "--limit", "1"), "more than 1 events"),
        ):  # fmt: skip
            refused = await hark("events", "replay", *wrong, "--yes")
            assert (refused.exit_code, refused.stdout) == (2, ""), wrong
            assert said in " ".join(refused.stderr.replace("│", " ").split()), (wrong, refused.stderr)
