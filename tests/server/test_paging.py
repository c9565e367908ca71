"""Lists come in pages, all of them, and the client follows them to the end."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import pytest
from hark import server
from hark.bus.run_logs import LogLine
from hark.errors import DefinitionError
from hark.server.client import Hark
from hark.server.paging import one_page
from hark.server.service import Service
from hark.vocabulary import FlowRunId
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Start

NAMES = st.lists(st.text(alphabet="abc/-é", min_size=1, max_size=4), unique=True, max_size=12)


def pages(items: list[str], limit: int) -> list[str]:
    """Return what following the cursors shows."""
    shown: list[str] = []
    cursor: str | None = None
    while True:
        found = one_page(items, str, cursor=cursor, limit=limit)
        assert 0 < len(found.items) <= limit or not items
        shown += found.items
        cursor = found.next_cursor
        if cursor is None:
            return shown


@given(NAMES, st.integers(1, 5))
def test_pages_of_a_list_are_the_list(names: list[str], limit: int) -> None:
    """Each item once, in order, whatever the size of a page."""
    assert pages(names, limit) == names


@given(NAMES, st.integers(1, 5), st.data())
def test_what_stays_is_shown_once_whatever_goes_between_pages(
    names: list[str], limit: int, data: st.DataObject
) -> None:
    """One item leaves between the first page and the second: of the others none is missed and none comes twice."""
    first = one_page(names, str, cursor=None, limit=limit)
    if first.next_cursor is None:
        return
    gone = data.draw(st.sampled_from([first.items[-1], *names[limit:]]))
    left = [name for name in names if name != gone]
    rest = one_page(left, str, cursor=first.next_cursor, limit=100)
    assert [*(n for n in first.items if n != gone), *rest.items] == left


@pytest.mark.parametrize("cursor", ["junk", "W10", "WzFd", "é"])
def test_a_cursor_of_nothing_is_refused(cursor: str) -> None:
    """It says where cursors come from."""
    with pytest.raises(DefinitionError, match="not a cursor") as caught:
        one_page(["a"], str, cursor=cursor, limit=1)
    assert "next_cursor" in caught.value.hint


CONFIG = """
deployments:
  one: {flow: flows.py:etl, schedules: [{cron: "0 6 * * *"}, {cron: "0 7 * * *"}]}
  two: {flow: flows.py:etl}
automations:
  first: {on: a.b, do: [{emit: {type: c.d}}]}
  second: {on: a.c, do: [{emit: {type: c.d}}]}
webhooks: {one: {verify: none}, two: {verify: none}}
channels: {one: {urls: ["json://127.0.0.1:9/x"]}, two: {urls: ["json://127.0.0.1:9/y"]}}
pools: {default: {}, second: {}}
limits: {one: {slots: 1}, two: {rate: 5/s}}
variables: {one: 1, two: 2}
sinks: {one: {on: a.b, nats: {subject: x.y}}, two: {on: a.c, nats: {subject: x.z}}}
sources: {one: {subject: o.a, event: {type: o.a}}, two: {subject: o.b, event: {type: o.b}}}
"""


async def test_every_listing_is_paged(start: Start) -> None:
    """Each takes `limit` and `cursor`, refuses wrong ones, and gives the same items page by page."""
    async with start(config=CONFIG, awaits_config=True) as (_, http):
        for name in ("first", "second"):
            assert (await http.put(f"/api/secrets/{name}", json={"value": "x"})).status_code == 204
        paths = [
            path
            for path, methods in (await http.get("/openapi.json")).json()["paths"].items()
            if "get" in methods and "{" not in path and path.startswith("/api/")
        ]
        several = set()
        for path in paths:
            if path in ("/api/events/stream", "/api/status", "/api/config/names"):
                continue
            whole = (await http.get(path, params={"limit": 1000})).json()
            assert whole["next_cursor"] is None, path
            for wrong in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"cursor": "junk"}):
                assert (await http.get(path, params=wrong)).status_code == 422, (path, wrong)
            if path in ("/api/audit", "/api/events"):  # they grow meanwhile
                continue
            shown, query = [], {"limit": "1"}
            while query.get("cursor", "") is not None:
                part = (await http.get(path, params=query)).json()
                shown += part["items"]
                query["cursor"] = part["next_cursor"]
            names = [[item.get(w) for w in ("key", "id", "name", "slot")] for item in shown]
            assert names == [
                [item.get(w) for w in ("key", "id", "name", "slot")] for item in whole["items"]
            ], path
            if len(names) > 1:
                several.add(path.removeprefix("/api/"))
        assert several >= {
            "deployments", "automations", "webhooks", "channels", "pools", "limits", "variables", "secrets", "sinks",
            "sources", "schedules", "schedules/next",
        }  # fmt: skip


async def test_the_client_gives_whole_lists(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one page of definitions, log lines and task runs come as one list."""
    monkeypatch.setattr("hark.server.client_people._PAGE", 1)
    monkeypatch.setattr("hark.server.client._LINES", 1)
    async with start(config=CONFIG, awaits_config=True) as (service, _), Hark(service.url) as hark:
        assert [d["name"] for d in await hark.deployments()] == ["one", "two"]
        assert len(await hark.schedules(deployment="one")) == 2
        run = await hark.run_deployment("one", wait=True)
        run_id = str(run["id"])
        assert [t["task_name"] for t in await hark.task_runs(run_id)] == ["double"]
        service.bus.run_logs.publish_nowait(
            FlowRunId(run_id), LogLine(flow_run_id=FlowRunId(run_id), message="one more")
        )
        service.bus.run_logs.flush()
        await service.bus.publisher.barrier()
        lines = await hark.flow_run_logs(run_id)
        assert [line["message"] for line in lines][-2:] == ["reading a", "one more"]
        first = await hark.request("GET", f"/api/flow-runs/{run_id}/logs", params={"limit": 1})
        assert first["items"] == lines[:1]
        most = await hark.request("GET", f"/api/flow-runs/{run_id}/logs", params={"limit": 20_000})
        assert most["items"] == lines
        assert first["next_cursor"]
        assert [line async for line in hark.follow_flow_run_logs(run_id)] == lines
        await _a_waiting_run_is_followed(service, hark)


async def _a_waiting_run_is_followed(service: Service, hark: Hark) -> None:
    """Its lines come as they are written, and the following ends with the run."""
    await hark.pause("deployment", "two")
    run_id = FlowRunId(str((await hark.run_deployment("two"))["id"]))
    with anyio.fail_after(60):
        following = hark.follow_flow_run_logs(run_id)
        for message in ("early", "late"):
            service.bus.run_logs.publish_nowait(run_id, LogLine(flow_run_id=run_id, message=message))
            assert (await anext(following))["message"] == message
        async with anyio.create_task_group() as tg:
            tg.start_soon(hark.cancel_flow_run, run_id)
            assert [line async for line in following] == []


def test_the_client_reaches_every_route() -> None:
    """`Hark` is for all the HTTP API can do: no route that only curl reaches."""
    folder = Path(server.__file__).parent
    source = "".join(file.read_text() for file in folder.glob("client*.py"))
    source = source.replace('f"/api/{kind}s/', 'f"/api/')
    reached = {re.sub(r"\{[^}]*\}", "{}", path) for path in re.findall(r'f?"(/api/[^"]*)"', source)}
    assert "/api/{}/pause" in reached
    assert "/api/{}/resume" in reached
    routes = {
        re.sub(r"\{[^}]*\}", "{}", path)
        for file in (folder / "routes").glob("*.py")
        for path in re.findall(r'@router\.\w+\(\s*"(/api/[^"]*)"', file.read_text())
    }
    assert len(routes) > 60
    assert "/api/flow-runs/{}/{}" in reached, "what is done to a run, by its word"
    routes -= {path for path in routes if re.fullmatch(r"/api/flow-runs/{}/[a-z-]+", path)} - {*reached}
    missing = {path for path in routes - reached if not path.endswith(("/pause", "/resume"))}
    assert missing == set()
