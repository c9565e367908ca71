"""What ``benchmarks.peers`` measures, on either side: ``python peer_work.py prefect|hark PLAN``; prints JSON.

The same functions run on both; only the module that ``flow`` and ``task`` come from differs. PLAN is JSON: how many tasks
and flows.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any


def main(library: str, plan: dict[str, int]) -> None:
    decorators: Any = import_module(library)
    flow, task = decorators.flow, decorators.task
    tasks, flows = plan["tasks"], plan["flows"]

    @task  # type: ignore[untyped-decorator]
    async def trivial(n: int) -> int:
        return n

    @task  # type: ignore[untyped-decorator]
    def trivial_sync(n: int) -> int:
        return n

    @flow  # type: ignore[untyped-decorator]
    async def direct(n: int) -> None:
        for i in range(n):
            await trivial(i)

    @flow  # type: ignore[untyped-decorator]
    async def gather(n: int) -> None:
        await asyncio.gather(*[trivial(i) for i in range(n)])

    @flow  # type: ignore[untyped-decorator]
    def sync(n: int) -> None:
        for i in range(n):
            trivial_sync(i)

    @flow  # type: ignore[untyped-decorator]
    def submit(n: int) -> None:
        for future in [trivial_sync.submit(i) for i in range(n)]:
            future.result()

    @flow  # type: ignore[untyped-decorator]
    def empty_sync() -> None: ...

    @flow  # type: ignore[untyped-decorator]
    async def empty_async() -> None: ...

    def call(fn: Callable[..., Any], *args: int) -> None:
        if fn.isasync:  # type: ignore[attr-defined]
            asyncio.run(fn(*args))
        else:
            fn(*args)

    found: dict[str, Any] = {}
    # Without tasks, so before the clock of the stored ones starts: neither side's database should catch up meanwhile.
    for name, fn in (("empty-sync", empty_sync), ("empty-async", empty_async)):
        call(fn)
        moments = [time.perf_counter()]

        async def several(moments: list[float]) -> None:
            for _ in range(flows):
                await empty_async()
                moments.append(time.perf_counter())

        if name == "empty-async":
            asyncio.run(several(moments))
        else:
            for _ in range(flows):
                fn()
                moments.append(time.perf_counter())
        took = sorted(after - before for before, after in itertools.pairwise(moments))
        found[name] = {"flows": flows, "seconds": moments[-1] - moments[0], "median_s": took[flows // 2]}
    found["began_at"] = time.time()
    for name, fn, n in (
        ("direct", direct, tasks),
        ("gather", gather, tasks),
        ("sync", sync, tasks),
        ("submit", submit, tasks),
    ):
        call(fn, 3)
        began = time.perf_counter()
        call(fn, n)
        found[name] = {"tasks": n, "seconds": time.perf_counter() - began}
    found["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
