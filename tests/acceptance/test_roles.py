"""The same roles in processes of their own: leaders fail over, nothing is lost or doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx

from tests.acceptance.conftest import Start, at, watching

FLOW = """
    from hark import flow

    @flow
    async def quick(n: int) -> int:
        return n
    """
CONFIG = """
    deployments: {quick: {flow: "flows.py:quick"}}
    automations:
      order-paid: {on: order.paid, do: [{run: quick, parameters: {n: "{{ event.data.n }}"}}]}
    """


async def test_a_standby_takes_over_when_a_leader_is_killed(
    write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """kill -9 the leading rule engine and the leading dispatcher: their standbys go on, once for each event."""
    write(flows__py=FLOW, hark__yaml=CONFIG)
    server = start(role="server")
    start(role="worker")
    # Each pair shares the broker of the server's home; the log of each says what it does.
    rules, dispatchers = start(role="automations"), start(role="dispatcher")
    start(role="automations")
    start(role="dispatcher")
    async with (
        watching(tmp_path / "home") as watch,
        httpx.AsyncClient(base_url=server.url, timeout=30) as http,
    ):

        async def pay(n: int) -> None:
            answer = await http.post(
                "/api/events", json={"type": "order.paid", "source": "/test", "data": {"n": n}}
            )
            assert answer.status_code == 202, answer.text

        for n in range(5):
            await pay(n)
        await watch.until(lambda: len(watch.events("flow-run.completed")) >= 5)
        async with anyio.create_task_group() as group:
            for n in range(5, 15):
                group.start_soon(pay, n)
            rules.kill()
            dispatchers.kill()
        await watch.until(lambda: len(watch.events("flow-run.completed")) >= 15)
        completed = Counter(at(e, "parameters__n") for e in watch.events("flow-run.completed"))
        fired = watch.events("automation.triggered")
    assert completed == dict.fromkeys(range(15), 1)
    assert len(fired) == 15
