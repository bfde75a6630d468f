"""Time a command: seconds, processor seconds with those of its children, and the memory of the largest process.

    python -m suite.timed_command '{"command": ["crossfade", "--help"], "runs": 5, "warm_up": 1}'

Figures are medians over the runs after the warm-up. This process is small, since the kernel counts its memory to a
command that it starts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

KIB_OF_GIB = 2**20


def run(command: list[str]) -> dict[str, float]:
    """Run the command without its output and return its figures; this process ends if it fails."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(abs(process.returncode))
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss / KIB_OF_GIB,
    }


def main() -> None:
    """Print the medians."""
    task = json.loads(sys.argv[1])
    warm_up = task.get("warm_up", 0)
    figures = [run(task["command"]) for _ in range(warm_up + task.get("runs", 1))][warm_up:]
    print(json.dumps({name: statistics.median(each[name] for each in figures) for name in figures[0]}))


if __name__ == "__main__":
    main()
