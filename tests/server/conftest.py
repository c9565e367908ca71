"""A real service in this process, on a free port, and a client of it."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hark.config import Settings
from hark.server.roles import ALL_ROLES, Role
from hark.server.service import Service

Start = Callable[..., AbstractAsyncContextManager[tuple[Service, httpx.AsyncClient]]]

FLOWS = """
from hark import flow, task

@task
async def double(x: int) -> int:
    return 2 * x

@flow(name="the-etl", log_prints=True)
async def etl(source: str = "a", n: int = 2) -> int:
    print(f"reading {source}")
    return await double(n)

@flow
async def broken() -> None:
    raise RuntimeError("no such table: orders")
"""

CONFIG = """
deployments:
  etl: {flow: flows.py:etl, schedules: [{cron: "0 6 * * *", overlap: skip}], tags: [prod]}
  broken: {flow: flows.py:broken}
variables: {region: eu}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with flows and a hark.yaml."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "flows.py").write_text(FLOWS)
    (folder / "hark.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def start(home: Path, project: Path) -> Start:
    """Start a service: ``async with start() as (service, http)``; sync flows get no processes of their own."""

    @asynccontextmanager
    async def started(
        *,
        roles: frozenset[Role] = ALL_ROLES,
        config: str | None = None,
        headers: dict[str, str] | None = None,
        awaits_config: bool = False,
        worker_apart: bool = False,
        home: Path = home,
        **changes: Any,
    ) -> AsyncGenerator[tuple[Service, httpx.AsyncClient], None]:
        if config is not None:
            (project / "hark.yaml").write_text(textwrap.dedent(config))
        base = Settings(home=home)
        settings = base.model_copy(
            update={
                "server": base.server.model_copy(
                    update={"port": 0, "drain_s": 1.0, **changes.pop("server", {})}
                ),
                "worker": base.worker.model_copy(update={"processes": 0, "warm": 0, "drain_s": 2.0}),
                **changes,
            }
        )
        async with (
            Service(
                settings,
                roles=roles,
                config=project / "hark.yaml",
                awaits_config=awaits_config,
                worker_apart=worker_apart,
            ) as service,
            httpx.AsyncClient(
                base_url=service.url or "http://none", trust_env=False, headers=headers, timeout=120
            ) as http,
        ):
            yield service, http

    return started
