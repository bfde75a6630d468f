"""Measure memory and step time of jobs/billions.yaml as its tables grow: one batch size, 1/64 to all of the rows.

    .venv/bin/python benchmarks/scale.py [--parts 64 16 4 1] [--steps 400] [--repeats 1] [--json FILE]
    .venv/bin/python benchmarks/scale.py --parts 1 --kill
    .venv/bin/python benchmarks/scale.py --parts 1 --kill --store sharded --set train.epochs=12

Each size is a separate job, `crossfade train` with two servers and two workers, or with two workers that hold the
tables (--store sharded), on synthetic listening with tables of that size; missing data is generated (20 seconds and 0.7
GB of disk for the largest). Memory is that of all processes of the job together: the sum of their proportional set
sizes, which counts a page that several share once.

With --kill, the complete job runs with its checkpoints, and a process that holds tables, a server or a worker, gets
SIGKILL halfway: the job must resume by itself from a checkpoint and finish. It needs disk for three checkpoints, each
as large as the tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from suite.processes import background
from suite.training import read_events, read_report

CROSSFADE = [sys.executable, "-m", "crossfade"]
JOB = Path(__file__).parent.parent / "jobs" / "billions.yaml"
CUSTOMERS, TRACKS, INTERACTIONS, GENRES = 50_000_000, 12_500_000, 20_000_000, 100
DIM, VALUE_BYTES = 64, 4
ROW_BYTES = DIM * VALUE_BYTES + VALUE_BYTES
"""Of weights and of the state of row-wise AdaGrad."""
STORES = {"mxnet": {"servers": 2, "workers": 2}, "sharded": {"servers": 0, "workers": 2}}
HOLDERS = {"mxnet": "server", "sharded": "worker"}
"""By store, the role of the processes that hold the tables, two of them."""
GIB = 2**30
WARM_SECONDS = 5.0
POLL_SECONDS = 0.1
GROWTH_BYTES = 2**27
MEASURE_SECONDS = 5.0


@dataclass(frozen=True)
class Result:
    """The measurements of one run of one size. ``roles``: the peak memory of each process, GiB."""

    store: str
    part: int
    parameters: int
    table_bytes: int
    bound_bytes: int
    peak_bytes: int
    roles: dict[str, float]
    setup_seconds: float
    step_ms: float
    phases_ms: dict[str, float]
    active_rows: float
    checkpoints: dict[str, float]
    wall_seconds: float
    restarts: int


def role_of(process: psutil.Process) -> str:
    """Return the role and the process ID of a process of the job."""
    words = process.cmdline()
    kinds = ("train", "scheduler", "server", "worker")
    kind = next((word for word in words[:6] if word in kinds), "other")
    return f"{kind} {process.pid}"


class MemoryWatch:
    """Peak memory of a process and its descendants, together and one by one."""

    def __init__(self, root: psutil.Process) -> None:
        """Watch ``root``."""
        self._root = root
        self._measured = (-MEASURE_SECONDS, 0)
        self.peak_bytes = 0
        self.peaks: dict[str, int] = {}

    def poll(self) -> None:
        """Poll the resident size; measure exactly when it has grown, or every ``MEASURE_SECONDS``.

        An exact measurement walks the page tables, which takes the kernel some 10 ms per GiB and would disturb a step.
        """
        processes = [self._root, *self._root.children(recursive=True)]
        resident = sum(self._resident(process) for process in processes)
        now = time.monotonic()
        if resident > self._measured[1] + GROWTH_BYTES or now > self._measured[0] + MEASURE_SECONDS:
            self.peak_bytes = max(self.peak_bytes, sum(self._proportional(process) for process in processes))
            self._measured = (now, resident)

    @staticmethod
    def _resident(process: psutil.Process) -> int:
        try:
            return int(process.memory_info().rss)
        except psutil.Error:
            return 0

    def _proportional(self, process: psutil.Process) -> int:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            name = role_of(process)
        except (OSError, psutil.Error):
            return 0
        highest = next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)
        self.peaks[name] = max(self.peaks.get(name, 0), highest)
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def prepare(folder: Path, part: int) -> None:
    """Generate the data of one size, unless it exists."""
    if (folder / "manifest.json").exists():
        return
    sizes = {"queries": CUSTOMERS // part, "items": TRACKS // part, "interactions": INTERACTIONS, "genres": GENRES}
    options = [f"--{name}={value}" for name, value in {**sizes, "valid": 0, "test": 0}.items()]
    subprocess.run([*CROSSFADE, "synthesize", *options, "--out", str(folder)], check=True, stdout=sys.stderr)


def step_milliseconds(events: list[dict[str, Any]]) -> float:
    """Return the median milliseconds per step between consecutive events, after the warm-up."""
    warm = [event for event in events if event["time"] > events[0]["time"] + WARM_SECONDS]
    pairs = [(a, b) for a, b in itertools.pairwise(warm) if b["step"] > a["step"]]
    return statistics.median(1e3 * (b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairs)


def is_half_way(run_dir: Path) -> bool:
    """Return whether half of the steps are done and there is a checkpoint to resume from."""
    steps = read_events(run_dir, "step")
    return bool(steps and steps[-1]["step"] >= steps[-1]["steps"] // 2 and read_events(run_dir, "checkpoint_saved"))


def kill_a_holder(root: psutil.Process, role: str) -> bool:
    """Send SIGKILL to the last process of the job that has ``role``; return whether there was one."""
    for child in reversed(root.children()):
        with suppress(psutil.Error):  # it has ended
            if (name := role_of(child)).startswith(role):
                print(f"SIGKILL to {name}", file=sys.stderr)
                child.kill()
                return True
    return False


def overrides_of(data: Path, run_dir: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the keys of the job that differ, and their values."""
    overrides = [f"data.path={data}", f"checkpoint.path={run_dir / 'checkpoints'}"]
    overrides += [f"cluster.{name}={count}" for name, count in STORES[arguments.store].items()]
    overrides.append(f"cluster.store={arguments.store}")
    if not arguments.kill:
        overrides += [f"train.max_steps={arguments.steps}", "checkpoint.interval_seconds=null"]
    return [*overrides, *arguments.set]


def measure(part: int, data: Path, work: Path, arguments: argparse.Namespace) -> Result:
    """Train on the tables of one size and measure. Checkpoints, each as large as the tables, are deleted at the end."""
    prepare(data, part)
    run_dir = work / f"run-{part}"
    if run_dir.exists():
        shutil.rmtree(run_dir)
    command = [*CROSSFADE, "train", str(JOB), "--run-dir", str(run_dir)]
    for override in overrides_of(data, run_dir, arguments):
        command += ["--set", override]
    started, begin = time.time(), time.monotonic()
    killed = not arguments.kill
    with background(command, work / f"run-{part}.log") as running:
        root = psutil.Process(running.process.pid)
        watch = MemoryWatch(root)
        while not running.ended():
            watch.poll()
            if not killed and is_half_way(run_dir):
                killed = kill_a_holder(root, HOLDERS[arguments.store])
            time.sleep(POLL_SECONDS)
    wall = time.monotonic() - begin
    if not killed:
        raise SystemExit("the run ended before a process could be killed: give it more steps")
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    report = read_report(run_dir)
    if arguments.kill and not report["restarts"]:
        raise SystemExit("the run ended before the kill could interrupt it: give it more epochs, with --set")
    events, steps = read_events(run_dir, "step"), report["steps"]
    rows = CUSTOMERS // part + TRACKS // part
    return Result(
        store=arguments.store,
        part=part,
        parameters=report["parameters"],
        table_bytes=rows * ROW_BYTES,
        bound_bytes=int(1.25 * rows * ROW_BYTES) + 2 * GIB,
        peak_bytes=watch.peak_bytes,
        roles={name: round(peak / GIB, 2) for name, peak in watch.peaks.items()},
        setup_seconds=events[0]["time"] - started,
        step_ms=step_milliseconds(events),
        phases_ms={name: 1e3 * seconds / steps for name, seconds in report["seconds_by_phase"].items()},
        active_rows=report["rows_pulled"] / steps,
        checkpoints=report["checkpoints"],
        wall_seconds=wall,
        restarts=report["restarts"],
    )


def print_table(results: dict[int, list[Result]]) -> None:
    """Print one line per size: median times, peak memory."""
    smallest = statistics.median(result.step_ms for result in next(iter(results.values())))
    print(f"{len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total / GIB:.1f} GiB of memory")
    print(f"store {next(iter(results.values()))[0].store}; peak memory of all processes together")
    print("  parameters   tables   peak  bound    setup   ms/step  ratio  active rows/step")
    print("                  GiB    GiB    GiB        s")
    for runs in results.values():
        first, step = runs[0], statistics.median(run.step_ms for run in runs)
        peak = max(run.peak_bytes for run in runs)
        tables, highest, bound = (value / GIB for value in (first.table_bytes, peak, first.bound_bytes))
        print(
            f"{first.parameters:>13,} {tables:>7.2f} {highest:>6.2f} {bound:>6.2f}"
            f" {statistics.median(run.setup_seconds for run in runs):>8.1f} {step:>9.1f} {step / smallest:>6.2f}"
            f" {first.active_rows:>17,.0f}"
        )
    for runs in results.values():
        for run in runs:
            print(describe_end(run))


def describe_end(run: Result) -> str:
    """Return a line on restarts, checkpoints, and the longest pause of a run."""
    saves = run.checkpoints
    pause = saves["longest_pause_seconds"] / (run.table_bytes / 2 / GIB)
    return (
        f"{run.parameters:,} parameters: {run.restarts} restarts, {saves['written']} checkpoints of "
        f"{run.table_bytes / GIB:.1f} GiB, longest pause {saves['longest_pause_seconds']:.3f} s "
        f"({pause:.4f} s a GiB of a shard), {run.wall_seconds:.0f} s in all; "
        f"peaks of processes, GiB: {', '.join(f'{name} {peak}' for name, peak in run.roles.items())}"
    )


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", type=int, nargs="+", default=[64, 16, 4, 1], help="measure tables of 1/PART of the rows"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=1, help="measure all sizes N times, in turn")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="keep the datasets in this folder (default: data)"
    )
    parser.add_argument("--work", type=Path, help="keep the runs in this folder (default: a temporary one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the job")
    parser.add_argument("--store", choices=STORES, default="mxnet", help="what holds the tables (default: %(default)s)")
    parser.add_argument(
        "--kill", action="store_true", help="kill a process that holds tables halfway; the job must still finish"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    arguments = parser.parse_args()
    results: dict[int, list[Result]] = {part: [] for part in arguments.parts}
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for _ in range(arguments.repeats):
            for part in arguments.parts:
                data = arguments.data / ("billions" if part == 1 else f"billions-{part}th")
                result = measure(part, data, work, arguments)
                results[part].append(result)
                print(json.dumps(asdict(result)), file=sys.stderr)
    print_table(results)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for runs in results.values() for run in runs], indent=1))


if __name__ == "__main__":
    main()
