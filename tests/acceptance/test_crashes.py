"""Workers are killed with -9 at random points of many runs: every run comes out right, whatever was cut off."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
from hark import concurrency
from hark.bus import Event, Recorded
from hark.bus.session import use_session
from hark.engine.limits.limit import Limit
from hark.engine.limits.slots import put_limit
from hark.engine.runs.replay import attempt_starts
from hark.server.child import HarkProcess

from tests.acceptance.conftest import Start, Watch, at, watching

RUNS = int(os.environ.get("CRASH_RUNS", "6"))
"""`make chaos` asks for 200."""
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.randrange(1, 2**32)
KILLS = 3 + RUNS // 2
WORKERS = 2
TERMINAL = {
    "flow-run.completed",
    "flow-run.failed",
    "flow-run.crashed",
    "flow-run.cancelled",
    "flow-run.timed-out",
}

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 12 * RUNS)]

FLOWS = """
    import asyncio, os, time
    from hark import concurrency, flow, get_transaction, sleep, task, transaction

    def note(folder, word, run):
        # One write of one short line in append mode is whole or not there, whoever is killed meanwhile.
        out = os.open(os.path.join(folder, "notes.txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(out, f"{word} {run}\\n".encode())
        os.close(out)

    def told(flow, run, state):
        note(run.parameters["folder"], f"hook-{state.type.value}-began", run.id)
        time.sleep(0.02)
        note(run.parameters["folder"], f"hook-{state.type.value}-ended", run.id)

    async def atold(flow, run, state):
        note(run.parameters["folder"], f"hook-{state.type.value}-began", run.id)
        await asyncio.sleep(0.02)
        note(run.parameters["folder"], f"hook-{state.type.value}-ended", run.id)

    HOOKS = {name: [told] for name in ("on_completion", "on_failure", "on_cancellation", "on_crashed")}
    AHOOKS = {name: [atold] for name in HOOKS}

    def task_told(task, run, state):
        note(run.parameters["folder"], f"task-hook-{run.parameters['n']}", run.parameters["n_run"])

    @task(on_completion=[task_told])
    def step(folder, n, n_run):
        with concurrency("shared"):
            note(folder, f"step-{n}", n_run)
            time.sleep(0.1)
        return n

    @task(on_completion=[task_told])
    async def astep(folder, n, n_run):
        note(folder, f"step-{n}", n_run)
        await asyncio.sleep(0.1)
        return n

    def end(ends):
        if ends == "fail":
            raise ValueError("as asked")

    @flow(crash_retries=100, **HOOKS)
    def sync(folder, n, ends):
        total = sum(step(folder, i, n) for i in range(5))
        end(ends)
        return total

    @flow(crash_retries=100, **AHOOKS)
    async def loop(folder, n, ends):
        async def steps():
            return sum([await astep(folder, i, n) for i in range(5)])

        _, total = await asyncio.gather(sleep(1), steps())
        end(ends)
        return total

    def undo(txn):
        note(txn.get("folder"), "undo", txn.get("n"))

    @task(on_rollback=[undo])
    def reserve(folder, n):
        get_transaction().set("folder", folder)
        get_transaction().set("n", n)

    @flow(retries=2, retry_delay_seconds=0.7)
    def part(folder, n):
        total = sum(step(folder, i, n) for i in range(4))
        try:
            open(os.path.join(folder, f"failed-{n}"), "x").close()
        except FileExistsError:
            return total + step(folder, 4, n)
        raise ValueError("once")

    @flow(crash_retries=100, **HOOKS)
    def nested(folder, n, ends):
        with transaction():
            reserve(folder, n)
            total = part(folder, n)
            end(ends)
        return total
    """
CONFIG = """
    deployments:
      sync: {flow: "flows.py:sync", concurrency: {limit: 3}}
      loop: {flow: "flows.py:loop", concurrency: {limit: 3}}
      nested: {flow: "flows.py:nested", concurrency: {limit: 3}}
    """
KINDS = ("sync", "loop", "nested")
AWAY = {"HARK_ENGINE__SUSPEND_AFTER_S": "0.3"}
"""So that runs leave their workers until they have slept, or until retries of their subflows are due."""


async def test_every_run_ends_once_however_often_its_worker_is_killed(
    folder: Path, write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """One terminal state for each run; no task that finished ran twice; hooks were called; limits are free afterwards.

    A subflow that is tried again has as many tries as it was given; what a failed run had begun in a transaction is undone.
    """
    draw = random.Random(SEED)  # the same seed gives the same kills, as far as machines do
    write(flows__py=FLOWS, hark__yaml=CONFIG)
    server = start(role="server")
    start(role="dispatcher", home="home")
    workers = [start(role="worker", environment=AWAY) for _ in range(WORKERS)]
    asked: dict[str, dict[str, Any]] = {}
    async with (
        watching(tmp_path / "home") as watch,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        await put_limit(watch.bus, "shared", Limit(slots=2))
        for n in range(RUNS):
            ends = draw.choices(["complete", "fail", "cancel"], [6, 2, 2])[0]
            name = KINDS[n % len(KINDS)]
            answer = await http.post(
                f"/api/deployments/{name}/run",
                json={"parameters": {"folder": str(folder), "n": n, "ends": ends}},
            )
            assert answer.is_success, answer.text
            asked[answer.json()["id"]] = {"n": n, "ends": ends, "name": name}
        async with anyio.create_task_group() as group:
            group.start_soon(_kill_at_random, workers, watch, draw)
            group.start_soon(_cancel_at_random, http, asked, draw)
            await watch.until(lambda: _ended(watch) >= asked.keys(), within_s=120 + 8 * RUNS)
            group.cancel_scope.cancel()
        for worker in workers:
            _revive(worker)
        # Hooks of the last run may still be owed by a worker that was killed: it is back, and others take them up.
        await watch.until(lambda: _hooked(watch) >= asked.keys())
        await _limits_are_free(http, watch, folder)
        print(f"seed {SEED}: {RUNS} runs, {_kills} kills, {_taken_over(watch)} takeovers")
        _check(folder, watch, asked)


_kills = 0


def _ended(watch: Watch) -> set[str]:
    return {str(r.event.subject).removeprefix("flow-run/") for r in watch.seen if r.event.type in TERMINAL}


def _hooked(watch: Watch) -> set[str]:
    """Runs of whose end the log says that its hooks have run."""
    return {str(at(event, "run__id")) for event in watch.events("hark.hooks.ran") if at(event, "seq")}


def _taken_over(watch: Watch) -> int:
    return sum(1 for e in watch.events("flow-run.running") if at(e, "state__details__lost"))


async def _kill_at_random(workers: list[HarkProcess], watch: Watch, draw: random.Random) -> None:
    """Kill a worker, or one of its processes, after a random while, and start it again beside the others."""
    global _kills
    async with anyio.create_task_group() as group:
        alive = list(workers)

        async def start_again(worker: HarkProcess) -> None:
            await anyio.to_thread.run_sync(worker.start)
            alive.append(worker)

        def progress() -> int:
            return sum(r.event.type == "task-run.completed" for r in watch.seen)

        reached = -1
        while _kills < KILLS:
            # Only once something was finished since the last kill: else a slow machine never gets anywhere.
            while not alive or progress() <= reached:
                await watch.more()
            reached = progress()
            await anyio.sleep(draw.uniform(0, 0.4))  # the random point: of the runs, not of the test
            worker = draw.choice(alive)
            _kills += 1
            children = psutil.Process(worker.pid).children(recursive=True)
            if children and draw.random() < 0.6:
                with suppress(ProcessLookupError):  # it may just have ended by itself
                    os.kill(draw.choice(children).pid, signal.SIGKILL)
            else:
                worker.kill()
                alive.remove(worker)
                group.start_soon(start_again, worker)


def _revive(worker: HarkProcess) -> None:
    try:
        alive = psutil.Process(worker.pid).is_running()
    except Exception:
        alive = False
    if not alive:
        worker.start()


async def _cancel_at_random(http: httpx.AsyncClient, asked: dict[str, Any], draw: random.Random) -> None:
    for run_id in [run_id for run_id, run in asked.items() if run["ends"] == "cancel"]:
        await anyio.sleep(draw.uniform(0, 1.0))
        answer = await http.post(f"/api/flow-runs/{run_id}/cancel", json={})
        assert answer.status_code < 500, answer.text


def _notes(folder: Path) -> Counter[tuple[str, str]]:
    path = folder / "notes.txt"
    words = (line.split() for line in path.read_text().splitlines()) if path.exists() else ()
    return Counter((word, run) for word, run in words)


def _ends(watch: Watch) -> dict[str, list[Event]]:
    ends: dict[str, list[Event]] = defaultdict(list)
    for recorded in watch.seen:
        if recorded.event.type in TERMINAL:
            ends[str(recorded.event.subject).removeprefix("flow-run/")].append(recorded.event)
    return ends


def _finished(watch: Watch) -> dict[str, list[str]]:
    """By run, the calls that attempts finished while they held it, in order.

    A worker that has lost its run without knowing it may finish what it is at. That does not count, so the next attempt,
    which knows nothing of it, runs that call as well.
    """
    histories: dict[str, list[Recorded]] = defaultdict(list)
    for recorded in watch.seen:
        if recorded.event.type.startswith("flow-run."):
            histories[str(recorded.event.subject).removeprefix("flow-run/")].append(recorded)
    starts = {run_id: attempt_starts(history) for run_id, history in histories.items()}
    finished: dict[str, list[str]] = defaultdict(list)
    for recorded in watch.seen:
        if recorded.event.type == "task-run.completed":
            run_id = str(at(recorded.event, "flow_run__id"))
            begun = [attempt for attempt, seq in starts.get(run_id, ()) if seq < recorded.seq]
            if int(str(at(recorded.event, "flow_run__attempt"))) >= max(begun, default=0):
                key = str(at(recorded.event, "call"))
                if at(recorded.event, "state__name") != "RolledBack":
                    finished[run_id].append(key)
                elif key in finished[run_id]:  # it runs again if the code comes to it again
                    finished[run_id].remove(key)
    return finished


def _parts(watch: Watch) -> dict[str, dict[str, list[Event]]]:
    """By run, the transitions of its subflows."""
    parts: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))
    for recorded in watch.seen:
        above = at(recorded.event, "run__parent")
        if recorded.event.type.startswith("flow-run.") and above:
            parts[str(above)][str(at(recorded.event, "run__id"))].append(recorded.event)
    return parts


async def _changed(folder: Path) -> None:
    from watchfiles import awatch

    async for _ in awatch(folder, rust_timeout=200, yield_on_timeout=True):
        return


async def _limits_are_free(http: httpx.AsyncClient, watch: Watch, folder: Path) -> None:
    """Leases of holders that died run out: all slots can be had at once, and so can all places of the deployments."""
    with use_session(watch.bus):
        async with concurrency("shared", occupy=2, timeout_seconds=60):
            pass
    before = len(watch.events("flow-run.completed"))
    for n in range(6):
        parameters = {"folder": str(folder), "n": f"after-{n}", "ends": "complete"}
        name = "sync" if n % 2 else "loop"
        answer = await http.post(f"/api/deployments/{name}/run", json={"parameters": parameters})
        assert answer.is_success, answer.text
    await watch.until(lambda: len(watch.events("flow-run.completed")) >= before + 6, within_s=60)


def _check(folder: Path, watch: Watch, asked: dict[str, dict[str, Any]]) -> None:
    notes, ends, finished, parts = _notes(folder), _ends(watch), _finished(watch), _parts(watch)
    for run_id, run in asked.items():
        told = f"seed {SEED}, run {run_id}: {run}"
        assert len(ends[run_id]) == 1, told
        state = at(ends[run_id][0], "state__type")
        expected = {"complete": {"COMPLETED"}, "fail": {"FAILED"}, "cancel": {"CANCELLED", "COMPLETED"}}
        assert state in expected[run["ends"]], f"{told}: {state} {at(ends[run_id][0], 'state__message')}"
        if state == "COMPLETED":
            assert at(ends[run_id][0], "result__inline") == 10, told
        # A call is completed once in the log, so nobody ran it again after that.
        calls = Counter(finished[run_id])
        for part_id, history in parts[run_id].items():
            assert history[-1].type in TERMINAL, f"{told}: {history[-1].type}"
            calls += Counter(finished[part_id])
            retries = sum(at(event, "state__details__retry") is True for event in history)
            # Begun anew by its parent, it has all of its tries again.
            begun = 1 + sum(event.type == "flow-run.failed" for event in history)
            assert retries <= 2 * begun, f"{told}: {retries} retries, begun {begun} times"
        assert set(calls.values()) <= {1}, f"{told}: {calls}"
        is_nested = run["name"] == "nested"
        if is_nested and state != "CANCELLED":
            assert bool(notes["undo", str(run["n"])]) == (state == "FAILED"), told
            assert len(calls) == (6 if state == "COMPLETED" else 0), f"{told}: {calls}"
        if state in ("COMPLETED", "FAILED"):
            assert is_nested or sum("step" in key for key in calls) == 5, told
            for n in range(5):
                assert notes[f"task-hook-{n}", str(run["n"])] >= 1, f"{told}: hook of task {n}"
        assert notes[f"hook-{state}-ended", run_id] >= 1, told
        _check_hooks(notes, watch, run_id, ends[run_id][0], told)


def _check_hooks(notes: Counter[tuple[str, str]], watch: Watch, run_id: str, end: Event, told: str) -> None:
    """Those of the end that the run came to, and no others: by its writer once, then once by each successor that began them,
    which nobody does any more when the log says that they have run."""
    state = at(end, "state__type")
    words = [
        recorded.event.type.removeprefix("hark.hooks.")
        for recorded in watch.seen
        if recorded.event.type.startswith("hark.hooks.")
        and at(recorded.event, "seq")
        and at(recorded.event, "run__id") == run_id
    ]
    told = f"{told}: {words}"
    called = {word.split("-")[1] for word, run in notes if run == run_id and word.startswith("hook-")}
    assert called == {state}, told
    assert words.count("ran") == 1, told
    assert words[-1] == "ran", told
    assert words.count("abandoned") == 0, told
    successors = words.count("began")
    # An end that a worker wrote for a process that had died: nobody but successors calls its hooks.
    by_writer = at(end, "state__details__hooks") == "here" and not at(end, "state__details__rollback")
    began, ended = notes[f"hook-{state}-began", run_id], notes[f"hook-{state}-ended", run_id]
    assert 1 <= ended <= began <= successors + by_writer, told


SLOW_HOOK = """
    import asyncio, os
    from pathlib import Path
    from hark import flow

    async def told(flow, run, state):
        folder = Path(run.parameters["folder"])
        (folder / f"began-{os.getpid()}").touch()
        if not (folder / "go").exists():
            (folder / "reached").touch()
            await asyncio.sleep(60)  # held here until the test kills this process
        (folder / "ended").write_text(f"{state.type.value} {state.result()}")

    @flow(on_completion=[told])
    async def five(folder: str) -> int:
        return 5
    """


async def test_a_worker_that_is_killed_in_a_hook_has_it_called_by_the_next(
    folder: Path, write: Callable[..., None], start: Start, tmp_path: Path
) -> None:
    """kill -9 of the whole worker in on_completion: the next worker calls it again, and the run keeps its one end."""
    write(flows__py=SLOW_HOOK, hark__yaml='deployments: {five: {flow: "flows.py:five"}}')
    server = start(role="server")
    start(role="dispatcher")
    first = start(role="worker")
    async with (
        watching(tmp_path / "home") as watch,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        answer = await http.post("/api/deployments/five/run", json={"parameters": {"folder": str(folder)}})
        assert answer.is_success, answer.text
        with anyio.fail_after(60):
            while not (folder / "reached").exists():
                await _changed(folder)
        (folder / "go").touch()
        first.kill()
        start(role="worker")
        await watch.until(lambda: bool(watch.events("hark.hooks.ran")))
    assert (folder / "ended").read_text() == "COMPLETED 5"
    assert len(list(folder.glob("began-*"))) == 2
    assert [r.event.type for r in watch.seen if r.event.type in TERMINAL] == ["flow-run.completed"]
