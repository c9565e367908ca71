"""Limits of sync code, where the system makes them hard."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

BLOCKED = """
import threading, time
from hark.engine.sync_async.timeouts import within
from hark.errors import RunTimedOut

for _ in range(8):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    with within(0.3, "this"):
        print("begun", flush=True)
        time.sleep(600)
except RunTimedOut:
    print("timed out", flush=True)
"""


async def test_a_limit_that_passes_while_the_process_is_stopped_is_not_lost() -> None:
    """Its alarm may be taken by any thread when the process goes on; the one that blocks is reached all the same."""
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BLOCKED, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                assert await process.stdout.readline() == b"begun\n"
                os.kill(process.pid, signal.SIGSTOP)
                await asyncio.sleep(0.5)  # by the clock: the limit has to pass meanwhile
                os.kill(process.pid, signal.SIGCONT)
                assert await process.stdout.readline() == b"timed out\n"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
