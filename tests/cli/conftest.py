"""A project in a working folder, a service on it, and commands that find both."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from hark.cli.main import app
from hark.config import Settings, load_settings
from hark.server.service import Service
from typer.testing import CliRunner, Result

Run = Callable[..., Awaitable[Result]]
Serve = Callable[[], AbstractAsyncContextManager[Service]]

FLOWS = """
from hark import flow, task

@task
async def read(n: int) -> int:
    return n

@flow(log_prints=True)
async def etl(source: str = "a", n: int = 1) -> int:
    print("reading", source)
    return await read(n) + await read(0)

@flow
async def broken() -> None:
    raise RuntimeError("no such table")
"""
CONFIG = """
deployments:
  etl: {flow: flows.py:etl, schedules: [{cron: "0 6 * * *"}]}
  broken: {flow: flows.py:broken}
webhooks:
  shop: {verify: {preset: github, secret: "{{ secrets.shop }}"}, event: {type: shop.push}}
automations:
  told:
    on: order.paid
    do: [{run: etl, parameters: {source: "{{ event.data.shop }}"}}]
    tests:
      - {given: [{type: order.paid}], expect: fired}
channels: {ops: {urls: ["json://127.0.0.1:9/x"]}}
variables: {region: eu}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with flows and hark.yaml."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "flows.py").write_text(FLOWS)
    (folder / "hark.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hark(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a thread of its own and return what came of it."""
    runner = CliRunner()

    async def run(*words: str, input: str | None = None) -> Result:
        load_settings.cache_clear()
        return await to_thread.run_sync(partial(runner.invoke, app, list(words), input=input))

    return run


@pytest.fixture
def serve(home: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A service on this home, where the commands find it."""

    @asynccontextmanager
    async def serving() -> AsyncGenerator[Service, None]:
        base = Settings(home=home)
        settings = base.model_copy(
            update={
                "server": base.server.model_copy(update={"port": 0}),
                "worker": base.worker.model_copy(update={"processes": 0, "warm": 0}),
                "notifications": base.notifications.model_copy(update={"send_timeout_s": 1.0}),
            }
        )
        monkeypatch.setenv("HARK_HOME", str(home))
        async with Service(settings, config=project / "hark.yaml") as service:
            yield service

    return serving


def as_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
