"""A backfill goes on where it stopped, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx

from tests.acceptance.conftest import Start, at, watching

FLOW = """
    from hark import flow

    @flow
    async def day(day: str) -> str:
        return day
    """
CONFIG = """
    deployments:
      day: {flow: "flows.py:day", schedules: [{cron: "0 0 * * *", paused: true}]}
    """


async def test_each_slot_runs_once_when_the_server_and_the_command_are_killed(
    folder: Path, write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """kill -9 of `hark deployments backfill`, then of `hark up` halfway: every slot has one run; never more than two at once."""
    write(flows__py=FLOW, hark__yaml=CONFIG)
    service = start()
    words = [
        "deployments", "backfill", "day", "--from", "2026-01-01", "--to", "2026-02-20", "--max-parallel", "2", "-y",
        "-p", "day={{ slot[:10] }}",
    ]  # fmt: skip

    def command() -> subprocess.Popen[bytes]:
        environment = {**os.environ, "HARK_HOME": str(tmp_path / "home")}
        return subprocess.Popen(
            [sys.executable, "-m", "hark.cli.main", *words], env=environment, cwd=folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    first = command()
    async with watching(tmp_path / "home") as watch:
        await watch.until(lambda: len(watch.events("flow-run.completed")) >= 5)
        first.send_signal(signal.SIGKILL)
        await anyio.to_thread.run_sync(first.communicate)
        service.kill()
    start()
    again = command()
    out, _ = await anyio.to_thread.run_sync(again.communicate)
    assert again.returncode == 0, out.decode()
    assert "50/50" in out.decode()
    async with watching(tmp_path / "home") as watch:
        await watch.until(lambda: bool(watch.events("deployment.backfill.finished")))
    done = Counter(at(e, "parameters__day") for e in watch.events("flow-run.completed"))
    assert (len(done), set(done.values())) == (50, {1})
    assert len(watch.events("flow-run.scheduled")) == 50
    assert len(watch.events("deployment.backfill.finished")) == 1
    active, most = set[str](), 0
    for record in watch.seen:
        event = record.event
        if event.type == "flow-run.scheduled":
            active.add(str(event.subject))
            most = max(most, len(active))
        elif event.type == "flow-run.completed":
            active.discard(str(event.subject))
    assert most == 2
    url = httpx.URL((tmp_path / "home" / "api.json").read_text().split('"url":"')[1].split('"')[0])
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        [listed] = (await http.get("/api/backfills")).json()["items"]
    assert (listed["status"], listed["ended"]) == ("finished", {"completed": 50})
