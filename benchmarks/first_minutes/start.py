"""Measure how long a training takes to start, and a run of one step as a whole, on 300,000 plays.

    python benchmarks/first_minutes/start.py TREE [TREE ...]        # checkouts, whose runs alternate; --runs 7 of each

For ``crossfade train`` and ``crossfade.fit``, prints the medians of seconds and processor seconds from the start of the
process until the tables are initialized ("training"), until the first step is done, and until the process ends. Other
work on the machine changes processor seconds less. A first run of each, which compiles kernels, does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "first_minutes" / "start"
CROSSFADE = [sys.executable, "-m", "crossfade"]
SIZE = ["--queries", "10000", "--items", "20000", "--interactions", "300000"]
FIT = """
import crossfade, pyarrow.parquet
plays = pyarrow.parquet.read_table("data/train/part-00000.parquet", columns=["customer", "track"])
crossfade.fit(plays, query="customer", item="track", settings={"train.max_steps": 1})
"""
TRAIN = [*CROSSFADE, "train", "job.yaml", "--run-dir", "temporary/crossfade-train/run"]
COMMANDS = {"train": TRAIN, "fit": [sys.executable, "-c", FIT]}
ENDS = {"phase": "until training", "step": "until the first step is done"}
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure each command with each checkout, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="+", metavar="TREE", help="measure this checkout")
    parser.add_argument("--runs", type=int, default=7, help="runs of each (default: 7)")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "job.yaml").write_text("name: start\ndata: {path: data}\ntrain: {max_steps: 1}\n")
    subprocess.run([*CROSSFADE, "synthesize", *SIZE, "--out", "data", "--skip-existing"], cwd=FOLDER, check=True)
    for kind, command in COMMANDS.items():
        runs = [[measure(command, tree) for tree in options.trees] for _ in range(options.runs + 1)][1:]
        for until in runs[0][0]:
            for unit, place in (("seconds", 0), ("processor seconds", 1)):
                medians = [statistics.median(run[n][until][place] for run in runs) for n in range(len(options.trees))]
                print(f"{kind}, {until}: {' | '.join(f'{value:.2f}' for value in medians)} {unit}", flush=True)


def measure(command: list[str], tree: Path) -> dict[str, tuple[float, float]]:
    """Run ``command`` with the code of ``tree``; return seconds and processor seconds until each end."""
    temporary = FOLDER / "temporary"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    variables = os.environ | {"PYTHONPATH": str(tree.resolve()), "TMPDIR": str(temporary)}
    found: dict[str, tuple[float, float]] = {}
    begin = time.time()
    process = subprocess.Popen(command, cwd=FOLDER, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while len(found) < len(ENDS) and process.poll() is None:
        time.sleep(0.002)
        for path in temporary.glob("crossfade-*/run/events.jsonl"):
            for event in map(json.loads, path.read_text().rpartition("\n")[0].splitlines()):  # of complete lines
                until = ENDS.get(event["event"]) if event.get("name") != "tables" else None
                if until is not None and until not in found:
                    found[until] = event["time"] - begin, processor_seconds(process.pid)
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    if status or len(found) < len(ENDS):
        sys.exit(f"{command[:4]} with {tree} failed: {error.decode()[-2000:]}")
    return found | {"whole": (time.time() - begin, usage.ru_utime + usage.ru_stime)}


def processor_seconds(pid: int) -> float:
    """Return the processor time that a running process has used so far, in all its threads."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(used[11]) + int(used[12])) / TICKS


if __name__ == "__main__":
    main()
