"""Processes are killed with -9 at the worst moment, and everything comes out right."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest
from hark.bus import Recorded

from tests.acceptance.conftest import Start, at, watching

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "3"))
"""How often the server is killed; `make chaos` asks for more."""

pytestmark = pytest.mark.chaos

FIVE_TASKS = """
    import os, time
    from pathlib import Path
    from hark import flow, task

    @task
    def step(folder: str, n: int) -> int:
        with open(Path(folder) / "ran.txt", "a") as out:
            out.write(f"{n}\\n")
        if n == 3 and not (Path(folder) / "go").exists():
            (Path(folder) / "reached.part").write_text(str(os.getpid()))
            (Path(folder) / "reached.part").rename(Path(folder) / "reached")
            time.sleep(60)  # held here until the test kills this process
        return n

    @flow
    def five(folder: str) -> int:
        return sum(step(folder, n) for n in range(1, 6))
    """


@pytest.mark.parametrize("victim", ["worker", "its process"])
async def test_finished_tasks_do_not_run_again_when_a_worker_is_killed(
    victim: str, folder: Path, write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """kill -9 in the third of five tasks: the next worker runs 3, 4 and 5, and never 1 and 2 again."""
    write(flows__py=FIVE_TASKS, hark__yaml='deployments: {five: {flow: "flows.py:five"}}')
    start(role="server")
    start(role="dispatcher", home="home")
    first = start(role="worker")
    async with watching(tmp_path / "home") as watch:
        server = httpx.AsyncClient(
            base_url=json.loads((tmp_path / "home/api.json").read_text())["url"], timeout=60
        )
        async with server:
            answer = await server.post(
                "/api/deployments/five/run", json={"parameters": {"folder": str(folder)}}
            )
            assert answer.is_success, answer.text
            await _exists(folder / "reached")
            (folder / "go").touch()
            if victim == "worker":
                first.kill()
                start(role="worker")
            else:
                os.kill(int((folder / "reached").read_text()), signal.SIGKILL)
            await watch.until(lambda: bool(watch.events("flow-run.completed")))
    ran = Counter((folder / "ran.txt").read_text().split())
    assert ran == {"1": 1, "2": 1, "3": 2, "4": 1, "5": 1}
    assert len([r for r in watch.seen if r.event.type in TERMINAL]) == 1
    completed = watch.events("flow-run.completed")[0]
    assert at(completed, "run__attempt") == 2
    assert at(completed, "result__inline") == 15


TERMINAL = {"flow-run.completed", "flow-run.failed", "flow-run.crashed", "flow-run.cancelled"}


async def _exists(path: Path) -> None:
    """Wait for a file another process makes; the kernel tells, nobody polls."""
    from watchfiles import awatch

    if path.exists():
        return
    with anyio.fail_after(60):
        async for _ in awatch(path.parent, rust_timeout=200, yield_on_timeout=True):
            if path.exists():
                return


RULES = """
    deployments: {quick: {flow: "flows.py:quick"}}
    automations:
      order-paid:
        on: order.paid
        budget: 100000/m
        do:
          - run: quick
            parameters: {n: "{{ event.data.n }}"}
          - emit: order.seen
            data: {n: "{{ event.data.n }}"}
    """
QUICK = """
    from hark import flow

    @flow
    async def quick(n: int) -> int:
        return n
    """


async def test_an_action_happens_once_when_the_server_is_killed_after_the_decision(
    write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """kill -9 the moment a decision is in the log, again and again: each decision's actions happen, once each."""
    write(flows__py=QUICK, hark__yaml=RULES)
    rounds = ROUNDS
    for n in range(rounds):
        service = start()
        async with watching(tmp_path / "home") as watch:
            async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
                answer = await client.post(
                    "/api/events", json={"type": "order.paid", "source": "/test", "data": {"n": n}}
                )
                assert answer.status_code == 202, answer.text
            with anyio.fail_after(60):
                # The decision stands in the log: whatever its actions were doing, they stop here.
                while not _decided(watch.seen, n):
                    await anyio.wait_all_tasks_blocked()
            service.kill()
    start()
    async with watching(tmp_path / "home") as watch:
        await watch.until(
            lambda: (
                len(watch.events("flow-run.completed")) >= rounds
                and len(watch.events("order.seen")) >= rounds
            )
        )
        completed = Counter(at(e, "parameters__n") for e in watch.events("flow-run.completed"))
        emitted = Counter(at(e, "n") for e in watch.events("order.seen"))
        decided = [r for r in watch.seen if r.event.type == "automation.triggered"]
    assert completed == dict.fromkeys(range(rounds), 1)
    assert emitted == dict.fromkeys(range(rounds), 1)
    assert len(decided) == rounds


def _decided(seen: list[Recorded], n: int) -> bool:
    paid = {r.event.id for r in seen if r.event.type == "order.paid" and at(r.event, "n") == n}
    return any(r.event.type == "automation.triggered" and r.event.causationid in paid for r in seen)


async def test_nothing_acknowledged_is_lost_when_the_broker_is_killed_under_load(
    write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """kill -9 the broker while events pour in: every 202 is in the log once, every run ends once, all by itself."""
    write(flows__py=QUICK, hark__yaml=RULES)
    service = start()
    stored: list[str] = []
    refused = 0
    enough = anyio.Event()

    async def pour(sender: int) -> None:
        nonlocal refused
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            for n in range(40):
                event = {
                    "id": f"{sender}-{n}",
                    "type": "order.paid",
                    "source": "/test",
                    "data": {"n": sender * 100 + n},
                }
                try:
                    answer = await client.post("/api/events", json=event)
                except httpx.TransportError:
                    refused += 1
                    continue
                if answer.status_code == 202:
                    stored.append(event["id"])  # type: ignore[arg-type]
                else:
                    assert answer.status_code == 503, answer.text
                    refused += 1
                if len(stored) >= 40:
                    enough.set()

    async with anyio.create_task_group() as group:
        for sender in range(4):
            group.start_soon(pour, sender)
        await enough.wait()
        os.kill(json.loads((tmp_path / "home" / "broker.json").read_text())["pid"], signal.SIGKILL)
    assert len(stored) > 40, "the load went on after the broker came back"
    async with watching(tmp_path / "home") as watch:
        await watch.until(lambda: len(watch.events("flow-run.completed")) >= len(stored), within_s=60)
        ids = Counter(e.id for e in watch.events("order.paid"))
        ends = Counter(r.event.subject for r in watch.seen if r.event.type in TERMINAL)
    assert set(stored) <= set(ids)
    assert set(ids.values()) == {1}
    assert set(ends.values()) == {1}
    assert len(ends) == len(ids)


async def test_a_flow_that_will_not_be_cancelled_does_not_keep_the_service_from_stopping(
    write: Callable[..., None], start: Start, folder: Path
) -> None:
    """TERM ends the service within its limit, though an async flow in its loop swallows every cancellation."""
    write(
        flows__py="""
            import asyncio
            from pathlib import Path
            from hark import flow

            @flow
            async def stubborn(folder: str) -> None:
                Path(folder, "reached").touch()
                while True:
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        pass
            """,
        hark__yaml='deployments: {stubborn: {flow: "flows.py:stubborn"}}',
    )
    service = start(environment={"HARK_SERVER__STOP_LIMIT_S": "2"})
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
        asked = await http.post("/api/deployments/stubborn/run", json={"parameters": {"folder": str(folder)}})
        assert asked.is_success, asked.text
        await _exists(folder / "reached")
    assert await anyio.to_thread.run_sync(service.stop) == 1
    assert "hark.stopped_by_force" in service.log()
