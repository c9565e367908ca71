"""The command line against a real service: what it prints, what it exits with, what it says when things go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import to_thread
from hark.bus.session import use_session
from hark.cli.main import COMMANDS, command_paths
from hark.config import ServerConfig, Settings
from hark.engine.limits.slots import slots_of
from hark.server.address import find_api

from tests.cli.conftest import CONFIG, Run, Serve, as_json


async def test_a_day_with_the_command_line(serve: Serve, hark: Run) -> None:
    """Runs, events, rules, schedules, variables, secrets: looked at and changed."""
    async with serve() as service:
        status = as_json(await hark("status", "--json"))
        assert (status["ready"], status["url"]) == (True, service.url)
        names = [d["name"] for d in as_json(await hark("deployments", "ls", "--json"))]
        assert names == ["broken", "etl"]
        ran = await hark("deployments", "run", "etl", "-p", "n=5", "-p", "source=files", "--wait")
        assert ran.exit_code == 0, ran.output
        run_id, state = ran.stdout.split()
        assert state == "Completed"
        failed = await hark("deployments", "run", "broken", "--wait", "--json")
        assert failed.exit_code == 1
        assert json.loads(failed.stdout)["state_message"].endswith("no such table")
        assert "reading files" in (await hark("runs", "logs", run_id)).stdout
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        shown = await hark("runs", "show", run_id)
        assert "state_name: Completed" in shown.stdout
        tasks = as_json(await hark("runs", "show", run_id, "--json"))["task_runs"]
        assert [task["task_name"] for task in tasks] == ["read", "read"]
        assert "These are the first" not in shown.stdout
        first = await hark("runs", "show", run_id, "--limit", "1")
        assert "These are the first 1 of 2 task runs" in first.stdout
        assert f"id: {run_id}" in (await hark("runs", "show", run_id[:-1])).stdout
        for made in ("order-77-a", "order-77-b", "parcel-1", "parcel-10", "parcel-11"):
            await hark("emit", "order.made", "--id", made)
        listed = as_json(await hark("runs", "ls", "--state", "failed", "--json"))
        assert [r["deployment"] for r in listed] == ["broken"]
        found = await hark("runs", "ls", "--since", "1h", "--text", "no such table", "--json")
        assert [r["deployment"] for r in as_json(found)] == ["broken"]
        assert (await hark("runs", "watch", run_id)).exit_code == 0
        retried = as_json(await hark("runs", "retry", listed[0]["id"], "--json"))
        assert retried["state_type"] == "SCHEDULED"

        emitted = await hark(
            "emit", "order.paid", "--subject", "order/1", "--data", '{"shop": "eu"}', "--id", "o1"
        )
        assert emitted.stdout.strip() == "o1"
        watched = await hark(
            "events", "watch", "flow-run.completed", "--after", "0", "--count", "2", "--json"
        )
        causes = [json.loads(line)["event"]["data"]["cause"]["kind"] for line in watched.stdout.splitlines()]
        assert causes == ["cli", "automation"]
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        assert "order-77-a" in (await hark("events", "show", "order-77-a")).stdout
        alike = await hark("events", "show", "order-77")
        said = " ".join(alike.stderr.split())
        assert alike.exit_code == 2
        assert "say more of it: order-77-b (order.made), order-77-a (order.made)" in said
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hark.cli.ident._SHOWN", 1)
            whole = as_json(await hark("events", "show", "parcel-1", "--json"))
            assert whole["event"]["id"] == "parcel-1"
            assert (await hark("events", "show", "parcel")).exit_code == 2
        assert "order/1" in (await hark("events", "ls", "order.*")).stdout
        assert "order/1" in (await hark("events", "ls", "--type", "order.*")).stdout
        assert as_json(await hark("events", "show", "o1", "--json"))["event"]["data"] == {"shop": "eu"}
        assert as_json(await hark("automations", "ls", "--json"))[0]["fired"] == 1
        assert "told is paused" in (await hark("automations", "pause", "told")).stdout
        assert as_json(await hark("automations", "show", "told", "--json"))["paused"] is True
        assert (await hark("automations", "resume", "told")).exit_code == 0

        assert len(as_json(await hark("schedules", "next", "--count", "3", "--json"))) == 3
        assert (await hark("schedules", "pause", "etl/0")).exit_code == 0
        assert as_json(await hark("schedules", "ls", "--json"))[0]["paused"] is True
        assert "the schedule is paused" in (await hark("schedules", "next")).stdout

        assert (await hark("variables", "get", "region")).stdout == "eu\n"
        await hark("variables", "set", "most", "[1, 2]")
        assert as_json(await hark("variables", "get", "most")) == [1, 2]
        await hark("variables", "rm", "most")
        assert (await hark("variables", "get", "most")).exit_code == 2

        assert (await hark("secrets", "set", "shop", input="s3cret-s3cret\n")).stdout == "shop is set\n"
        assert (await hark("secrets", "ls")).stdout == "shop\n"
        Path("secret").write_text("s3cret-s3cret\n")
        sent = await hark(
            "webhooks", "send", "shop", '{"a": 1}', "--secret-file", "secret", "--event", "push"
        )
        assert (sent.exit_code, sent.stdout.split()[0]) == (0, "202")
        unsigned = await hark("webhooks", "send", "shop", "--unsigned", "--json")
        assert (unsigned.exit_code, json.loads(unsigned.stdout)["status"]) == (1, 401)
        assert "/hooks/shop" in (await hark("webhooks", "ls")).stdout

        tested = await hark("channels", "test", "ops", "--json")
        assert (tested.exit_code, json.loads(tested.stdout)["ok"]) == (1, False)
        assert "127.0.0.1:9" not in (await hark("channels", "ls")).stdout
        [pool] = as_json(await hark("pools", "ls", "--json"))
        [worker] = as_json(await hark("worker", "ls", "--json"))
        lanes = [worker["async"], worker["sync"]]
        assert lanes == [{"places": 64, "taken": 0, "waiting": 0}, {"places": 0, "taken": 0, "waiting": 0}]
        assert pool["workers"] == {"count": 1} | {
            word: sum(one[word] for one in lanes) for word in ("places", "taken", "waiting")
        }
        assert [line.split()[:2] for line in (await hark("worker", "ls")).stdout.splitlines()][1:] == [
            [worker["name"], "default"]
        ]
        assert as_json(await hark("worker", "ls", "--pool", "gpu", "--json")) == []
        assert "default" in (await hark("pools", "ls")).stdout
        assert (await hark("dlq", "ls")).stdout == "no dead letters\n"
        assert (await hark("dlq", "redrive")).exit_code == 2
        none = await hark("dlq", "redrive", "--all")
        assert (none.exit_code, none.stdout) == (0, "0 dead letters are tried again\n")
        assert as_json(await hark("rebuild", "--json"))["events"] > 0
        doctor = as_json(await hark("doctor", "--json"))
        verdicts = {d["check"]: d["verdict"] for d in doctor}
        assert {
            verdicts[w] for w in ("python", "nats-server", "home", "configuration", "server", "clock")
        } == {"ok"}


async def test_plan_and_apply_from_here(serve: Serve, hark: Run, project: Path) -> None:
    """The files are read here, held against what is live there, and applied; a fault changes nothing."""
    async with serve():
        other = project / "other.yaml"
        other.write_text("variables: {region: us}\nautomations: {x: {on: a.b, do: {run: etl}}}\n")
        missing = await hark("plan", "other.yaml")
        assert missing.exit_code == 2
        assert "other.yaml:2:38: there is no deployment named 'etl'" in missing.stderr
        other.write_text("variables: {region: us}\n")
        plan = await hark("plan", "other.yaml")
        assert plan.exit_code == 0
        assert '~ variable region\n    : "eu" → "us"' in plan.stdout
        assert "0 to create, 1 to update, 0 to delete" in plan.stdout
        assert (await hark("variables", "get", "region")).stdout == "eu\n"
        pruned = as_json(await hark("apply", "other.yaml", "--prune", "--json"))
        assert pruned["changes"] > 3
        assert (await hark("variables", "get", "region")).stdout == "us\n"
        assert (await hark("deployments", "ls")).stdout == "no deployments; write some into hark.yaml\n"


async def test_keys_from_the_command_line(serve: Serve, hark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first key closes the door; the command line opens it with HARK_API_KEY."""
    async with serve():
        token = (await hark("keys", "create", "ann")).stdout.strip()
        refused = await hark("status")
        assert refused.exit_code == 2
        assert "HARK_API_KEY" in refused.stderr
        monkeypatch.setenv("HARK_API_KEY", token)
        assert as_json(await hark("keys", "ls", "--json"))[0]["name"] == "ann"
        assert (await hark("keys", "revoke", "ann")).exit_code == 0


async def test_what_was_asked_wrongly_says_what_to_do(serve: Serve, hark: Run) -> None:
    """Exit code 2, the reason and a suggestion on stderr, nothing on stdout."""
    async with serve():
        for words, said in (
            (("deployments", "run", "elt"), "did you mean 'etl'?"),
            (("deployments", "run", "etl/nightly"), "ask for 'nightly'"),
            (("runs", "show", "nope"), "there is no flow run named 'nope'"),
            (("emit", "Order.Paid"), "lower-case dotted words"),
            (("emit", "flow-run.failed"), "one of Hark's own words"),
            (("emit", "a.b", "--data", "{"), """write it as '{"amount": 1}'"""),
            (("secrets", "set", "shop", "s3cret"), "`hark secrets set shop` asks for it"),
            (("automation", "ls"), "did you mean 'automations'?"),
            (("runs", "shw"), "did you mean 'show'?"),
            (("channels", "start"), "there is 'ls', 'test'"),
            (("deployments", "run", "etl", "-p", "n"), "is not NAME=VALUE"),
            (("deployments", "run", "etl", "--delay", "5"), "is not a duration"),
            (("events", "ls", "--since", "soon"), "neither a time nor how long ago"),
        ):  # fmt: skip
            result = await hark(*words)
            assert (result.exit_code, result.stdout) == (2, ""), words
            assert said in " ".join(result.stderr.replace("│", " ").split()), (words, result.stderr)


def test_a_server_that_is_not_up_is_looked_for_on_its_own_port(tmp_path: Path) -> None:
    """Unless an address is set; port 0 is any, so it says nothing."""
    for port, said in ((4999, "http://127.0.0.1:4999"), (0, "http://127.0.0.1:4280")):
        assert find_api(Settings(home=tmp_path, server=ServerConfig(port=port))) == said
    elsewhere = Settings(home=tmp_path, api_url="http://far:1", server=ServerConfig(port=4999))
    assert find_api(elsewhere) == "http://far:1"


async def test_without_a_server_it_says_how_to_start_one(hark: Run) -> None:
    """Exit code 1, one sentence, no traceback."""
    os.environ["HARK_API_URL"] = "http://127.0.0.1:9"
    for words in (("status",), ("events", "watch"), ("runs", "ls"), ("emit", "a.b")):
        result = await hark(*words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "start one with `hark up`" in result.stderr
        assert "Traceback" not in result.stderr
    del os.environ["HARK_API_URL"]


LIKELY_WRONG = """\
channels:
  used: {urls: ["json://localhost"]}
  lost: {urls: ["json://localhost"]}
automations:
  any:
    cooldown: 1m
    on: "a.*"
    do:
      - emit: a.c
      - notify: used
  nothing:
    on: b.c
    for_each: device
"""


async def test_lint_and_rule_tests_need_no_server(project: Path, hark: Run) -> None:
    """Every fault with its place, and the tests written inside rules, in virtual time."""
    good = await hark("lint")
    assert good.exit_code == 0
    assert good.stdout.startswith("0 errors")
    assert "no rule tells the channel 'ops' anything" in good.stderr
    tests = await hark("test")
    assert (tests.exit_code, tests.stdout.splitlines()[-1]) == (0, "1 passed, 0 failed")
    text = CONFIG.replace("expect: fired", "expect: not fired").replace("n: int", "n: int")
    (project / "hark.yaml").write_text(text)
    failed = await hark("test", "--json")
    assert (failed.exit_code, json.loads(failed.stdout)[0]["ok"]) == (1, False)
    assert (await hark("test", "--rule", "tolld")).exit_code == 2
    (project / "hark.yaml").write_text(CONFIG.replace("run: etl", "run: elt"))
    bad = await hark("lint", "--json")
    assert bad.exit_code == 1
    [fault] = [f for f in json.loads(bad.stdout) if f["severity"] == "error"]
    assert (fault["line"], fault["suggestion"]) == (10, "did you mean 'etl'?")
    (project / "hark.yaml").write_text(LIKELY_WRONG)
    warned = await hark("lint", "--json")
    assert warned.exit_code == 0
    told = {(f["line"], f["column"], f["path"]): f["message"] for f in json.loads(warned.stdout)}
    assert "one cooldown for all events" in told[6, 5, "automations.any.cooldown"]
    assert "which it reacts to itself" in told[9, 9, "automations.any.do.0.emit"]
    assert "the rule does nothing" in told[11, 3, "automations.nothing.do"]
    assert "no usual event attribute" in told[13, 5, "automations.nothing.for_each"]
    assert "'lost' anything" in told[3, 3, "channels.lost"]
    assert len(told) == 5
    (project / "hark.yaml").unlink()
    nothing = await hark("lint")
    assert (nothing.exit_code, "no hark.yaml here" in nothing.stderr) == (2, True)


async def test_a_flow_runs_here_and_now(project: Path, hark: Run) -> None:
    """`hark run FILE:FLOW` prints what the flow returns; a failed one exits with 1 and says why."""
    ok = await hark("run", "flows.py:etl", "-p", "n=7", "-p", "source=x")
    assert (ok.exit_code, ok.stdout.splitlines()[-1]) == (0, "7"), ok.output
    failed = await hark("run", "flows.py:broken")
    assert failed.exit_code == 1
    assert "no such table" in failed.stderr
    for entrypoint, said in (
        ("flows.py:elt", "did you mean 'etl'?"), ("flow.py:etl", "did you mean 'flows.py'?"), ("flows.py", "FILE:FLOW"),
        ("nightly", "`hark deployments run nightly`"),
        ("flows.py:flow", "is no flow"),
    ):  # fmt: skip
        wrong = await hark("run", entrypoint)
        assert wrong.exit_code == 2
        assert said in wrong.stderr


async def test_every_command_has_help(hark: Run) -> None:
    """The commands of the specification are there, each says what it does, every listing takes --json."""
    every = command_paths()
    wanted = (
        "up demo run emit plan apply lint test status rebuild doctor version events_ls events_watch events_show events_replay runs_ls"
        " runs_show runs_logs runs_watch runs_cancel runs_retry deployments_ls deployments_show deployments_run"
        " deployments_pause deployments_resume deploy worker_start worker_ls automations_ls automations_show automations_pause automations_resume"
        " schedules_ls schedules_next schedules_pause schedules_resume webhooks_ls webhooks_send channels_ls"
        " channels_test pools_ls variables_ls variables_set variables_get variables_rm secrets_ls secrets_set secrets_rm"
        " dlq_ls dlq_show dlq_redrive dlq_drop keys_create keys_ls keys_revoke backtest explain audit backup restore"
        " runs_pause runs_resume runs_delete deployments_delete deployments_backfill automations_delete webhooks_show"
        " silences_ls silences_add silences_expire limits_ls blocks_ls artifacts_ls migrate_prefect migrate_airflow"
    )
    assert {tuple(w.split("_")) for w in wanted.split()} <= set(every)
    top = (await hark("--help")).stdout
    for words in every:
        result = await hark(*words, "--help")
        assert result.exit_code == 0
        assert words[0] in top
        assert len(result.stdout.splitlines()[2].strip()) > 10, words
        if words[-1] == "ls":
            assert "--json" in result.stdout, words


def test_the_line_of_a_group_names_all_that_is_in_it() -> None:
    """`hark --help` is where people look for what a group can do: no command is left out, none is of another day."""
    inside: dict[str, set[str]] = {}
    for words in command_paths():
        if len(words) > 1:
            inside.setdefault(words[0], set()).add(words[1])
    lines = {group: COMMANDS[group][1].rstrip(".").rpartition(": ")[2] for group in inside}
    assert {group: set(line.split(", ")) for group, line in lines.items()} == inside


def test_the_program_starts_quickly_and_speaks_to_the_right_streams(tmp_path: Path) -> None:
    """As a process: version on stdout, errors on stderr, exit codes as promised, nothing heavy imported for help."""
    environment = {**os.environ, "HARK_HOME": str(tmp_path), "HARK_API_URL": "http://127.0.0.1:9"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "importtime", "-m", "hark.cli.main", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)

    shown = run("--help")
    assert shown.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines() if "|" in line}
    assert not imported & {
        "pydantic",
        "httpx",
        "fastapi",
        "nats",
        "anyio",
        "ruamel.yaml",
        "aiosqlite",
        "apprise",
    }
    assert run("version").stdout.count(".") == 2
    assert run("nonsense").returncode == 2
    unreachable = run("status")
    assert (unreachable.returncode, unreachable.stdout) == (1, "")


async def test_people_are_asked_told_and_left_alone(serve: Serve, hark: Run) -> None:
    """Approvals, alerts and silences: listed, answered, taken on, ended; ids may be cut short."""
    from hark.automations.acting.approval import Approvals
    from hark.automations.acting.perform import Firing
    from hark.bus import Event

    async with serve() as service:
        assert "nothing waits" in (await hark("approvals", "ls")).stdout
        data: dict[str, Any] = {"key": "a", "automation": {"name": "r"}}
        cause = Event(type="automation.triggered", source="/t", subject="automation/r", data=data)
        for number in (1, 2):
            await Approvals(service.bus).open(
                f"019{number}-x/0", Firing.of(cause, number), title=f"Restart {number}?", body="", wait_s=60,
                branches={"yes": [], "no": [], "expired": []},
            )  # fmt: skip
        assert "Restart 1?" in (await hark("approvals", "ls")).stdout
        several = await hark("approvals", "approve", "019")
        assert (several.exit_code, "2 questions begin with" in several.stderr) == (1, True)
        said = as_json(await hark("approvals", "approve", "0191", "--by", "ann", "--json"))
        assert (said["id"], said["state"], said["by"]) == ("0191-x/0", "yes", "ann")
        assert "is no" in (await hark("approvals", "reject", "0192-x/0")).stdout
        assert (await hark("approvals", "reject", "0191")).exit_code == 1
        assert as_json(await hark("approvals", "ls", "--json")) == []
        assert len(as_json(await hark("approvals", "ls", "--all", "--json"))) == 2

        made = as_json(
            await hark("silences", "add", "severity=info", "--for", "2h", "--comment", "quiet", "--json")
        )
        assert re.search(rf"{made['id']} .* severity=info +in 2h ", (await hark("silences", "ls")).stdout)
        assert "is over" in (await hark("silences", "expire", made["id"])).stdout
        assert as_json(await hark("silences", "ls", "--json")) == []
        (over,) = as_json(await hark("silences", "ls", "--expired", "--json"))
        assert re.search(r" expired .* \d+s ago ", (await hark("silences", "ls", "--expired")).stdout)
        assert (over["state"], over["comment"]) == ("expired", "quiet")
        odd = await hark("silences", "add", "kye=b", "data.n=1", "data[0]=x", "key=b")
        assert (odd.exit_code, odd.stderr) == (
            0, "note: no open alert, rule or route has a label 'kye'; did you mean 'key'?\n",
        )  # fmt: skip
        wrong = await hark("silences", "add", "nonsense")
        assert "is no matcher" in wrong.stderr

        assert "nothing is open" in (await hark("alerts", "ls")).stdout
        nobody = await hark("alerts", "ack", "0")
        assert nobody.exit_code == 2


async def test_a_deployment_goes_with_its_triggers(serve: Serve, hark: Run, project: Path) -> None:
    """Its triggers are rules that name it as their owner; deleting it takes them along."""
    text = CONFIG.replace(
        'schedules: [{cron: "0 6 * * *"}]}', "triggers: [{on: file.arrived, name: arrived}]}"
    )
    (project / "hark.yaml").write_text(text)
    async with serve():
        assert as_json(await hark("automations", "show", "arrived", "--json"))["owner"] == "deployment/etl"
        assert as_json(await hark("deployments", "show", "etl", "--json"))["triggers"] == ["arrived"]
        gone = await hark("deployments", "delete", "etl")
        assert gone.stdout.strip() == "etl is gone, and so are its triggers: arrived"
        assert (await hark("automations", "show", "arrived")).exit_code == 2
        assert (await hark("deployments", "delete", "etl")).exit_code == 2
        missing = "there is no deployment named 'etl'"
        assert missing in (await hark("automations", "ls")).stdout
        (problem,) = as_json(await hark("automations", "show", "told", "--json"))["problems"]
        assert problem == f"do.0.run: {missing}"


async def test_limits_are_made_watched_and_removed(serve: Serve, hark: Run) -> None:
    """Made once, changed as often as you like; who holds slots is shown, and can be sent away."""
    async with serve() as service:
        assert (await hark("limits", "create", "tag:db/eu", "--slots", "1")).stdout == "tag:db/eu is made\n"
        again = await hark("limits", "create", "tag:db/eu", "--slots", "1")
        assert again.exit_code != 0
        assert "exists" in again.output
        assert (await hark("limits", "set", "api", "--rate", "100/m")).exit_code == 0
        assert (await hark("limits", "set", "api", "--inactive")).exit_code == 0
        shown = as_json(await hark("limits", "show", "api", "--json"))
        assert (shown["rate"], shown["active"]) == ("100/m", False)
        neither = await hark("limits", "create", "none")
        assert neither.exit_code == 2
        assert "either `slots` or a `rate`" in neither.output
        async with AsyncExitStack() as stack:
            session = stack.enter_context(use_session(service.bus))
            slots = slots_of(session)
            held = await slots.acquire("tag:db/eu", 1, timeout_s=None, holder="task-run/1")
            assert held is not None
            stack.push_async_callback(held.release)
            waiting = asyncio.ensure_future(
                slots.acquire("tag:db/eu", 1, timeout_s=None, holder="task-run/2")
            )
            while (line := as_json(await hark("limits", "ls", "--json"))[1])["waiting"] == 0:
                pass
            assert (line["name"], line["occupied"], line["waiting"]) == ("tag:db/eu", 1, 1)
            text = (await hark("limits", "show", "tag:db/eu")).stdout
            assert text.index("task-run/1") < text.index("task-run/2")
            assert (await hark("limits", "set", "tag:db/eu", "--slots", "2")).exit_code == 0
            second = await waiting
            assert second is not None
            await second.release()
            assert "1 slots" in (await hark("limits", "reset", "tag:db/eu")).stdout
        assert (await hark("limits", "rm", "tag:db/eu")).exit_code == 0
        assert (await hark("limits", "show", "tag:db/eu")).exit_code == 2
        async with service.bus.log.follow(["hark.ev.limit.>"], after=0) as batches:
            told: list[tuple[str, str | None]] = []
            async for batch in batches:
                told += [(r.event.type, r.event.subject) for r in batch.records]
                if ("limit.deleted", "limit/tag:db/eu") in told:
                    break
        assert told[0] == ("limit.created", "limit/tag:db/eu")


async def test_limits_of_a_configuration_are_applied(serve: Serve, hark: Run, project: Path) -> None:
    """Planned by their names, made live, pruned when they are gone from it."""
    async with serve():
        # Not the file that the service itself watches: it would have applied it by now.
        config = project / "limits.yaml"
        config.write_text("limits: {'tag:db': {slots: 3}}\n")
        assert "+ limit tag:db" in (await hark("plan", str(config))).stdout
        assert (await hark("apply", str(config))).exit_code == 0
        assert [one["name"] for one in as_json(await hark("limits", "ls", "--json"))] == ["tag:db"]
        config.write_text("limits: {'tag:db': {slots: 4}}\n")
        assert "slots: 3 → 4" in (await hark("plan", str(config))).stdout
        config.write_text("variables: {region: eu}\n")
        assert (await hark("apply", str(config), "--prune")).exit_code == 0
        assert as_json(await hark("limits", "ls", "--json")) == []


async def test_what_code_keeps_and_shows_is_read_by_command(serve: Serve, hark: Run) -> None:
    """Blocks with their secrets masked, artifacts with their content and versions."""
    from hark import Block, flow
    from hark.engine.artifacts import create_markdown_artifact, create_table_artifact
    from pydantic import SecretStr

    class Warehouse(Block):
        host: str
        password: SecretStr

    @flow
    def report(day: int) -> None:
        create_markdown_artifact(f"# Day {day}", key="daily", description="how it went")
        create_table_artifact([{"a": 1}])

    async with serve() as service:
        with use_session(service.bus):
            await to_thread.run_sync(partial(Warehouse(host="db", password=SecretStr("hush")).save, "main"))
            for day in (1, 2):
                await to_thread.run_sync(report, day)
        listed = await hark("blocks", "ls", "--json")
        assert [(b["type"], b["name"]) for b in json.loads(listed.stdout)] == [("warehouse", "main")]
        shown = await hark("blocks", "show", "warehouse/main")
        assert "db" in shown.stdout
        assert "hush" not in shown.stdout
        assert (await hark("blocks", "show", "warehouse/mian")).exit_code == 2
        assert (await hark("blocks", "rm", "main")).exit_code == 2
        assert (await hark("blocks", "rm", "warehouse/main")).exit_code == 0
        assert "no blocks" in (await hark("blocks", "ls")).stdout

        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        listed = await hark("artifacts", "ls", "--json")
        kinds = sorted(a["type"] for a in json.loads(listed.stdout))
        assert kinds == ["markdown", "table", "table"]
        assert [
            a["id"]
            for a in json.loads((await hark("artifacts", "ls", "--type", "markdown", "--json")).stdout)
        ] == ["daily"]
        found = json.loads((await hark("artifacts", "show", "daily", "--json")).stdout)
        assert (found["data"], found["description"], len(found["versions"])) == ("# Day 2", "how it went", 2)
        assert "# Day 2" in (await hark("artifacts", "show", "daily")).stdout
        assert (await hark("artifacts", "show", "dayly")).exit_code == 2


async def test_an_open_incident_is_shown_and_taken_on(
    serve: Serve, hark: Run, project: Path, home: Path
) -> None:
    """`alerts ls|show|ack` on what is open: cut ids are enough, who and what is kept, and it is over when it is over."""
    root = "notifications: {group_wait: 0s, repeat_interval: 4h, to: ops}\n"
    (project / "hark.yaml").write_text(CONFIG + root)
    async with serve() as service:
        alert = {"title": "the disk is full", "severity": "error", "labels": {"team": "data"}}
        async with httpx.AsyncClient(timeout=60) as client:
            (await client.post(f"{service.url}/api/alerts", json=alert)).raise_for_status()
        async with service.bus.log.follow(["hark.ev.notification.failed"], after=0) as batches:
            async for batch in batches:
                if batch.records:
                    break
        await service.parts.running("projector").caught_up(await service.bus.log.head())
        (listed,) = as_json(await hark("alerts", "ls", "--json"))
        assert (listed["state"], listed["told_to"]) == ("told", ["ops"])
        assert (await hark("alerts", "ls")).stdout.endswith("the disk is full  ops\n")
        short = listed["id"][:8]
        shown = as_json(await hark("alerts", "show", short, "--json"))
        (member,) = shown["members"]
        assert (member["title"], member["facts"]["team"], member["acknowledged"]) == (
            "the disk is full", "data", False,
        )  # fmt: skip
        assert "the disk is full" in (await hark("alerts", "show", short)).stdout
        taken = await hark("alerts", "ack", short, "--by", "ann", "--note", "on it")
        assert taken.stdout == f"{listed['id']} is acknowledged\n"
        shown = as_json(await hark("alerts", "show", short, "--json"))
        assert (shown["acknowledged_by"], shown["members"][0]["acknowledged"]) == ("ann", True)
        told = await service.bus.log.last("hark.ev.notification.acknowledged")
        assert told is not None
        assert isinstance(told.event.data, dict)
        assert (told.event.data["by"], told.event.data["note"]) == ("ann", "on it")
        unknown = await hark("alerts", "show", "ffffffff")
        assert (unknown.exit_code, "open incident" in unknown.stderr) == (2, True)

        # The channel's address is well-formed and wrong: nobody has to look into the log for it.
        (channel,) = as_json(await hark("channels", "ls", "--json"))
        (failing,) = channel["failing"]
        # It is tried again after a while, which may be over by now.
        assert (failing["address"], failing["kind"], failing["failures"] >= 1) == (0, "json", True)
        assert "refused" in failing["error"]
        assert re.search(r"json \(\d+x\): ", (await hark("channels", "ls")).stdout)
        (said,) = as_json(await hark("status", "--json"))["failing_channels"]["ops"]
        assert re.match(r"address 0 \(json\) did not take the last (message|\d+ messages): ", said)
        assert "failing_channels" in (await hark("status")).stdout

        tells = CONFIG.replace(
            'do: [{run: etl, parameters: {source: "{{ event.data.shop }}"}}]', "do: [{notify: ops}]"
        )
        (project / "hark.yaml").write_text(tells + root)
        await hark("apply")
        (problem,) = as_json(await hark("automations", "show", "told", "--json"))["problems"]
        assert problem.startswith("do.0.notify: the channel 'ops' fails: address 0 (json) did not take")
        assert "the channel 'ops' fails" in (await hark("automations", "ls")).stdout
        # A channel that was changed since has not failed yet, but for a further try that came by itself.
        changed_at = datetime.now(UTC)
        (project / "hark.yaml").write_text((tells + root).replace("127.0.0.1:9/x", "127.0.0.1:9/y"))
        await hark("apply")
        (channel,) = as_json(await hark("channels", "ls", "--json"))
        assert all(datetime.fromisoformat(one["last_failed_at"]) > changed_at for one in channel["failing"])
