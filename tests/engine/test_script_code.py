"""Hooks of plain calls, whose process is gone: called where its code is, by a worker there, and said where they cannot be."""

from __future__ import annotations

import os
import runpy
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from hark.bus import Bus
from hark.config import EngineConfig, WorkerConfig
from hark.engine.code.script_code import ScriptCode
from hark.engine.dispatching import hook_duty
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.runs.hook_account import account_of_hooks
from hark.engine.runs.run import FlowRun, RunRequest, run_id_for
from hark.engine.runs.run_log import RunLog
from hark.engine.states import Crashed, Running
from hark.engine.workers import worker
from hark.engine.workers.worker import Worker

from .conftest import HEAD, events, hear, said
from .test_caller import plain_runs, script

SCRIPT = (
    HEAD
    + """
import threading
from pathlib import Path
from hark import get_run_context, get_transaction, runtime, transaction

HERE = Path(__file__).parent
assert __name__ == "__main__" or HERE.joinpath("killed").exists()

def told(flow, run, state):
    assert get_run_context().flow_run.id == run.id == runtime.flow_run.id
    say(f"{flow.name}-{state.type.value.lower()}-{runtime.flow_run.parameters.get('n', 0)}")

def task_told(task, run, state):
    assert get_run_context().task_run.id == run.id
    say(f"{task.name}-{state.type.value.lower()}")
    if __name__ == "__main__":
        time.sleep(1000)

@task(on_completion=[task_told])
def step():
    return 1

@flow(on_crashed=[told])
def inner(n: int):
    say("up")
    step()

@flow(on_crashed=[told], on_completion=[told])
def outer(n: int):
    inner(n + 1)

def slow(flow, run, state):
    say(f"{flow.name}-{state.result()}")
    if __name__ == "__main__":
        time.sleep(1000)

@flow(on_completion=[slow])
async def ended():
    return 7

def made():
    @flow(on_crashed=[told])
    def local():
        say("up")
        time.sleep(1000)
    return local

def undo(txn):
    say(f"undo-{txn.get('word')}-{txn.get('where', 'here')}")

@task(on_rollback=[undo])
def reserve(word):
    get_transaction().set("word", word)

@task(name="made anew")
def pair(word):
    reserve(word + "1")
    reserve(word + "2")

@task
def hangs():
    reserve("e")
    reserve.with_options(on_rollback=[lambda txn: say("lambda")])("f")
    say("up")
    time.sleep(1000)

@flow(on_crashed=[told])
def part():
    reserve("d")
    hangs()

@flow(on_crashed=[told])
def booked(n):
    with transaction():
        reserve("committed")
    try:
        with transaction():
            reserve("undone")
            raise ValueError
    except ValueError:
        say("between")
    with transaction() as txn:
        txn.set("where", "hall")
        reserve("a")
        with transaction():
            reserve("b")
        pair("c")
        part()

if __name__ == "__main__":
    threading.Thread(target=booked, args=(4,), daemon=True).start()
    threading.Thread(target=outer, args=(1,), daemon=True).start()
    threading.Thread(target=lambda: asyncio.run(ended()), daemon=True).start()
    threading.Thread(target=made(), daemon=True).start()
    time.sleep(1000)
"""
)


async def test_hooks_of_plain_calls_are_called_where_their_program_is(
    bus: Bus, home: Path, tmp_path: Path
) -> None:
    """kill -9 of a program with four calls: what each owes is called by a worker on its machine, which runs none of it again.

    Hooks of ends, and rollback hooks of what had finished in transactions that were open, in reverse.
    """
    (tmp_path / "script.py").write_text(SCRIPT)
    with script(home, tmp_path) as process:
        await hear(bus, "said.up", times=3)
        await hear(bus, "said.step-completed")
        await hear(bus, "said.ended-7")
        (tmp_path / "killed").touch()
        process.kill()
        async with Dispatcher(bus, EngineConfig()), Worker(bus, WorkerConfig(drain_s=0), EngineConfig()):
            await hear(bus, "hark.hooks.abandoned.*", times=2)
            await hear_ends(bus, {"outer", "inner", "ended", "booked", "part"})
    undone = [f"undo-{word}-hall" for word in ("e", "d", "c2", "c1", "b", "a")]
    words = [
        "between", "undo-undone-here", "outer-crashed-1", "inner-crashed-2", "booked-crashed-4", "part-crashed-0",
    ]  # fmt: skip
    assert await said(bus) == {"up": 3, "step-completed": 2, "ended-7": 2} | dict.fromkeys(
        [*words, *undone], 1
    )
    told = [record.event.type.removeprefix("said.") for record in await events(bus, "hark.ev.said.>")]
    assert [word for word in told if word in [*undone, "booked-crashed-4"]] == [*undone, "booked-crashed-4"]
    abandoned: list[Any] = [
        record.event.data for record in await events(bus, "hark.ev.hark.hooks.abandoned.>")
    ]
    [of_task] = [data for data in abandoned if "task_run" in data]
    assert of_task["task_run"]["name"].startswith("reserve-")
    assert "it cannot be rolled back: LookupError: reserve of __main__" in of_task["why"]
    [data] = [data for data in abandoned if "seq" in data]
    assert data["flow"]["name"] == "local"
    assert "made.<locals>.local" in data["why"]
    assert "give it a name at the top of a module" in data["why"]
    runs = await plain_runs(bus)
    accounts = {name: await account_of_hooks(bus, run) for name, run in runs.items()}
    assert accounts == dict.fromkeys(runs, "called") | {"local": f"not called: {data['why']}"}


async def hear_ends(bus: Bus, flows: set[str]) -> None:
    """Wait until the hooks of the ends of these flows have run."""
    left = set(flows)
    with anyio.fail_after(60):
        async with bus.log.follow(["hark.ev.hark.hooks.ran.*"], after=0) as batches:
            async for batch in batches:
                for recorded in batch.records:
                    data: Any = recorded.event.data
                    left.discard(data["flow"]["name"] if "seq" in data else "")
                if not left:
                    return


async def test_where_nobody_can_load_the_code_that_is_said(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a worker, after a while; of another user than the workers there; changed since."""
    monkeypatch.setattr(hook_duty, "WAIT_S", 0.0)
    monkeypatch.setattr(worker, "ELSEWHERE_TRIES", 1)
    file = tmp_path / "script.py"
    file.write_text("now another")
    here = ScriptCode(socket.gethostname(), os.getuid(), str(tmp_path), str(file), "of before")
    runs = RunLog(bus)
    for name, code in (
        ("away", replace(here, host="another")), ("foreign", replace(here, uid=here.uid + 1)), ("changed", here)
    ):  # fmt: skip
        request = RunRequest(id=run_id_for(name), flow_name=name, entrypoint=f"{file}:{name}")
        run = FlowRun.requested(request, now=datetime.now(UTC)).changed(attempt=1)
        run = await runs.begin(run, Running(details={"code": code.to_json()}))
        await runs.change(run.id, lambda _: Crashed(message="its process died"))
    async with Dispatcher(bus, EngineConfig()), Worker(bus, WorkerConfig(drain_s=0), EngineConfig()):
        await hear(bus, "hark.hooks.abandoned.*", times=3)
    accounts = {name: await account_of_hooks(bus, run) for name, run in (await plain_runs(bus)).items()}
    assert f"{file}, is on another, where no worker with processes runs" in str(accounts["away"])
    assert f"of user {here.uid + 1} there" in str(accounts["foreign"])
    assert f"{file} is not what it was" in str(accounts["changed"])


ASKS = """
import threading
from hark import flow
from hark.engine.code.script_code import code_of_call

@flow(on_crashed=[print])
def told():
    pass

@flow
def untold():
    pass

def main():
    found.append(code_of_call(told, None))

found = []
"""


def found_by(folder: Path, rest: str, name: str = "__main__") -> tuple[str, ScriptCode]:
    """Return what a program says of where its flow is, when it is called as the rest of its text does."""
    file = folder / "asks.py"
    file.write_text(ASKS + rest)
    [found] = runpy.run_path(str(file), run_name=name)["found"]
    assert isinstance(found[1], ScriptCode)
    return found[0], found[1]


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("if __name__ == '__main__':\n    main()\n", None),
        ("if len(found) == 0 and '__main__' == __name__:\n    pass\n    main()\n", None),
        ("main()\n", "calls the flow in line 18"),
        ("if __name__ == '__main__':\n    pass\nelse:\n    pass\nmain()\n", "calls the flow in line 22"),
        ("t = threading.Thread(target=main)\nt.start()\nt.join()\n", "calls the flow in line"),
    ],
)
def test_a_program_that_would_run_again_by_being_loaded_is_not_loaded(
    tmp_path: Path, rest: str, why: str | None
) -> None:
    """What calls the flow has to stand where only ``__main__`` comes to, also when a thread calls it."""
    where, code = found_by(tmp_path, rest)
    assert where == f"{tmp_path}/asks.py:told"
    assert (code.host, code.uid, code.root) == (socket.gethostname(), os.getuid(), str(tmp_path))
    if why is None:
        assert code.why is None
        assert code.problem() is None
    else:
        assert code.why is not None
        assert why in code.why


def test_code_that_is_not_what_ran_is_not_loaded(tmp_path: Path) -> None:
    """Of another machine, changed, or gone: each is said."""
    _, code = found_by(tmp_path, "if __name__ == '__main__':\n    main()\n")
    elsewhere = ScriptCode.from_details({"code": {**code.to_json(), "host": "another"}})
    assert elsewhere is not None
    assert not elsewhere.is_here
    assert "on another" in str(elsewhere.problem())
    Path(code.file).write_text("changed")
    assert "is not what it was" in str(code.problem())
    Path(code.file).unlink()
    assert "cannot be read" in str(code.problem())
    assert ScriptCode.from_details({"code": {"of": "another version"}}) is None
    assert ScriptCode.from_details({"code": {**code.to_json(), "since": "a later version"}}) == code
