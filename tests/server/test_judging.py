"""Backtest, explain and the impact of a plan: over HTTP and at the command line, against a running service."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import orjson
from hark.automations import Automation, Emit, Step, parse_automation
from hark.bus import Event
from hark.cli.backtest import explain_text
from hark.server.client import Hark
from hark.server.plan_text import impact_text

from tests.server.conftest import Start

RULE: dict[str, Any] = {
    "on": "build.failed",
    "for_each": "data.repo",
    "count": 2,
    "within": "10m",
    "do": [{"emit": "it.broke"}],
}


async def _emit(http: Any, n: int, type_: str = "build.failed") -> list[str]:
    ids: list[str] = []
    for _ in range(n):
        made = await http.post("/api/events", json={"type": type_, "source": "/t", "data": {"repo": "hark"}})
        ids += made.json()["ids"]
    return ids


async def _hark(*words: str, url: str, home: Path, cwd: Path) -> tuple[int, str, str]:
    env = {**os.environ, "HARK_API_URL": url, "HARK_HOME": str(home)}
    done = await anyio.run_process(
        [sys.executable, "-m", "hark.cli.main", *words], env=env, cwd=cwd, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_a_rule_is_tried_on_what_has_happened(start: Start) -> None:
    """A rule that was never live, by its body; and a live one, by its name."""
    async with start() as (service, http):
        await _emit(http, 5)
        made = (
            await http.post("/api/automations/backtest", json={"rules": {"draft": RULE}, "since": "1h"})
        ).json()
        (outcome,) = made["rules"]
        assert (outcome["automation"], outcome["fired"], made["events"]) == ("draft", 2, 5)
        assert len(outcome["decisions"][0]["events"]) == 2
        await service.bus.bucket("automations").put("live", orjson.dumps({"name": "live", **RULE}))
        named = (await http.post("/api/automations/backtest", json={"automation": "live"})).json()
        assert named["rules"][0]["fired"] == 2
        unknown = await http.post("/api/automations/backtest", json={"automation": "live2"})
        assert (unknown.status_code, "live" in unknown.text) == (404, True)
        wrong = await http.post("/api/automations/backtest", json={"rules": {"r": {"on": "Build Failed"}}})
        assert wrong.status_code == 422
        assert (await http.post("/api/automations/backtest", json={})).status_code == 422


async def test_why_a_rule_did_not_fire_is_answered(start: Start) -> None:
    """By an event's id, for every rule that listens to its type."""
    async with start() as (service, http):
        await service.bus.bucket("automations").put("pair", orjson.dumps({"name": "pair", **RULE}))
        first, second = await _emit(http, 2)
        assert service.context is not None
        await service.context.projector.caught_up(await service.bus.log.head(), timeout_s=60)
        one = (await http.post("/api/automations/explain", json={"event": first})).json()
        (pair,) = one["rules"]
        assert pair["verdict"] == "counted, and not enough yet"
        assert (pair["standings"][0]["before"]["counted"], pair["standings"][0]["after"]["counted"]) == (0, 1)
        two = (
            await http.post("/api/automations/explain", json={"event": second, "automation": "pair"})
        ).json()
        assert two["rules"][0]["verdict"] == "fires"
        # Of a decision: what it was, and why the last event it rests on led there.
        last = await service.bus.log.get((await service.context.queries.event(second)).seq)
        assert last is not None
        data: Any = {"automation": {"name": "pair", "version": "v"}, "key": "hark", "count": 2, "reason": "cooldown",
                     "events": [{"id": second, "seq": last.seq}]}  # fmt: skip
        held = Event(
            type="automation.suppressed", source="/hark/automations", subject="automation/pair", data=data
        )
        seq = (await service.bus.log.append(held)).seq
        why = (await http.post("/api/automations/explain", json={"event": seq})).json()
        assert (why["decision"]["what"], why["decision"]["reason"], why["rules"]) == (
            "suppressed",
            "cooldown",
            [],
        )
        assert (why["led_by"]["event"]["id"], why["led_by"]["rules"][0]["verdict"]) == (second, "fires")
        assert (
            "a decision of pair: suppressed (cooldown), key 'hark', count 2; it rests on 1 event, the last"
            in explain_text(why)
        )
        assert (await http.post("/api/automations/explain", json={"event": "no-such"})).status_code == 404


async def test_the_commands_say_it_in_words(start: Start, home: Path, tmp_path: Path) -> None:
    """`hark backtest`, `hark explain` and `hark plan` with the impact of a changed rule."""
    (tmp_path / "hark.yaml").write_text(
        "automations:\n  broke: {on: build.failed, for_each: data.repo, count: 2, within: 10m, do: [{emit: it.broke}]}\n"
    )
    async with start() as (service, http):
        (seen, *_) = await _emit(http, 5)
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        options: dict[str, Any] = {"url": service.url, "home": home, "cwd": tmp_path}
        code, out, err = await _hark("backtest", "broke", "--since", "1h", **options)
        assert code == 0, err
        assert "broke: 2 fired; 5 events" in out
        code, out, err = await _hark("plan", **options)
        assert code == 0, err
        assert "+ automation broke" in out
        assert "impact: 2 firings (2 actions) over the last" in out or "no history" in out
        await service.bus.bucket("automations").put(
            "broke", orjson.dumps({"name": "broke", **RULE, "count": 5})
        )
        code, out, err = await _hark("explain", seen, **options)
        assert code == 0, err
        assert "broke: counted, and not enough yet" in out
        assert "key 'hark': before counted 0" in out
        code, out, _ = await _hark("plan", "--json", **options)
        (step,) = [s for s in orjson.loads(out)["steps"] if s["bucket"] == "automations"]
        assert (step["impact"]["before"]["fired"], step["impact"]["after"]["fired"]) == (1, 2)
        lines = tmp_path / "events.jsonl"
        lines.write_text(
            '{"type": "build.failed", "time": "2026-01-01T00:00:00Z", "id": "a", "data": {"repo": "x"}}\n' * 2
        )
    code, out, err = await _hark(
        "backtest", "broke", "--file", str(lines), url="http://127.0.0.1:1", home=home, cwd=tmp_path
    )
    assert code == 0, err
    assert "broke: 1 fired; 2 events" in out


async def test_a_rule_from_python_is_made_live_and_taken_away(start: Start) -> None:
    """The models that YAML parses into, and the client."""
    async with start() as (service, _), Hark(service.url, "") as hark:
        rule = Automation(
            name="from-python",
            sequence=[
                Step(as_="deploy", on="deploy.finished"),
                Step(on="app.error", where={"data.service": "{{ deploy.data.service }}"}, count=2),
            ],
            within=timedelta(minutes=15),
            do=[Emit(emit="it.broke", data={"by": "{{ deploy.data.by }}"})],
        )
        await hark.save_automation(rule)
        stored = await hark.request("GET", "/api/automations/from-python/definition")
        assert parse_automation(stored["definition"], name="from-python") == rule
        assert (await hark.automation("from-python"))["within"] == "15m"
        await hark.delete_automation("from-python")
        assert await hark.automations() == []


def test_an_impact_is_one_line() -> None:
    """Before and after, over what there is of history."""
    after = {"fired": 3, "suppressed": 1, "actions": 6}
    assert impact_text({"days": 7.0, "before": None, "after": after}) == (
        "impact: 3 firings (6 actions, 1 held back) over the last 7d"
    )
    changed = impact_text({"days": 0.5, "before": {**after, "suppressed": 0}, "after": None, "whole": False})
    assert changed.startswith(
        "impact: 3 firings (6 actions) before, nothing after, over the last 12h, as far as"
    )
    one = impact_text({"days": 1, "before": None, "after": {"fired": 1, "suppressed": 0, "actions": 1}})
    assert one == "impact: 1 firing (1 action) over the last 1d"
    assert "no history" in impact_text({"days": 0, "before": None, "after": None})
