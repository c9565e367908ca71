"""Hark beside Prefect: the same workloads, on the same machine, in the same run. ``make bench-peers``.

Prefect's newest release is installed into an environment of its own under ``.venv`` (it needs a package index). Both sides
have a server of theirs running and write to it. Two rates are told for each side: how fast the flow went by (*loop*), and how
fast what happened was in the database that its API answers from (*stored*): finished task runs, counted in SQLite, from the
first workload with tasks to when the last of them was seen there. Flows without tasks come before.

Goals: 40 times Prefect's loop rate, 250 times its stored rate, and 2 ms for an empty flow, the middle one of those called one
after the other: the mean of a few hundred is that of the moments in which a shared machine did something else.

Run: ``python -m benchmarks.peers``. Exit code 0: the goals are reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.running import hark_up, median

ENVIRONMENT = Path(__file__).resolve().parent.parent / ".venv" / "peers" / "prefect"
WORK = Path(__file__).with_name("peer_work.py")
PLANS: dict[str, dict[str, int]] = {
    "prefect": {"tasks": 150, "flows": 5},
    "hark": {"tasks": 5_000, "flows": 500},
}
"""The slower side gets less to do, so that the whole takes minutes; rates are compared."""
WORK_LIMIT_S = 300.0
STORED_LIMIT_S = 60.0
GOAL_LOOP, GOAL_STORED, GOAL_EMPTY_MS = 40.0, 250.0, 2.0
WORKLOADS = {"direct": GOAL_LOOP, "gather": GOAL_LOOP, "sync": GOAL_LOOP, "submit": GOAL_LOOP}
WARM_UP = 3
"""Tasks of each workload's first call, which is not timed."""


@dataclass(frozen=True)
class Side:
    """One library, and what was measured of it. ``stored_per_s``: finished task runs in the database, per second."""

    version: str
    import_ms: float
    server_mb: float
    stored_per_s: float
    work: dict[str, Any]

    def tasks_per_s(self, workload: str) -> float:
        return float(self.work[workload]["tasks"] / self.work[workload]["seconds"])

    def flows_per_s(self, workload: str) -> float:
        return float(self.work[workload]["flows"] / self.work[workload]["seconds"])

    def flow_ms(self, workload: str) -> float:
        """Return what the middle one of the calls took."""
        return float(self.work[workload]["median_s"] * 1000)


def install() -> Path:
    """Return the Python of an environment with Prefect's newest release; where no index can be reached, with the one that is there.

    Raises:
        RuntimeError: it cannot be installed, or what was installed does not start.
    """
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    # Second try: a release of Prefect may be older than a FastAPI that no longer takes what its server says.
    for extra in ([], ["fastapi<0.150"]):
        installed = subprocess.run([*pip, "prefect>=3", *extra], capture_output=True, text=True, timeout=900)
        check = [str(python), "-c", "import prefect.server.api.server"]
        if subprocess.run(check, capture_output=True).returncode == 0:
            return python
    raise RuntimeError(f"Prefect cannot be installed here: {installed.stderr[-2000:]}")


def timed_import(python: str, statement: str) -> float:
    """Return the milliseconds an import takes over a bare interpreter."""

    def once(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([python, "-c", code], check=True, capture_output=True)
        return (time.perf_counter() - began) * 1000

    once(statement)
    return median([once(statement) for _ in range(5)]) - median([once("pass") for _ in range(5)])


def resident_mb(pid: int) -> float:
    """Return the memory of a process and its children, pages they share counted once."""
    parent = psutil.Process(pid)
    everyone = (parent, *parent.children(recursive=True))
    return sum(float(process.memory_full_info().pss) for process in everyone) / 2**20


def finished(database: Path, table: str) -> int:
    """Return how many task runs are stored as completed; 0 while there is no such table."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as db:
            count: int = db.execute(
                f"SELECT count(*) FROM {table} WHERE state_type = 'COMPLETED'"
            ).fetchone()[0]
            return count
    except sqlite3.OperationalError:
        return 0


def measure(
    side: str, python: str, *, environment: dict[str, str], database: Path, table: str, server_pid: int
) -> Side:
    """Run the workloads in a process of their own, and watch the server's database fill meanwhile and afterwards."""
    plan = PLANS[side]
    expected = len(WORKLOADS) * (plan["tasks"] + WARM_UP)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # -P: the folder of this file is not looked into, where a benchmark has the name of a standard module.
        command = [python, "-P", str(WORK), side, json.dumps(plan)]
        child = subprocess.Popen(command, env=environment, stdout=out, stderr=err, text=True)
        try:
            deadline, ended_at = time.monotonic() + WORK_LIMIT_S, None
            stored, stored_at = 0, time.time()
            while time.monotonic() < deadline and (stored < expected or ended_at is None):
                if child.poll():
                    break
                if ended_at is None and child.poll() is not None:
                    ended_at, deadline = time.time(), min(deadline, time.monotonic() + STORED_LIMIT_S)
                if (now_stored := finished(database, table)) != stored:
                    stored, stored_at = now_stored, time.time()
                # Each look counts all rows, on the cores that are measured, and the side with more rows pays more for it.
                time.sleep(0.1 if ended_at is None else 0.05)
        finally:
            child.kill()
            child.wait()
        out.seek(0)
        err.seek(0)
        if child.returncode != 0:
            raise RuntimeError(f"the workloads did not end well on {side}: {err.read()[-3000:]}")
        work: dict[str, Any] = json.loads(out.read().splitlines()[-1])
    if stored < expected:
        print(
            f"({side}: {stored} of {expected} task runs were stored {STORED_LIMIT_S:g} s after the last workload)"
        )
    version = subprocess.run(
        [python, "-c", f"import importlib.metadata as m; print(m.version('{side}'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    return Side(
        version=version,
        import_ms=timed_import(python, f"import {side}; {side}.flow; {side}.task"),
        server_mb=resident_mb(server_pid),
        stored_per_s=stored / (stored_at - work["began_at"]),
        work=work,
    )


@contextlib.contextmanager
def prefect_server(python: Path, home: Path) -> Generator[tuple[int, dict[str, str]]]:
    """Run a Prefect server with a database of its own; give its pid and the environment for its clients."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "CRITICAL", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    with (home / "server.log").open("w") as log:
        command = [
            str(python),
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2):
                        break
                except (urllib.error.URLError, OSError) as exc:
                    if server.poll() is not None or time.monotonic() > deadline:
                        said = (home / "server.log").read_text()[-2000:]
                        raise RuntimeError(f"Prefect's server does not start: {said}") from exc
                    time.sleep(0.2)
            yield server.pid, environment
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def measure_prefect() -> Side:
    python = install()
    with tempfile.TemporaryDirectory(prefix="prefect-", ignore_cleanup_errors=True) as room:
        home = Path(room)
        with prefect_server(python, home) as (pid, environment):
            return measure(
                "prefect", str(python), environment=environment, database=home / "prefect.db", table="task_run",
                server_pid=pid,
            )  # fmt: skip


def measure_hark() -> Side:
    with hark_up() as running:
        (database,) = (path for path in running.home.rglob("*") if is_database(path))
        environment = {**os.environ, "HARK_HOME": str(running.home)}
        return measure(
            "hark", sys.executable, environment=environment, database=database, table="task_runs",
            server_pid=running.pid,
        )  # fmt: skip


def is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def main() -> int:
    # Being told to stop unwinds, so that the servers are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    theirs, ours = measure_prefect(), measure_hark()
    print(f"{'':28}{'Prefect ' + theirs.version:>16}{'Hark ' + ours.version:>16}{'ratio':>10}")
    reached = []

    def line(
        name: str, a: float, b: float, unit: str, *, more_is_better: bool, goal: float | None = None
    ) -> None:
        ratio = b / a if more_is_better else a / b
        told = ""
        if goal is not None:
            reached.append(ratio >= goal)
            told = f"  goal {goal:g}x {'reached' if reached[-1] else 'MISSED'}"
        print(f"{name:28}{a:12,.1f} {unit:4}{b:11,.1f} {unit:4}{ratio:8,.0f}x{told}")

    for workload, goal in WORKLOADS.items():
        a, b = theirs.tasks_per_s(workload), ours.tasks_per_s(workload)
        line(f"tasks, {workload}", a, b, "/s", more_is_better=True, goal=goal)
    line("tasks, stored", theirs.stored_per_s, ours.stored_per_s, "/s", more_is_better=True, goal=GOAL_STORED)
    for workload in ("empty-sync", "empty-async"):
        a, b = theirs.flows_per_s(workload), ours.flows_per_s(workload)
        line(f"flows, {workload}", a, b, "/s", more_is_better=True)
        line(
            f"flow, {workload}, median",
            theirs.flow_ms(workload),
            ours.flow_ms(workload),
            "ms",
            more_is_better=False,
        )
        reached.append(ours.flow_ms(workload) <= GOAL_EMPTY_MS)
        print(f"{'':28}goal {GOAL_EMPTY_MS:g} ms {'reached' if reached[-1] else 'MISSED'}")
    line("import, flow and task", theirs.import_ms, ours.import_ms, "ms", more_is_better=False)
    line("memory of the flows", theirs.work["memory_mb"], ours.work["memory_mb"], "MB", more_is_better=False)
    line("memory of the server", theirs.server_mb, ours.server_mb, "MB", more_is_better=False)
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
