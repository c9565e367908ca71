"""Start and idle: import time, ``--help``, the harness of tests, ``hark up`` to ready; idle CPU and resident memory of
everything together."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
from hark.testing import harness

from benchmarks.goal import Goals
from benchmarks.running import hark_up, median

WARM_S, IDLE_S = 10.0, 60.0


def _timed(*arguments: str, tries: int = 7) -> float:
    took = []
    for _ in range(tries):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        took.append(time.perf_counter() - began)
    return median(took) * 1000


def _harness_ms() -> float:
    """Return what every test that has its own pays."""
    began = time.perf_counter()
    with harness():
        return (time.perf_counter() - began) * 1000


def main() -> int:
    goals = Goals()
    bare = _timed("-c", "pass")
    print(f"python -c pass            {bare:7.0f} ms")
    took = _timed("-c", "import hark") - bare
    print(
        f"import hark               {took:7.0f} ms over bare python   {goals.below('import', took, 200, ' ms')}"
    )
    flow = "import hark; hark.flow; hark.task"
    print(f"… and flow, task          {_timed('-c', flow) - bare:7.0f} ms over bare python")
    took = _timed("-m", "hark.cli.main", "--help")
    print(f"hark --help               {took:7.0f} ms   {goals.below('--help', took, 300, ' ms')}")
    harnesses = [_harness_ms() for _ in range(7)]
    print(
        f"hark.testing.harness()    {median(harnesses):7.0f} ms"
        f"   {goals.below('harness', median(harnesses), 300, ' ms')}"
    )
    ready = []
    for _ in range(3):
        with hark_up() as running:
            ready.append(running.ready_s)
    print(
        f"hark up to ready          {median(ready):7.2f} s    {goals.below('ready', median(ready), 2, ' s')}"
    )
    with hark_up() as running:
        # The first seconds still warm processes and load pages; idle is what comes after.
        time.sleep(WARM_S)
        everyone = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
        before = sum(sum(p.cpu_times()[:2]) for p in everyone)
        time.sleep(IDLE_S)
        used = (sum(sum(p.cpu_times()[:2]) for p in everyone) - before) / IDLE_S * 100
        print(f"idle CPU, all processes   {used:7.2f} % of a core   {goals.below('idle CPU', used, 1, ' %')}")
        for process in everyone:
            info = process.memory_full_info()
            name = " ".join(process.cmdline())[-60:]
            print(f"  rss {info.rss / 2**20:6.0f} MB  pss {info.pss / 2**20:6.0f} MB  {name}")
        # Forked processes share pages with their parent; the proportional set counts each page once.
        pss = sum(p.memory_full_info().pss for p in everyone) / 2**20
        print(f"memory, all processes     {pss:7.0f} MB pss,"
              f" {sum(p.memory_info().rss for p in everyone) / 2**20:.0f} MB rss   {goals.below('memory', pss, 250, ' MB')}")  # fmt: skip
    return goals.code


if __name__ == "__main__":
    sys.exit(main())
