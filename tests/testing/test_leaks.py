"""What a test leaves behind fails it: tasks, threads, child processes. Of one that hangs it is told where."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.hanging import tell_where

TESTS = """
import asyncio, subprocess, threading
kept = []
end = threading.Event()

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(600)))

def test_thread():
    threading.Thread(target=end.wait, args=(600,), daemon=True).start()

def test_child():
    kept.append(subprocess.Popen(["sleep", "600"]))

def test_none():
    end.set()

async def test_no_task():
    await asyncio.sleep(0)

def test_at_last():
    kept[-1].kill()
    kept[-1].wait()
"""


def test_a_leak_fails_the_test_that_made_it(tmp_path: Path) -> None:
    """The fixtures of ``tests/conftest.py`` are in force for every test, without asking."""
    (tmp_path / "conftest.py").write_text(
        "from hark.tests import conftest\n"
        "globals().update((k, v) for k, v in vars(conftest).items() if k[:2] != '__')\n"
    )
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rE",
            "-p",
            "no:cacheprovider",
            "-o",
            "anyio_mode=auto",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "LEFT_BEHIND_AFTER_S": "1"},
    )
    failed = re.findall(r"^ERROR \S*::test_(\w+)\b", done.stdout, re.MULTILINE)
    assert sorted(failed) == ["child", "task", "thread"], done.stdout + done.stderr


async def test_of_a_test_that_hangs_it_is_told_what_each_task_waits_for() -> None:
    """Down to the innermost call, which is what a person looks for."""
    never = asyncio.Event()

    async def innermost() -> None:
        await never.wait()

    async def outer() -> None:
        await innermost()

    task, said = asyncio.create_task(outer(), name="the-one"), io.StringIO()
    await asyncio.sleep(0)
    tell_where(sys._getframe(), said)
    task.cancel()
    text = said.getvalue()
    told = text[text.index("--- task the-one") :].partition("\n---")[0]
    assert [line.rpartition(".")[2] for line in told.splitlines()[1:4]] == ["outer", "innermost", "wait"]
    assert "--- thread MainThread" in text
    assert "test_of_a_test_that_hangs" in text
