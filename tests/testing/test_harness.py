"""The harness: a real broker and a temporary home in a fraction of a second."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hark.bus.emit import emit
from hark.bus.session import current_session
from hark.testing import harness


def test_the_harness_is_a_broker_and_a_home_of_the_tests_own() -> None:
    """Inside, everything points there; afterwards, everything is as before."""
    before = {name: os.environ.get(name) for name in ("HARK_HOME", "HARK_NATS_URL")}
    with harness() as rig:
        assert os.environ["HARK_HOME"] == str(rig.home)
        assert rig.settings.home_path == rig.home
        assert current_session() is rig.session
        event = emit("order.paid", wait=True)
        found = rig.session.call(rig.bus.log.last, "hark.ev.order.paid")
        assert found is not None
        assert found.event.id == event.id
        pid = rig.broker.pid
    assert not rig.home.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert {name: os.environ.get(name) for name in before} == before
    assert current_session() is None


async def test_the_harness_works_in_async_tests() -> None:
    """Its bus is on the test's own loop."""
    async with harness() as rig:
        event = await emit("order.paid")
        found = await rig.bus.log.last("hark.ev.order.paid")
        assert found is not None
        assert found.event.id == event.id


def test_two_harnesses_nest() -> None:
    """The inner one is in force until it is left."""
    with harness() as outer, harness() as inner:
        assert current_session() is inner.session
        assert outer.home != inner.home


def test_the_fixture_of_the_plugin_is_the_same_thing(tmp_path: Path) -> None:
    """``pytest_plugins = ["hark.testing.plugin"]`` gives tests a ``harness``."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["hark.testing.plugin"]\n')
    (tmp_path / "test_it.py").write_text(
        "from hark.bus.emit import emit\n"
        "def test_it(harness):\n"
        "    emit('order.paid', wait=True)\n"
        "    assert harness.session.call(harness.bus.log.head) == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
