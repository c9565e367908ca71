"""``make bench``: run every benchmark, each in a process of its own, one after the other.

``python -m benchmarks bus engine`` runs some of them. Every figure that matters is a ratio to the broker's raw rate, or
to a peer, measured in the same run: absolute figures of a shared machine mean little.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ORDER = ("startup", "bus", "engine", "large", "runs", "http", "latency", "busy", "rules", "live", "projector")


def main() -> int:
    here = Path(__file__).parent
    wanted = sys.argv[1:] or [name for name in ORDER if (here / f"{name}.py").exists()]
    unknown = [name for name in wanted if not (here / f"{name}.py").exists()]
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(ORDER)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted:
        print(f"\n=== {name} ===", flush=True)
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=here.parent).returncode
        print(f"--- {name}: exit {code}, {time.monotonic() - began:.0f} s", flush=True)
        if code:
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
