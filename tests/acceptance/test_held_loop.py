"""Code of an async flow that does not await, in a real `hark up`: it holds up its own loop, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import httpx
from anyio import to_thread

from tests.acceptance.conftest import Start, watching

RUDE = """
    import socket, threading
    from hark import flow

    @flow
    async def rude(port: int) -> str:
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.recv(1)  # blocks, until the test hangs up
        return threading.current_thread().name
    """
CONFIG = """
    deployments: {rude: {flow: "flows.py:rude"}}
    automations:
      paid: {on: order.paid, do: [{emit: order.seen}]}
    """


async def test_a_flow_that_holds_its_loop_holds_up_nothing_else(
    write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """A rule fires and HTTP answers meanwhile; afterwards the flow ends well. While another holds it, the process ends in time."""
    write(flows__py=RUDE, hark__yaml=CONFIG)
    service = start(environment={"HARK_WORKER__PROCESSES": "0", "HARK_SERVER__STOP_LIMIT_S": "1"})
    with socket.create_server(("127.0.0.1", 0)) as door:
        parameters = {"port": door.getsockname()[1]}
        async with (
            watching(tmp_path / "home") as watch,
            httpx.AsyncClient(base_url=service.url, timeout=60) as http,
        ):

            async def holding() -> socket.socket:
                asked = await http.post("/api/deployments/rude/run", json={"parameters": parameters})
                assert asked.is_success, asked.text
                return (await to_thread.run_sync(door.accept))[0]

            with await holding():
                paid = await http.post("/api/events", json={"type": "order.paid", "source": "/test"})
                assert paid.status_code == 202
                await watch.until(lambda: watch.events("order.seen") != [])
                assert (await http.get("/health/ready")).status_code == 200
                assert watch.events("flow-run.completed") == []
            await watch.until(lambda: watch.events("flow-run.completed") != [])
            [ended] = watch.events("flow-run.completed")
            assert "hark-worker" in str(ended.data)
            with await holding():
                assert await to_thread.run_sync(service.stop) == 1
    assert "hark.stopped_by_force" in service.log()
