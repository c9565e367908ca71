"""`hark worker start`: the role worker of one pool, and nothing else."""

from __future__ import annotations

import gc

import pytest
from hark.server.roles import Role
from hark.server.service import Service

from tests.cli.conftest import Run


async def test_a_worker_serves_the_pool_it_is_given(hark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is `hark up --role worker`: the settings of this process, with its pool and broker."""
    started: list[Service] = []

    def serve(service: Service, **_: object) -> int:
        started.append(service)
        return 0

    monkeypatch.setattr("hark.server.service.serve", serve)
    monkeypatch.setattr("hark.server.log_line.setup_logging", lambda **_: None)
    # A process that serves for good does without it; this one does not.
    monkeypatch.setattr(gc, "disable", lambda: None)
    result = await hark("worker", "start", "--pool", "gpu", "--nats", "nats://127.0.0.1:1")
    assert (result.exit_code, result.output) == (0, "")
    [service] = started
    assert service.roles == {Role.WORKER}
    assert (service.settings.worker.pool, service.settings.nats_url) == ("gpu", "nats://127.0.0.1:1")
