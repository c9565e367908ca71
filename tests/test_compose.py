"""compose.yaml is a shape that can be checked without an engine to run it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hark.bus.broker import find_program
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
ROLES = {"server", "dispatcher", "automations", "worker"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())
    return loaded


def test_three_brokers_form_one_cluster(compose: dict[str, Any]) -> None:
    """Every broker names itself, the same cluster, and routes to all three; each has a disk of its own."""
    brokers = {name: s for name, s in compose["services"].items() if name.startswith("nats-")}
    assert sorted(brokers) == ["nats-1", "nats-2", "nats-3"]
    for name, service in brokers.items():
        words = service["command"]
        assert f"--server_name={name}" in words
        assert "--cluster_name=hark" in words
        assert "--jetstream" in words
        routes = next(w for w in words if w.startswith("--routes="))
        assert all(f"nats://{other}:6222" in routes for other in brokers)
        assert service["volumes"] == [f"{name}:/data"]
        assert name in compose["volumes"]


def test_each_role_is_a_service_on_replicated_streams(compose: dict[str, Any]) -> None:
    """One service per role, all on the same cluster, with three replicas, waiting for healthy brokers."""
    for role in ROLES:
        service = compose["services"][role]
        assert service["command"][:4] == ["hark", "up", "--role", role]
        assert service["environment"]["HARK_BUS__REPLICAS"] == "3"
        assert service["environment"]["HARK_NATS_URL"].count("nats://") == 3
        assert {d: c["condition"] for d, c in service["depends_on"].items()} == dict.fromkeys(
            ("nats-1", "nats-2", "nats-3"), "service_healthy"
        )


def test_every_service_of_ours_has_the_key(compose: dict[str, Any]) -> None:
    """The server refuses to listen beyond loopback without one, so compose asks for it before anything starts."""
    for role in ROLES:
        assert compose["services"][role]["environment"]["HARK_API_KEY"].startswith("${HARK_API_KEY:?")


def test_nothing_is_published_beyond_loopback(compose: dict[str, Any]) -> None:
    """A person who tries this on a laptop in a café opens nothing to the room."""
    ports = [p for s in compose["services"].values() for p in s.get("ports", [])]
    assert ports
    assert all(p.startswith("127.0.0.1:") for p in ports)


def test_mail_is_caught(compose: dict[str, Any]) -> None:
    """Alerts by mail go to a catcher, not to people."""
    assert "mail" in compose["services"]


def test_what_it_serves_is_there() -> None:
    """The folder that every role mounts holds a configuration that loads, and its rules' own tests pass."""
    from hark.cli.main import app
    from typer.testing import CliRunner

    for command in ("lint", "test"):
        ran = CliRunner().invoke(app, [command, str(ROOT / "examples" / "hark.yaml")])
        assert ran.exit_code == 0, ran.output


def test_the_password_of_the_brokers_is_in_no_command_line(compose: dict[str, Any], tmp_path: Path) -> None:
    """It comes to them in a file, which the broker itself finds to be in order."""
    for name, service in compose["services"].items():
        assert "PASSWORD" not in " ".join(service.get("command", [])), name
    assert "--config=/etc/nats/hark.conf" in compose["services"]["nats-1"]["command"]
    assert compose["services"]["nats-1"]["configs"] == [{"source": "nats", "target": "/etc/nats/hark.conf"}]
    written = compose["configs"]["nats"]["content"]
    assert written.count("${HARK_NATS_PASSWORD:-change-me}") == 1
    file = tmp_path / "hark.conf"
    file.write_text(written.replace("${HARK_NATS_PASSWORD:-change-me}", "0123 # $x"))
    program = str(find_program())
    done = subprocess.run([program, "-t", "-c", str(file)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
