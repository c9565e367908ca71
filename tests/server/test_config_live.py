"""Configuration and what is live: plans, applying, pruning, reloading, and a bad file that changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio
import pytest
from hark.bus import Bus
from hark.server.apply import apply_manifest, names_besides_config, plan_manifest
from hark.server.manifest import Manifest, Record, load_manifest
from hark.server.plan import Change, Plan, differences, make_plan
from hark.server.plan_text import plan_text
from hark.server.roles import Role

from tests.server.conftest import Start

RULE: Any = {"name": "r", "on": ["a.b"], "do": [{"notify": ["oncall"]}]}


def made(plan: Plan) -> dict[str, str]:
    return {f"{s.bucket}/{s.key}": s.change.value for s in plan.steps}


def manifest(*records: Record) -> Manifest:
    return Manifest({(r.bucket, r.key): r for r in records})


def test_differences_go_down_to_the_field() -> None:
    """Mappings are gone into, lists of one length item by item; a number is not its text."""
    before: Any = {"a": 1, "b": {"c": [1, 2], "d": 0}, "e": True}
    after: Any = {"a": "1", "b": {"c": [1, 3], "d": 0, "x": None}, "e": 1}
    found = {d.path: (d.before, d.after) for d in differences(before, after)}
    assert found == {"a": (1, "1"), "b.c[1]": (2, 3), "e": (True, 1)}


def test_a_plan_tells_what_to_do_in_an_order_that_works() -> None:
    """What is referred to is made first and removed last; what came from elsewhere is left alone."""
    desired: Any = {("automations", "r"): RULE, ("channels", "c"): {"name": "c"}, ("variables", "v"): 1}
    live: Any = {
        ("variables", "v"): 1,
        ("channels", "old"): {},
        ("automations", "old"): {},
        ("variables", "hand"): 2,
    }
    owned = {("channels", "old"): frozenset[str](), ("automations", "old"): frozenset[str]()}
    kept = make_plan(desired, live, owned=owned, written={})
    assert made(kept) == {
        "variables/v": "unchanged", "channels/c": "create", "automations/r": "create",
        "automations/old": "orphaned", "channels/old": "orphaned",
    }  # fmt: skip
    assert list(made(kept)) == [
        "variables/v",
        "channels/c",
        "automations/r",
        "automations/old",
        "channels/old",
    ]
    pruned = make_plan(desired, live, owned=owned, written={}, prune=True)
    assert pruned.count(Change.DELETE) == 2
    assert "variables/hand" not in made(pruned)
    assert pruned.summary() == "2 to create, 0 to update, 2 to delete, 1 unchanged"


def test_paused_by_a_person_stays_paused() -> None:
    """`paused` belongs to people unless the file says it; taken out of the file, it is taken back."""
    where = ("deployments", "d")
    desired: Any = {where: {"name": "d"}}
    live: Any = {where: {"name": "d", "paused": True}}
    none: frozenset[str] = frozenset()
    said = frozenset({"paused"})
    assert made(make_plan(desired, live, owned={where: none}, written={where: none})) == {
        "deployments/d": "unchanged"
    }
    for owned, written in ((none, said), (said, none)):
        plan = make_plan(desired, live, owned={where: owned}, written={where: written})
        assert made(plan) == {"deployments/d": "update"}


def test_a_plan_says_what_becomes_of_windows_and_hides_addresses() -> None:
    """Another text keeps window state, another pattern resets it; an Apprise URL is never shown."""
    where = ("automations", "r")
    text: Any = {**RULE, "do": [{"notify": ["oncall"], "title": "x"}]}
    pattern: Any = {**RULE, "on": ["a.c"]}
    notes = [
        make_plan({where: after}, {where: RULE}, owned={}, written={}).steps[0].note
        for after in (text, pattern)
    ]
    assert notes == ["window state is kept", "matching changes: its window state is reset"]
    # A rule is known by its name: under another one it begins anew, and beside the old one until that is removed.
    renamed: Any = {("automations", "new"): {**text, "name": "new"}}
    for prune, says in ((True, "begins without its windows"), (False, "it still fires, and so does 'new'")):
        plan = make_plan(renamed, {where: RULE}, owned={where: frozenset()}, written={}, prune=prune)
        assert says in plan.steps[1].note
    plan = make_plan(
        {("automations", "new"): {**pattern, "name": "new"}},
        {where: RULE},
        owned={where: frozenset()},
        written={},
    )
    assert plan.steps[1].note == ""
    channel = ("channels", "c")
    plan = make_plan(
        {channel: {"urls": ["slack://SECRET"]}}, {channel: {"urls": ["slack://OLD"]}}, owned={}, written={}
    )
    assert "SECRET" not in plan_text(plan.to_json())
    assert "OLD" not in str(plan.to_json())


async def test_applying_is_remembered_and_only_that_is_pruned(bus: Bus) -> None:
    """The ledger knows what came from a configuration; what a person made stays, and may be referred to."""
    await bus.bucket("variables").put("hand", b"1")
    both = manifest(Record("variables", "a", 1), Record("variables", "b", {"x": [1]}))
    assert made(await plan_manifest(bus, both)) == {"variables/a": "create", "variables/b": "create"}
    assert await bus.bucket("variables").keys() == ["hand"]
    await apply_manifest(bus, both)
    assert made(await apply_manifest(bus, both)) == {"variables/a": "unchanged", "variables/b": "unchanged"}
    one = manifest(Record("variables", "a", 2))
    assert made(await apply_manifest(bus, one)) == {"variables/a": "update", "variables/b": "orphaned"}
    assert await bus.bucket("variables").keys() == ["a", "b", "hand"]
    assert (await names_besides_config(bus))["variables"] == {"hand"}
    assert made(await apply_manifest(bus, one, prune=True)) == {
        "variables/a": "unchanged",
        "variables/b": "delete",
    }
    assert await bus.bucket("variables").keys() == ["a", "hand"]
    assert made(await apply_manifest(bus, one, prune=True)) == {"variables/a": "unchanged"}


async def test_schedules_go_with_their_line(bus: Bus, tmp_path: Path) -> None:
    """A schedule taken out of its deployment is gone without `--prune`: it was a line of it."""
    (tmp_path / "f.py").write_text("def f(): ...\n")
    path = tmp_path / "hark.yaml"
    path.write_text("deployments: {d: {flow: f.py:f, schedules: [{interval: 1h}, {interval: 2h}]}}\n")
    await apply_manifest(bus, load_manifest(path))
    assert await bus.bucket("schedules").keys() == ["d/0", "d/1"]
    path.write_text("deployments: {d: {flow: f.py:f, schedules: [{interval: 1h}]}}\n")
    await apply_manifest(bus, load_manifest(path))
    assert await bus.bucket("schedules").keys() == ["d/0"]


async def test_secrets_that_are_not_set_are_said(bus: Bus) -> None:
    """A plan names them with what to do; it is no fault."""
    plan = await plan_manifest(bus, manifest(Record("variables", "a", "{{ secrets.smtp }}")))
    assert plan.warnings == (
        "the secret 'smtp' is not set; what reads it fails until `hark secrets set smtp`",
    )


async def test_a_changed_file_is_applied_and_a_bad_one_changes_nothing(
    start: Start, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the service runs: a good file goes live, a bad one is told with its place and what was live stays."""
    caplog.set_level(logging.INFO, logger="hark.config")
    logged = anyio.Event()

    class Bell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal logged
            logged.set()
            logged = anyio.Event()

    bell = Bell()
    logging.getLogger("hark.config").addHandler(bell)

    async def until(text: str) -> None:
        with anyio.fail_after(60):
            while text not in "\n".join(r.getMessage() + str(vars(r)) for r in caplog.records):
                await logged.wait()

    async with start(roles=frozenset({Role.SERVER})) as (_, http):
        assert (await http.get("/api/variables/region")).json()["value"] == "eu"
        caplog.clear()
        (project / "hark.yaml").write_text("variables: {region: us}\nautomatons: {}\n")
        await until("config.refused")
        assert any("hark.yaml:2:1" in str(vars(r)) for r in caplog.records)
        assert (await http.get("/api/variables/region")).json()["value"] == "eu"
        caplog.clear()
        # As editors do it: a new file renamed into place.
        (project / "new.yaml.tmp").write_text("variables: {region: us}\n")
        (project / "new.yaml.tmp").rename(project / "hark.yaml")
        await until("config.applied")
        assert (await http.get("/api/variables/region")).json()["value"] == "us"
        assert len((await http.get("/api/deployments")).json()["items"]) == 2
    logging.getLogger("hark.config").removeHandler(bell)


async def test_a_file_that_is_written_while_it_serves_is_applied(start: Start, project: Path) -> None:
    """As people begin: `hark up` in an empty folder, then the first hark.yaml; taken away, what it said stays."""
    (project / "hark.yaml").unlink()
    async with start(roles=frozenset({Role.SERVER}), awaits_config=True) as (service, http):
        assert (await http.get("/api/variables/region")).status_code == 404
        async with service.bus.bucket("variables").watch() as changes:
            (project / "hark.yaml").write_text("variables: {region: us}\n")
            with anyio.fail_after(15):
                async for change in changes:
                    if change.key == "region":
                        break
        assert (await http.get("/api/variables/region")).json()["value"] == "us"
        (project / "hark.yaml").unlink()
        assert (await http.get("/api/variables/region")).json()["value"] == "us"


async def test_a_manifest_is_planned_and_applied_over_http(start: Start) -> None:
    """What a client sends is checked anew, planned without effect, and applied."""
    async with start(roles=frozenset({Role.SERVER})) as (_, http):
        record = {
            "bucket": "pools",
            "key": "big",
            "value": {"name": "big", "concurrency": 4},
            "written": ["concurrency"],
        }
        body: Any = {"manifest": {"records": [record]}, "prune": True}
        plan = (await http.post("/api/config/plan", json=body)).json()
        assert {(s["bucket"], s["key"], s["change"]) for s in plan["steps"]} == {
            ("pools", "big", "create"), ("deployments", "etl", "delete"), ("deployments", "broken", "delete"),
            ("schedules", "etl/0", "delete"), ("variables", "region", "delete"),
        }  # fmt: skip
        assert len((await http.get("/api/deployments")).json()["items"]) == 2
        assert (await http.post("/api/config/apply", json=body)).status_code == 200
        assert (await http.get("/api/deployments")).json()["items"] == []
        record["value"] = {"name": "big", "concurency": 4}
        refused = await http.post("/api/config/apply", json=body)
        assert refused.status_code == 422
        assert refused.json()["faults"][0]["suggestion"] == "did you mean 'concurrency'?"
        for wrong in ({}, {"manifest": {"records": [{"bucket": "keys", "key": "x", "value": 1}]}}):
            assert (await http.post("/api/config/apply", json=wrong)).status_code == 422
