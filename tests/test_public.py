"""The public face: what ``from hark import …`` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import hark
import hark.engine


def test_every_exported_name_is_there() -> None:
    """Nothing is promised that cannot be imported."""
    for module in (hark, hark.engine):
        for name in module.__all__:
            assert getattr(module, name) is not None
        assert set(module.__all__) <= set(dir(module)) | set(module.__all__)


def test_importing_flows_does_not_load_the_broker_client() -> None:
    """Nor the settings, pydantic, or anything else that takes long: plain calls need none of it."""
    code = (
        "from hark import flow, task, emit, get_run_logger, tags; import sys;"
        "print([m for m in ('nats', 'pydantic', 'pydantic_settings', 'anyio', 'cloudpickle', 'fastapi', 'uvloop')"
        " if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
