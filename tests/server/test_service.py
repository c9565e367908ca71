"""The whole service in one process: real broker, real HTTP, real runs."""

from __future__ import annotations

import os
import pwd
import stat
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.lowlevel
import httpx
import orjson
import pytest
from hark.config import Settings
from hark.errors import AlreadyHeld, DefinitionError, LogRewound
from hark.server import service as service_module
from hark.server.client import ApiError, Hark
from hark.server.fault import ManifestInvalid
from hark.server.roles import Role
from hark.server.service import Service
from hark.server.whose import said_of_owner
from hark.vocabulary import FlowRunId

from tests.server.conftest import Start

SERVER = frozenset({Role.SERVER})


async def test_a_deployment_of_the_configuration_runs(start: Start) -> None:
    """From hark.yaml to a completed run with its task runs, logs and events, all through HTTP."""
    async with start() as (service, http):
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/health/ready")).json() == {"status": "ready"}
        async with Hark(service.url, "") as hark:
            run = await hark.run_deployment(
                "etl", parameters={"n": 21}, tags=["x"], key="k1", wait=True, timeout_s=60
            )
            assert (run["state_type"], run["attempt"], run["flow_name"]) == ("COMPLETED", 1, "the-etl")
            assert run["tags"] == ["prod", "x"]
            run_id = str(run["id"])
            again = await hark.run_deployment("etl", key="k1")
            assert again["id"] == run_id
            lines = await hark.flow_run_logs(run_id)
            assert any("reading a" in str(line["message"]) for line in lines)
            await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
            shown: Any = await hark.flow_run(run_id)
            assert shown["result"] == {"inline": 42, "format": "json"}
            assert [t["type"] for t in shown["transitions"]][-1] == "flow-run.completed"
            [task] = await hark.task_runs(run_id)
            assert (task["task_name"], task["state_name"]) == ("double", "Completed")
            listed = await hark.flow_runs(deployment="etl", state=["completed"])
            assert [r["id"] for r in listed.items] == [run_id]
            failed = await hark.run_deployment("broken", wait=True, timeout_s=60)
            assert failed["state_type"] == "FAILED"
            assert "no such table" in str(failed["state_message"])
            with pytest.raises(ApiError) as refused:
                await hark.run_deployment("elt")
            assert (refused.value.status, refused.value.problem["suggestion"]) == (404, "etl")
            with pytest.raises(ApiError) as moved:
                await hark.cancel_flow_run("no-such-run")
            assert moved.value.status == 404
            assert (await hark.cancel_flow_run(run_id))["state_type"] == "COMPLETED"
            await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
            status: Any = await hark.status()
            assert status["ready"] is True
            assert status["last_24h"]["flow_runs"] == {"COMPLETED": 1, "FAILED": 1}
            assert {p["state"] for p in status["parts"].values()} == {"running"}


async def test_a_deleted_run_is_shown_no_more(start: Start) -> None:
    """Only what is over is deleted: then it is listed and found no more, also after a rebuild, and runs no second time."""
    async with start() as (service, http), Hark(service.url, "") as hark:
        run = await hark.run_deployment("etl", key="k1", wait=True, timeout_s=60)
        broken = await hark.run_deployment("broken", wait=True, timeout_s=60)
        planned = await hark.run_deployment("etl", delay=timedelta(hours=1))
        with pytest.raises(ApiError, match="only what is over can be deleted") as early:
            await hark.delete_flow_run(str(planned["id"]))
        assert early.value.status == 409
        assert "hark runs cancel" in str(early.value.problem["hint"])
        gone = [str(run["id"]), str(broken["id"])]
        for id_ in gone:
            await hark.delete_flow_run(id_, reason="names people")

        async def look() -> None:
            await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
            assert [r["id"] for r in (await hark.flow_runs()).items] == [planned["id"]]
            for id_ in gone:
                assert await hark.task_runs(id_) == []
                for asked in (
                    http.get(f"/api/flow-runs/{id_}"), http.get(f"/api/flow-runs/{id_}/logs"),
                    http.delete(f"/api/flow-runs/{id_}"), http.post(f"/api/flow-runs/{id_}/retry", json={}),
                ):  # fmt: skip
                    assert (await asked).status_code == 404
            status: Any = await hark.status()
            assert status["last_24h"]["flow_runs"] == {"SCHEDULED": 1}

        await look()
        assert await service.bus.run_logs.read(FlowRunId(gone[0])) == []
        await http.post("/api/rebuild")
        await look()
        # The slot, firing or key it was asked for by is used up.
        assert (await hark.run_deployment("etl", key="k1"))["id"] == run["id"]
        told: Any = (await hark.events(type="hark.flow-run.deleted")).items
        assert [e["event"]["data"]["run"]["id"] for e in told] == gone[::-1]
        audited = [a["what"] for a in (await hark.audit()).items]
        assert f"DELETE /api/flow-runs/{gone[0]}" in audited


async def test_every_listing_answers_and_definitions_are_told(start: Start) -> None:
    """Each address of the API answers; every definition was told by an event derived from its revision."""
    async with start() as (service, http):
        for path in (
            "events", "flow-runs", "deployments", "automations", "schedules", "webhooks", "channels", "pools",
            "variables", "secrets", "keys", "dlq",
        ):  # fmt: skip
            answer = await http.get(f"/api/{path}")
            assert answer.status_code == 200, (path, answer.text)
            assert set(answer.json()) == {"items", "next_cursor"}
        [schedule] = (await http.get("/api/schedules?count=3")).json()["items"]
        assert (schedule["key"], len(schedule["next"]), schedule["paused"]) == ("etl/0", 3, False)
        assert (await http.post("/api/schedules/etl/0/pause")).json()["paused"] is True
        assert (await http.post("/api/deployments/etl/pause")).json()["paused"] is True
        assert (await http.post("/api/deployments/etl/resume")).json()["paused"] is False
        assert (await http.post("/api/deployments/nope/pause")).status_code == 404
        assert (await http.post("/api/pools/default/pause")).json()["paused"] is True
        assert (await http.post("/api/pools/default/resume")).json()["paused"] is False
        wanted = {
            "deployment.created", "deployment.paused", "deployment.resumed", "schedule.created", "schedule.paused",
            "variable.created", "work-pool.paused",
        }  # fmt: skip
        seen: dict[str, str] = {}
        with anyio.fail_after(60):
            async with service.bus.log.follow(after=0) as batches:
                async for batch in batches:
                    for recorded in batch.records:
                        if recorded.event.source == "/hark/definitions":
                            seen[recorded.event.type] = recorded.event.id
                    if wanted <= seen.keys() and "work-pool.resumed" in seen:
                        break
        assert seen["variable.created"] == "variables-1"
        assert seen["deployment.resumed"] == "deployments-4"


async def test_variables_and_secrets_are_kept(start: Start) -> None:
    """A variable comes back as it was set; of a secret only the name does, ever."""
    async with start(roles=SERVER) as (_, http):
        assert (
            await http.put("/api/variables/limits.max", json={"value": {"n": [1, None]}})
        ).status_code == 204
        assert (await http.get("/api/variables/limits.max")).json()["value"] == {"n": [1, None]}
        assert (await http.delete("/api/variables/limits.max")).status_code == 204
        assert (await http.delete("/api/variables/limits.max")).status_code == 404
        assert (await http.put("/api/variables/..", json={"value": 1})).status_code in (404, 405, 422)
        assert (await http.put("/api/secrets/github", json={"value": "hunter2-hunter2"})).status_code == 204
        assert (await http.get("/api/secrets")).json()["items"] == [{"name": "github"}]
        for path in ("/api/secrets", "/api/events", "/api/status", "/"):
            assert "hunter2" not in (await http.get(path)).text
        assert (await http.put("/api/secrets/github", json={"value": ""})).status_code == 422
        assert (await http.delete("/api/secrets/github")).status_code == 204
        assert (await http.delete("/api/secrets/github")).status_code == 404


async def test_keys_close_the_door(start: Start) -> None:
    """With the first key every call needs one; health and webhooks stay open; a revoked key is worthless at once."""
    async with start(roles=SERVER) as (service, http):
        # As many terms of the rule engine have begun, and none has caught up since.
        await service.bus.bucket("checkpoints").put("automations.begun", b"5")
        shown = (await http.get("/")).text
        assert "Access is open" in shown
        assert "Rules do not catch up" in shown
        assert "ended 4 times" in (await http.get("/api/status")).json()["rules_behind"]
        made = (await http.post("/api/keys", json={"name": "ann"})).json()
        refused = await http.get("/api/status")
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"
        assert "Bearer" in refused.headers["www-authenticate"]
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/health/ready")).status_code == 200
        assert (await http.post("/hooks/none")).status_code == 404
        key = {"authorization": f"Bearer {made['token']}"}
        assert (await http.get("/api/status", headers=key)).json()["access"] == "keys"
        # A browser asks for name and password; the key is the password.
        page = await http.get("/", auth=("anyone", made["token"]))
        assert page.status_code == 200
        assert "Access is open" not in page.text
        for wrong in (
            "Bearer hark_000000000000_" + "a" * 43,
            "Bearer x",
            "Basic !!!",
            f"Bearer {made['token']}x",
        ):
            assert (await http.get("/api/status", headers={"authorization": wrong})).status_code == 401
        # The name of the host does not matter where a key is asked for.
        assert (await http.get("/api/status", headers={**key, "host": "hark.example.org"})).status_code == 200
        stored = (await service.bus.bucket("keys").entries())[0]
        assert made["token"].split("_", 2)[2].encode() not in stored.value
        async with Hark(service.url, made["token"]) as hark:
            await hark.create_key("bob")
            await hark.revoke_key("ann")
            with pytest.raises(ApiError) as gone:
                await hark.status()
            assert gone.value.status == 401


async def test_other_pages_cannot_use_a_browser_against_us(start: Start) -> None:
    """A rebound name, a form of another site and a foreign origin are refused while access is open."""
    async with start(roles=SERVER) as (service, http):
        event = {"type": "a.b"}
        assert (await http.get("/api/status", headers={"host": "evil.example"})).status_code == 421
        assert (await http.get("/api/status", headers={"host": "localhost:1"})).status_code == 200
        assert (await http.get("/api/status", headers={"host": "[::1]:4280"})).status_code == 200
        cross = await http.post("/api/events", json=event, headers={"sec-fetch-site": "cross-site"})
        assert cross.status_code == 403
        assert (
            await http.post("/api/events", json=event, headers={"origin": "http://evil"})
        ).status_code == 403
        assert (
            await http.post("/api/events", json=event, headers={"origin": service.url})
        ).status_code == 202
        same = await http.post("/api/events", json=event, headers={"sec-fetch-site": "same-origin"})
        assert same.status_code == 202
        answer = await http.options(
            "/api/events", headers={"origin": "http://evil", "access-control-request-method": "POST"}
        )
        assert "access-control-allow-origin" not in answer.headers


async def test_a_public_address_without_a_key_is_refused(start: Start) -> None:
    """The service does not start, and says what to do; with a key of its own it does."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with start(roles=SERVER, server={"host": "0.0.0.0"}):
            pass
    refused = caught.value.exceptions[0]
    while isinstance(refused, BaseExceptionGroup):
        refused = refused.exceptions[0]
    assert isinstance(refused, DefinitionError)
    assert "HARK_API_KEY" in refused.hint
    key = {"authorization": "Bearer from-the-environment"}
    from pydantic import SecretStr

    async with start(
        roles=SERVER, server={"host": "0.0.0.0"}, api_key=SecretStr("from-the-environment"), headers=key
    ) as (_, http):
        assert (await http.get("/api/status")).status_code == 200
        assert (await http.get("/api/status", headers={"authorization": "Bearer other"})).status_code == 401


async def test_a_second_service_on_the_same_home_says_who_holds_it(start: Start, home: object) -> None:
    """And the place where the command line finds the server is the first one's, readable by its owner only."""
    async with start(roles=SERVER) as (service, _):
        note = service.home / "api.json"
        assert stat.S_IMODE(note.stat().st_mode) == 0o600
        assert orjson.loads(note.read_bytes()) == {"url": service.url, "pid": os.getpid()}
        with pytest.raises(BaseExceptionGroup) as caught:
            async with start(roles=SERVER):
                pass
        assert caught.group_contains(AlreadyHeld)
    assert not note.exists()


async def test_a_worker_without_a_broker_says_what_it_needs(home: Path) -> None:
    """A role that serves nobody alone does not start a broker of its own."""
    settings = Settings(home=home)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with Service(settings, roles=frozenset({Role.WORKER})):
            pass
    assert caught.group_contains(DefinitionError, match="needs a broker")


async def test_bad_configuration_at_start_is_refused_with_its_place(start: Start) -> None:
    """Every fault is in the error; nothing was started for good."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with start(config="deployments:\n  etl: {flow: flows.py:elt}\n"):
            pass
    assert caught.group_contains(ManifestInvalid, match="did you mean 'etl'")


async def test_the_page_escapes_what_events_say(start: Start) -> None:
    """A state message with markup in it is text on the page."""
    async with start(
        config="deployments: {bad: {flow: flows.py:bad}}\n",
        server={},
    ) as (service, http):
        async with Hark(service.url, "") as hark:
            await hark.run_deployment("bad", wait=True, timeout_s=60)
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        page = await http.get("/")
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;alert" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.fixture(autouse=True)
def _bad_flow(project: Any) -> None:
    with (project / "flows.py").open("a") as flows:
        flows.write(
            "\n\n@flow\nasync def bad() -> None:\n    raise RuntimeError('<script>alert(1)</script>')\n"
        )


async def test_metrics_and_docs_answer(start: Start) -> None:
    """OpenMetrics with runs, events and parts; the API as a page and as OpenAPI."""
    async with start(roles=SERVER) as (service, http):
        await http.post("/api/events", json=[{"type": "a.b"}] * 3)
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        lines: list[str] = []
        with anyio.fail_after(60):
            while "hark_projector_lag_events 0.0" not in lines:  # definitions are told meanwhile
                answer = await http.get("/metrics")
                lines = answer.text.splitlines()
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert "hark_http_events_total 3.0" in lines
        assert 'hark_part_up{part="projector"} 1.0' in lines
        assert 'hark_flow_runs{state="RUNNING"} 0.0' in lines
        assert lines[-1] == "# EOF"
        docs = await http.get("/docs")
        assert "/api/flow-runs/{run_id}/retry" in docs.text
        assert "from_start" in docs.text, "what a body may hold"
        assert "/api/events" in (await http.get("/openapi.json")).json()["paths"]
        missing = await http.get("/nope")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


async def test_a_rebuild_gives_the_same_rows(start: Start) -> None:
    """The read model is dropped and folded anew while the server runs."""
    async with start(roles=SERVER) as (service, http):
        await http.post("/api/events", json=[{"type": "a.b", "data": i} for i in range(50)])
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        before = (await http.get("/api/events?limit=100&type=a.b")).json()
        assert len(before["items"]) == 50
        rebuilt = (await http.post("/api/rebuild")).json()
        assert rebuilt["events"] >= 50
        assert (await http.get("/api/events?limit=100&type=a.b")).json() == before


async def test_stopping_lets_streams_and_waits_end(start: Start) -> None:
    """A client that follows events does not hold the server up."""
    ended = anyio.Event()

    async def follow(url: str, ready: anyio.Event) -> None:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=120) as http,
            http.stream("GET", f"{url}/api/events/stream") as answer,
        ):
            async for _ in answer.aiter_lines():
                ready.set()
        ended.set()

    async with anyio.create_task_group() as tg:
        async with start(roles=SERVER) as (service, _):
            ready = anyio.Event()
            tg.start_soon(follow, service.url, ready)
            await ready.wait()
        with anyio.fail_after(60):
            await ended.wait()


async def test_what_runs_in_a_service_is_not_cancelled_when_it_stops(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts stop one after the other, each in its own time: actions in the middle are ended, workers let their runs end."""
    ended: list[str] = []

    @asynccontextmanager
    async def part() -> AsyncGenerator[None]:
        yield
        await anyio.lowlevel.checkpoint()
        ended.append("part")

    async def wire(self: Service, stack: AsyncExitStack, door: object) -> None:
        await stack.enter_async_context(part())

    monkeypatch.setattr(Service, "_wire", wire)
    async with start(roles=SERVER):
        pass
    assert ended == ["part"]


class Losing:
    """A service whose log is put back as often as asked, and which then finds something a restart does not mend."""

    url, context, home, settings = "http://here", None, Path("/h"), None

    def __init__(self, losses: int) -> None:
        self.losses = losses

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def load(self) -> None:
        if self.losses == 0:
            raise DefinitionError("that is all")
        raise ExceptionGroup("of its parts", [LogRewound("HARK", after=9, head=3)])

    def anew(self) -> Losing:
        return Losing(self.losses - 1)


async def test_a_log_that_was_put_back_begins_the_service_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older copy of the broker's files under a running service does not end it: it reads everything again."""
    monkeypatch.setattr(service_module, "_ANEW_S", 0.0)
    monkeypatch.setattr(service_module, "_SWITCH_S", sys.getswitchinterval())
    announced: list[str] = []
    losing: Any = Losing(2)
    with pytest.raises(DefinitionError, match="that is all"):
        await service_module._serve(losing, announced.append)
    assert announced == ["Hark is ready at http://here (home /h)"] * 3


def test_who_serves_the_home_of_another_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of both, where they have some; not of one's own home, or one that is not there yet."""
    assert said_of_owner(tmp_path) is said_of_owner(tmp_path / "none") is None
    monkeypatch.setattr("os.geteuid", lambda: 54_321)
    said, advice = said_of_owner(tmp_path) or ("", "")
    owner = pwd.getpwuid(os.getuid()).pw_name
    assert f"belongs to {owner}, and this process is #54321's" in said
    assert f"sudo -u {owner} env HARK_HOME={tmp_path} hark up" in advice


def test_a_user_without_a_home_directory_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number nobody has a name for."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 54_321)
    with pytest.raises(DefinitionError, match="no home directory") as caught:
        _ = Settings(home=Path("~/.hark")).home_path
    assert "HARK_HOME" in caught.value.hint
