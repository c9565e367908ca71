"""The routing of notifications as people meet it: in hark.yaml, over HTTP, by the link in a message."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import orjson
from hark.server.apply import plan_manifest
from hark.server.client import Hark
from hark.server.manifest import check_manifest
from hark.server.plan import Change

from tests.server.conftest import Start

SPEC = """
channels:
  oncall: {urls: ["{{ secrets.slack_url }}"], rate: 10/m}
notifications:                               # Alertmanager's words
  group_by: [automation, key]
  group_wait: 10s
  group_interval: 5m
  repeat_interval: 4h
  mute_times: {nights: {timezone: Europe/Berlin, times: ["22:00-07:00"]}}
  routes:
    - {match: {data.tags: prod}, to: oncall, escalate: [{after: 15m, to: managers}]}
    - {match: {severity: info}, to: digest, mute: [nights]}
  inhibit: [{source: {automation: db-down}, target: {data.tags: needs-db}, equal: [data.region]}]
"""


@dataclass
class Receiver:
    """Takes JSON over HTTP and keeps it."""

    port: int = 0
    bodies: list[Any] = field(default_factory=list)
    came: anyio.Event = field(default_factory=anyio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        self.bodies.append(orjson.loads(await reader.readexactly(length)))
        self.came.set()
        self.came = anyio.Event()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def wait_for(self, count: int) -> None:
        with anyio.fail_after(60):
            while len(self.bodies) < count:
                await self.came.wait()


@asynccontextmanager
async def a_receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hark.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def test_the_section_of_the_specification_loads(tmp_path: Path) -> None:
    """As it stands there; channels it names and nobody defines are warnings with their places."""
    manifest, faults = check_manifest(written(tmp_path, SPEC))
    assert [(f.at.line, f.is_warning, f.message) for f in faults] == [
        (11, True, "there is no channel named 'managers'"),
        (12, True, "there is no channel named 'digest'"),
    ]
    record = manifest.records["notifications", "routes"]
    assert record.value["repeat_interval"] == "4h"  # type: ignore[index,call-overload]
    again, _ = check_manifest(written(tmp_path, SPEC))
    assert again.records == manifest.records


def test_faults_of_the_section_have_their_places(tmp_path: Path) -> None:
    """Wrong words, conditions, paths, times and names: line, column, and what to do."""
    text = """
    notifications:
      group_wait: 10
      goup_by: [automation]
      mute_times: {nights: {timezone: Europe/Berlyn, times: ["22:00"]}}
      routes:
        - {match: {data.tags: {prefx: p}}, to: a}
        - {match: {flow.name: x}, to: a, repeat_interval: soon}
      inhibit: [{source: {automation: a}, target: {automation: b}, equal: [region.x]}]
    """
    _, faults = check_manifest(written(tmp_path, text))
    found = {f.at.line: f"{f.message} {f.suggestion}" for f in faults if not f.is_warning}
    assert "unit" in found[3]
    assert "group_by" in found[4]
    assert "22:00-07:00" in found[5]
    text = text.replace("10\n", "10s\n").replace("goup", "group").replace("Berlyn", "Berlin")
    text = text.replace('["22:00"]', "[]").replace("repeat_interval: soon", "mute: [night]")
    _, faults = check_manifest(written(tmp_path, text))
    assert ["no mute time named 'night'" in f.message for f in faults if not f.is_warning] == [True]
    _, faults = check_manifest(written(tmp_path, text.replace("mute: [night]", "mute: [nights]")))
    found = {f.at.line: f"{f.message} {f.suggestion}" for f in faults if not f.is_warning}
    assert "prefix" in found[7]
    assert "data.flow.name" in found[8]
    assert "data.region.x" in found[9]


async def test_alerts_are_routed_silenced_and_acknowledged(start: Start) -> None:
    """hark.yaml to message: a rule's alerts go through the tree; silences and acknowledging over HTTP; changes are live."""
    async with a_receiver() as receiver, a_receiver() as managers:
        config = f"""
        channels:
          oncall: {{urls: ["json://127.0.0.1:{receiver.port}/"]}}
          managers: {{urls: ["json://127.0.0.1:{managers.port}/"]}}
        automations:
          orders-failing:
            on: order.failed
            for_each: data.shop
            do: [{{notify: {{title: "orders of {{{{ key }}}} fail", severity: error, labels: {{team: shop}}}}}}]
          orders-fine:
            on: order.fine
            for_each: data.shop
            do: [{{notify: routes, alert: "orders-failing/{{{{ key }}}}", resolved: true, title: "orders are fine"}}]
        notifications:
          group_by: [automation]
          group_wait: 0s
          group_interval: 1s
          to: oncall
          escalate: [{{after: 1s, to: managers}}]
        """
        async with start(config=config) as (service, http), Hark(service.url, "") as hark:
            await hark.emit("order.failed", data={"shop": "berlin"})
            await receiver.wait_for(1)
            assert receiver.bodies[0]["title"] == "orders of berlin fail"
            await managers.wait_for(1)
            assert managers.bodies[0]["title"] == "Not acknowledged for 1s: orders of berlin fail"
            [incident] = await hark.alerts()
            assert (incident["state"], incident["told_to"]) == ("told", ["oncall", "managers"])

            # The link: looking changes nothing, the button does, once.
            link = managers.bodies[0]["message"].partition("Acknowledge: ")[2].strip()
            assert link.startswith(service.url)
            page = await http.get(link)
            assert page.status_code == 200
            assert "orders of berlin fail" in page.text
            assert [a["state"] for a in await hark.alerts()] == ["told"]
            assert "Acknowledged" in (await http.post(link)).text
            shown: Any = await hark.alert(str(incident["id"])[:8])
            assert (shown["state"], shown["acknowledged_by"]) == ("acknowledged", "link sent to managers")
            assert shown["members"][0]["facts"]["team"] == "shop"
            assert "was acknowledged by" in (await http.post(link)).text
            assert (await http.get(link[:-1] + ("A" if link[-1] != "A" else "B"))).status_code == 403

            # A silence for one shop only.
            silence = await hark.add_silence(
                {"matchers": ["data.shop=hamburg"], "for": "1h", "comment": "moving"}
            )
            assert [s["state"] for s in await hark.silences()] == ["active"]
            held = await hark.emit("order.failed", data={"shop": "hamburg"})
            await hark.emit("order.failed", data={"shop": "bremen"})
            await receiver.wait_for(2)
            assert "bremen" in receiver.bodies[1]["message"] + receiver.bodies[1]["title"]
            assert "hamburg" not in receiver.bodies[1]["message"]
            await hark.expire_silence(str(silence["id"]))
            await receiver.wait_for(3)
            assert "hamburg" in receiver.bodies[2]["message"]
            assert await hark.silences() == []
            assert [s["state"] for s in await hark.silences(expired=True)] == ["expired"]

            # Acknowledged over HTTP; then it recovers, one after the other.
            taken = await hark.acknowledge(str(incident["id"]), by="ann")
            assert (taken["state"], taken["acknowledged_by"]) == ("acknowledged", "ann")
            for shop in ("berlin", "hamburg", "bremen"):
                await hark.emit("order.fine", data={"shop": shop})
            with anyio.fail_after(60):
                while not any(
                    "Recovered" in b["title"] or "recovered" in b["title"] for b in receiver.bodies
                ):
                    await receiver.came.wait()
            assert any("recovered" in b["title"].lower() for b in receiver.bodies)

            # A change of the section is live at once.
            manifest, faults = check_manifest(service.config) if service.config else (None, [])
            assert manifest is not None
            assert faults == []
            plan = await plan_manifest(service.bus, manifest)
            assert {s.change for s in plan.steps} == {Change.UNCHANGED}
            await service.bus.bucket("notifications").put("routes", b'{"to":["managers"],"group_wait":"0s"}')
            with anyio.fail_after(60):
                n = 0
                while not any("the api says so" in body["title"] for body in managers.bodies):
                    # One that came before the change was heard of goes its old way.
                    n += 1
                    for _ in range(2):
                        await hark.raise_alert(
                            "the api says so", severity="critical", labels={"team": "ops"}, key=f"{n}"
                        )
                    with anyio.move_on_after(2):
                        await managers.came.wait()
            told: Any = (await hark.events(type="notification.*", limit=100)).items
            types = {str(e["event"]["type"]) for e in told}
            assert {
                "notification.raised", "notification.grouped", "notification.sent", "notification.escalated",
                "notification.acknowledged", "notification.silenced",
            } <= types  # fmt: skip
            why: Any = await hark.explain({"event": held.id, "automation": "orders-failing"})
            [effects] = why["effects"].values()
            assert effects["held_back"] == [{"what": "silenced", "by": silence["id"], "dropped": False}]
            assert effects["messages"][0] == "notification.raised"


async def test_what_is_asked_wrongly_is_told(start: Start) -> None:
    """Problem documents with a hint for silences, alerts and acknowledgements that make no sense."""
    async with start() as (_, http):
        for body, said in (
            ({"matchers": ["automation"], "for": "1h"}, "no matcher"),
            ({"matchers": ["a=1"], "for": "1h", "ends_at": "2030-01-01T00:00:00Z"}, "how long"),
            ({"match": {"flow.name": "x"}, "for": "1h"}, "data.flow.name"),
            ({"match": {"severity": "error"}, "ends_at": "2020-01-01T00:00:00Z"}, "over already"),
            ({"for": "1h"}, "what to silence"),
        ):
            answer = await http.post("/api/silences", json=body)
            assert (answer.status_code // 100, said in answer.text) == (4, True), answer.text
        assert (await http.post("/api/silences/nope/expire", json={})).status_code == 404
        assert (await http.post("/api/alerts/nope/ack", json={})).status_code == 404
        for body, said in (
            ({}, "title"), ({"title": "x", "severity": "bad"}, "severit"), ({"title": "x", "labels": {"Type": "y"}}, "label"),
            ({"title": "x", "attach": ["/etc/passwd"]}, "no files"),
        ):  # fmt: skip
            answer = await http.post("/api/alerts", json=body)
            assert (answer.status_code // 100, said in answer.text) == (4, True), answer.text
