"""Measure how much sooner shards on slow machines finish than one process on one of them.

    .venv/bin/python benchmarks/shards.py [recommend|evaluate] [--shards 4] [--share 0.5] [--repeats 3]

Each process has a thread and, by CPU cgroups, a share of a core, so that a machine with two cores stands for four with
half a core each; it must be quiet, and this needs root. Times, in seconds of the wall clock with the starts of Python,
are of the unsharded command and of the slowest shard, in turn, without the merge, which is timed by itself. Processor
seconds of the same, which other work on the machine changes little, stand beside them. What the shards make is compared
with the whole: recommendations row by row, metrics bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from suite.cpu_quota import cpu_groups

from crossfade.base.machine import THREAD_VARIABLES

_FOLDER = Path(tempfile.gettempdir()) / "crossfade-shards"
_ONE_THREAD = dict.fromkeys(THREAD_VARIABLES, "1")


def main() -> None:
    """Measure, and print seconds and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", default="recommend", choices=["recommend", "evaluate"])
    parser.add_argument("--customers", type=int, default=200_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--items", type=int, default=200_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--shards", type=int, default=4, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.5, metavar="S", help="of a core (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="(default: %(default)s)")
    arguments = parser.parse_args()
    run = trained(arguments.customers, arguments.items)
    whole, out = _FOLDER / "whole.parquet", _FOLDER / "out"
    words = ["recommend", run, "--all"] if arguments.verb == "recommend" else ["evaluate", run, "--max-queries", "all"]
    alone = ["--out", whole, "--overwrite"] if arguments.verb == "recommend" else ["--json"]
    shards = [["--out", out, "--shard", f"{number}/{arguments.shards}"] for number in range(1, arguments.shards + 1)]
    # The first evaluation computes baselines, which are kept beside the data.
    metrics = printed([*words, "--json"]) if arguments.verb == "evaluate" else ""
    seconds: list[list[tuple[float, float]]] = [[], []]
    for _ in range(arguments.repeats):
        shutil.rmtree(out, ignore_errors=True)
        seconds[0].append(timed([[*words, *alone]], arguments.share))
        seconds[1].append(timed([[*words, *shard] for shard in shards], arguments.share))
        print(f"alone {seconds[0][-1][0]:.1f} s, {arguments.shards} shards {seconds[1][-1][0]:.1f} s", flush=True)
    merge = timed([[*words, "--out", out, "--merge"]], 1.0)
    if arguments.verb == "recommend":
        is_same = pq.read_table(out).equals(pq.read_table(whole))
    else:
        is_same = printed([*words, "--out", out, "--merge", "--json"]) == metrics
    for kind, name in enumerate(("wall clock", "processor")):
        one, many = (statistics.median(found[kind] for found in of_kind) for of_kind in seconds)
        print(f"{name}: alone {one:.1f} s, {arguments.shards} shards {many:.1f} s, {one / many:.2f} times as fast")
    print(f"merge: {merge[0]:.1f} s, {merge[1]:.1f} s of a processor; the same: {is_same}")


def trained(customers: int, items: int) -> Path:
    """Return a run on synthetic data, trained for a step, unless an earlier call has made it."""
    data, run = (_FOLDER / f"{name}-{customers}-{items}" for name in ("data", "run"))
    _FOLDER.mkdir(exist_ok=True)
    if not (run / "report.json").exists():
        sizes = ["--queries", customers, "--items", items, "--interactions", 20 * customers, "--genres", 100]
        printed(["synthesize", *sizes, "--out", data, "--skip-existing"])
        job = {"name": "shards", "data": {"path": str(data)}, "model": {"dim": 64}, "evaluate": {"k": [10, 100]}}
        job["train"] = {"max_steps": 1, "batch_size": 1024}
        (_FOLDER / "job.yaml").write_text(json.dumps(job))
        printed(["train", _FOLDER / "job.yaml", "--run-dir", run, "--overwrite"])
    return run


def timed(commands: list[list[object]], share: float) -> tuple[float, float]:
    """Run ``commands`` together, each with a ``share`` of a core; return the seconds until the last has ended, and the
    most processor seconds of one.
    """
    with cpu_groups(len(commands), share) as groups:
        begin = time.monotonic()
        processes = [
            subprocess.Popen(command_line(words), env=os.environ | _ONE_THREAD, stdout=subprocess.DEVNULL)
            for words in commands
        ]
        for group, process in zip(groups, processes, strict=True):
            group.add(process.pid)
        ended = [os.wait4(process.pid, 0) for process in processes]
        if any(status for _, status, _ in ended):
            sys.exit(f"commands failed: {[status for _, status, _ in ended]}")
        return time.monotonic() - begin, max(usage.ru_utime + usage.ru_stime for *_, usage in ended)


def command_line(words: list[object]) -> list[str]:
    """Return a command of this repository."""
    return [sys.executable, "-m", "crossfade", *map(str, words)]


def printed(words: list[object]) -> str:
    """Return what a command prints, without limits."""
    return subprocess.run(command_line(words), check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
