"""Backfills through the API on a real engine: planned, bounded, once, cancelled and taken up again."""

from __future__ import annotations

from typing import Any

import anyio
from hark.engine.dispatching.control import Control
from hark.engine.runs.run import Cause
from hark.server.client import Hark

from tests.server.conftest import Start

CONFIG = """
deployments:
  etl:
    flow: flows.py:etl
    schedules: [{cron: "0 0 * * *", timezone: Europe/Berlin, paused: true, parameters: {source: s}}]
  slow: {flow: flows.py:slow, schedules: [{cron: "0 0 * * *", paused: true}]}
  bare: {flow: flows.py:etl}
"""

FLOWS = """
import asyncio
from pathlib import Path
from hark import flow

@flow
async def etl(source: str = "a", n: int = 2, day: str = "") -> str:
    return f"{source} {day}"

@flow
async def slow(folder: str = "", slot: str = "") -> None:
    here = Path(folder)
    (here / slot).touch()
    while not (here / "go").exists():
        await asyncio.sleep(0.01)
    (here / slot).unlink()
"""


async def test_a_backfill_runs_each_slot_once(start: Start, project: Any) -> None:
    """Plan, then runs with the slot as scheduled time and rendered parameters; asked again, nothing runs again."""
    (project / "flows.py").write_text(FLOWS)
    async with start(config=CONFIG) as (service, _), Hark(service.url, "") as hark:
        wish: dict[str, Any] = {"from_": "2026-03-27", "to": "2026-03-31", "max_parallel": 2}
        wish["parameters"] = {"day": "{{ slot[:16] }}/{{ next_slot[:16] }}"}
        plan: Any = await hark.backfill("etl", **wish, dry_run=True)
        assert (plan["to_run"], plan["left_out"]) == (4, 0)
        # The clocks of Berlin are moved on the 29th: local midnight stays midnight.
        assert [s["slot"][:16] for s in plan["slots"]] == [
            "2026-03-26T23:00", "2026-03-27T23:00", "2026-03-28T23:00", "2026-03-29T22:00",
        ]  # fmt: skip
        assert plan["slots"][3]["local"] == "2026-03-30T00:00:00+02:00"
        assert await hark.backfills() == []
        asked: Any = await hark.backfill("etl", **wish)
        assert asked["is_new"]
        done = await _finished(hark, asked["name"])
        assert (done["status"], done["over"], done["ended"]) == ("finished", 4, {"completed": 4})
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        runs: Any = (await hark.flow_runs(deployment="etl")).items
        assert {r["scheduled_at"][:16] for r in runs} == {s["slot"][:16] for s in plan["slots"]}
        shown: Any = await hark.flow_run(done["slots"][3]["run_id"])
        assert shown["result"]["inline"] == "s 2026-03-29T22:00/2026-03-30T22:00"
        made = await Control(service.bus).get(done["slots"][3]["run_id"])
        assert made is not None
        assert made.cause == Cause(kind="backfill", name=str(asked["name"]))
        again: Any = await hark.backfill("etl", **{**wish, "max_parallel": 4})
        assert (again["is_new"], again["status"]) == (False, "finished")
        other: Any = await hark.backfill("etl", **{**wish, "to": "2026-04-01"}, dry_run=True)
        assert (other["to_run"], other["left_out"]) == (1, 4)
        assert other["slots"][0]["left_out"] == "it has a run, completed"
        rerun: Any = await hark.backfill("etl", **wish, reprocess="all", name="again")
        assert (await _finished(hark, rerun["name"]))["ended"] == {"completed": 4}
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        assert len((await hark.flow_runs(deployment="etl")).items) == 8


async def _finished(hark: Hark, name: str) -> Any:
    with anyio.fail_after(120):
        item: Any = await hark.backfill_progress(name)
        while item["status"] in ("running", "cancelling"):
            item = await hark.backfill_progress(name, wait_s=5, over=item["over"])
    return item


async def test_no_more_run_at_once_than_was_asked(start: Start, project: Any, tmp_path: Any) -> None:
    """Two at once are two at once; cancelled, the third never starts; asked again, the rest run."""
    from watchfiles import awatch

    (project / "flows.py").write_text(FLOWS)
    here = tmp_path / "here"
    here.mkdir()
    async with start(config=CONFIG) as (service, _), Hark(service.url, "") as hark:
        wish: dict[str, Any] = {
            "from_": "2026-01-01", "to": "2026-01-06", "max_parallel": 2, "name": "slow-ones",
            "parameters": {"folder": str(here), "slot": "{{ slot[:10] }}"},
        }  # fmt: skip

        def running() -> list[str]:
            return sorted(p.name for p in here.iterdir())

        with anyio.fail_after(60):
            asked: Any = await hark.backfill("slow", **wish)
            async for _change in awatch(here, rust_timeout=100, yield_on_timeout=True):
                if len(running()) >= 2:
                    break
        item: Any = await hark.backfill_progress(asked["name"])
        assert (item["asked"], len(item["active"])) == (2, 2)
        assert (await hark.cancel_backfill("slow-ones"))["status"] in ("cancelling", "cancelled")
        stopped = await _finished(hark, "slow-ones")
        assert (stopped["status"], stopped["asked"], running()) == (
            "cancelled",
            2,
            ["2026-01-01", "2026-01-02"],
        )
        (here / "go").touch()
        taken_up: Any = await hark.backfill("slow", **wish)
        assert (taken_up["is_new"], taken_up["status"]) == (False, "running")
        done = await _finished(hark, "slow-ones")
        assert (done["status"], done["ended"]) == ("finished", {"completed": 5})
        told = []
        async with service.bus.log.read(["hark.ev.deployment.backfill.>"]) as batches:
            async for batch in batches:
                told += [r.event.type.rpartition(".")[2] for r in batch.records]
        assert told == ["started", "cancelled", "finished"]


async def test_what_cannot_be_backfilled_is_said(start: Start, project: Any) -> None:
    """No schedule, no such schedule, wrong parameters, a name that means something else: refused before anything runs."""
    (project / "flows.py").write_text(FLOWS)
    async with start(config=CONFIG) as (_, http):
        stretch = {"from": "2026-01-01", "to": "2026-01-03"}
        for deployment, changes, status, says in (
            ("bare", {}, 422, "has no schedule"),
            ("etl", {"schedules": ["x"]}, 404, "no schedule"),
            ("etl", {"to": "2999-01-01"}, 422, "in the past"),
            ("etl", {"max_parallel": 0}, 422, "1 to 1000"),
            ("etl", {"reprocess": "maybe"}, 422, "'none', 'failed' or 'all'"),
            ("etl", {"parameters": {"x": "{{ secrets.x }}"}}, 422, "not known to parameters"),
            ("etl", {"frm": 1}, 422, "not known here"),
            ("nope", {}, 404, "nope"),
        ):
            answer = await http.post(f"/api/deployments/{deployment}/backfill", json={**stretch, **changes})
            assert (answer.status_code, says in answer.text) == (status, True), answer.text
        answer = await http.post("/api/deployments/etl/backfill", json={**stretch, "name": "b"})
        assert answer.status_code == 201
        answer = await http.post(
            "/api/deployments/etl/backfill", json={"from": "2026-01-02", "to": "2026-01-05", "name": "b"}
        )
        assert (answer.status_code, "something else" in answer.text) == (409, True)
        assert (await http.get("/api/backfills/nope")).status_code == 404
