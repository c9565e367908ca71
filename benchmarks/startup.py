"""Start and idle: import time, ``--help``, ``hark up`` to ready, idle CPU and resident memory of everything together."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from benchmarks.running import hark_up, median

IDLE_S = 10.0


def _timed(*arguments: str, tries: int = 7) -> float:
    took = []
    for _ in range(tries):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        took.append(time.perf_counter() - began)
    return median(took) * 1000


def main() -> None:
    bare = _timed("-c", "pass")
    print(f"python -c pass            {bare:7.0f} ms")
    print(
        f"import hark               {_timed('-c', 'import hark') - bare:7.0f} ms over bare python   (goal < 200)"
    )
    flow = "import hark; hark.flow; hark.task"
    print(f"… and flow, task          {_timed('-c', flow) - bare:7.0f} ms over bare python")
    print(f"hark --help               {_timed('-m', 'hark.cli.main', '--help'):7.0f} ms   (goal < 300)")
    ready = []
    for _ in range(3):
        with hark_up() as running:
            ready.append(running.ready_s)
    print(f"hark up to ready          {median(ready):7.2f} s    (goal < 2)")
    with hark_up() as running:
        # The first second still warms processes; idle is what comes after.
        time.sleep(4)
        everyone = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
        before = sum(sum(p.cpu_times()[:2]) for p in everyone)
        time.sleep(IDLE_S)
        used = sum(sum(p.cpu_times()[:2]) for p in everyone) - before
        print(f"idle CPU, all processes   {used / IDLE_S * 100:7.2f} % of a core   (goal < 1)")
        for process in everyone:
            info = process.memory_full_info()
            name = " ".join(process.cmdline())[-60:]
            print(f"  rss {info.rss / 2**20:6.0f} MB  pss {info.pss / 2**20:6.0f} MB  {name}")
        # Forked processes share pages with their parent; the proportional set counts each page once.
        print(f"memory, all processes     {sum(p.memory_full_info().pss for p in everyone) / 2**20:7.0f} MB pss,"
              f" {sum(p.memory_info().rss for p in everyone) / 2**20:.0f} MB rss   (goal < 250)")  # fmt: skip


if __name__ == "__main__":
    main()
