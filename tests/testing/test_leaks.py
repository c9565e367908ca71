"""What a test leaves behind fails it: tasks, threads, child processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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
