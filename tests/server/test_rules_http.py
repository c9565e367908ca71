"""Rules and channels over HTTP: what is shown of them is what happened."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hark.cli.automations import _done
from hark.errors import UnavailableError
from hark.server.client import Hark

if TYPE_CHECKING:
    from .conftest import Start

CONFIG = """
channels:
  nowhere: {urls: ["json://127.0.0.1:1"]}
automations:
  paid: {on: shop.paid, do: [{emit: shop.late, delay: 6h}, {emit: shop.seen}]}
  other: {on: shop.other, do: [{emit: shop.seen}]}
  broken: {on: shop.broken, do: [{emit: shop.seen, subject: "{{ event.data.nobody }}"}]}
"""


async def test_a_firing_is_shown_with_its_actions_under_its_own_rule(start: Start) -> None:
    """The listing of a rule says what became of each firing's actions, or when they are due; another rule's name finds nothing."""
    async with start(config=CONFIG) as (_, http):
        await http.post("/api/events", json={"type": "shop.paid"})
        firings: list[Any] = []
        with anyio.fail_after(60):
            while not (firings and len(firings[0]["actions"]) == 2):
                firings = (await http.get("/api/automations/paid")).json()["firings"]
        done, late = firings[0]["actions"]
        assert (done["kind"], done["state"], done["due_at"]) == ("emit", "executed", None)
        assert (late["kind"], late["state"]) == ("emit", "waiting")
        waits = datetime.fromisoformat(late["due_at"]) - datetime.fromisoformat(firings[0]["triggered_at"])
        assert waits == timedelta(hours=6)
        assert _done([done, late]) == "emit executed, emit waiting (due in 6h)"
        path = f"firings/{firings[0]['id']}"
        shown = (await http.get(f"/api/automations/paid/{path}")).json()
        assert (len(shown["actions"]), shown["waiting"]) == (1, [late])
        assert "<td>waiting until 20" in (await http.get(f"/{path}")).text
        missing = await http.get(f"/api/automations/other/{path}")
        assert (missing.status_code, "firing of 'other'" in missing.text) == (404, True)


async def test_a_rule_whose_actions_are_given_up_says_so_until_somebody_sees_to_them(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its status and in the listing, with the reason; dead letters are listed by rule; dropped, nothing is said."""
    async with start(config=CONFIG) as (service, http):
        await http.post("/api/events", json={"type": "shop.broken", "data": {}})
        letters: list[Any] = []
        with anyio.fail_after(60):
            while not letters:
                letters = (await http.get("/api/dlq?automation=broken")).json()["items"]
        assert (await http.get("/api/dlq?automation=paid")).json()["items"] == []
        async with Hark(service.url) as hark:
            assert await hark.all_dead_letters(automation="broken") == letters
            assert await hark.all_dead_letters(automation="paid") == []
            assert [page async for page in hark.drop_all(automation="paid")] == [
                {"ids": [], "left": [], "next_cursor": None}
            ]
        [problem] = (await http.get("/api/automations/broken")).json()["problems"]
        assert problem.startswith("1 action was given up: template")
        assert problem.endswith("`hark dlq redrive --rule broken` tries again")
        listed = (await http.get("/api/automations")).json()["items"]
        assert {one["name"]: one["problems"] for one in listed} == {
            "broken": [problem],
            "other": [],
            "paid": [],
        }
        # The same for people: from the status page to the firing, and a button.
        firing = letters[0]["firing"]
        assert f'href="/firings/{firing}"' in (await http.get("/")).text
        page = (await http.get(f"/firings/{firing}")).text
        assert "shop.broken" in page
        assert f'name="letter" value="{letters[0]["id"]}"' in page
        wrong = await http.post(f"/firings/{firing}/redrive", data={"letter": "other/0"})
        assert wrong.status_code == 422
        pressed = await http.post(f"/firings/{firing}/redrive", data={"letter": letters[0]["id"]})
        assert (pressed.status_code, pressed.headers["location"]) == (303, f"/firings/{firing}")
        with anyio.fail_after(60):
            while not (await http.get("/api/dlq?automation=broken")).json()["items"]:
                await anyio.lowlevel.checkpoint()

        async def behind(seq: int) -> None:
            raise UnavailableError(f"event {seq} cannot be read yet")

        projector = service.parts.running("projector")
        with monkeypatch.context() as slow:
            slow.setattr(projector, "caught_up", behind)
            # It was done, whether or not it can be read yet: an error would have them do it twice.
            assert (await http.post(f"/api/dlq/{letters[0]['id']}/drop")).status_code == 200
        await projector.caught_up(await service.bus.log.head(), timeout_s=60)
        assert (await http.get("/api/automations/broken")).json()["problems"] == []


async def test_a_channels_test_tells_of_every_address_and_is_no_event(start: Start, home: Any) -> None:
    """Also of those that failed; and the read model is for its owner's eyes."""
    async with start(config=CONFIG) as (service, http):
        head = await service.bus.log.head()
        answer = (await http.post("/api/channels/nowhere/test", json={})).json()
        assert (answer["ok"], answer["sent"]) == (False, 0)
        [delivery] = answer["deliveries"]
        assert delivery["outcome"] == "failed"
        assert delivery["address"] is not None
        assert delivery["duration_s"] is not None
        async with service.bus.log.read(["hark.ev.notification.>"], after=head) as batches:
            assert [r async for batch in batches for r in batch.records] == []
        modes = {stat.S_IMODE(file.stat().st_mode) for file in home.glob("hark.sqlite*")}
        assert modes == {0o600}
        refused = await http.post("/hooks/none", json={})
        assert refused.json()["type"] == "urn:hark:problem:webhook-unknown"
        packed = await http.post("/api/events", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
        assert (packed.status_code, packed.json()["detail"]) == (415, "bodies in 'gzip' are not read")
        wrong = await http.post("/api/events", json={"type": "No"})
        assert "[0]" not in wrong.json()["detail"]
