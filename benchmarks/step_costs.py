"""Measure the constants of deploy/capacity/step_time.py, and how well they predict steps that they were not fitted to.

    .venv/bin/python benchmarks/step_costs.py [--repeats 3] [--in-process]

It trains with 2 servers and 1 to 8 workers, and in process, with several batches, columns, and negatives; takes the CPU
time of each role from the run's own samples (processes.jsonl); and fits the costs of a step by non-negative least
squares of relative errors. Then it compares predicted and measured times of steps, for these and for other sizes.

Shapes: M measurements, F factors of costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from suite.processes import ROOT
from suite.training import bpr_job, train
from suite.work import Distribution, Draw, make_work

from crossfade.base.arrays import FloatArray
from crossfade.deploy.capacity import step_time
from crossfade.deploy.capacity.step_time import Costs, WorkerStep, step_seconds
from crossfade.deploy.topology import Role
from crossfade.kvstore.mxnet.server_protocol import DEFAULT_KEY_BYTES, make_layout
from crossfade.kvstore.store import TableSpec

FOLDER = ROOT / "build" / "bench"
TABLE_ROWS = 1_000_000, 100_000
SERVERS = 2
MIN_SECONDS, START_SECONDS = 6.0, 1.5


@dataclass(frozen=True)
class Size:
    """A step: triples of ``negatives`` each, of both workers together."""

    batch: int
    dim: int
    negatives: int = 1
    ids: Distribution = "uniform"
    key_bytes: int = DEFAULT_KEY_BYTES
    workers: int = 2

    @property
    def name(self) -> str:
        """Describe it."""
        uses, layout = f"{self.batch:6} x {1 + self.negatives}", f"{self.dim:3} columns, {self.keys(SERVERS):2} keys"
        return f"{uses}, {layout}, {self.workers} workers, {self.ids}"

    def keys(self, servers: int) -> int:
        """Return the number of keys of the tables."""
        tables = [TableSpec(str(rows), rows, self.dim, 0.1) for rows in TABLE_ROWS]
        return sum(layout.num_shards for layout in make_layout(tables, servers, self.key_bytes))


FITTED = (
    *(Size(batch, 64) for batch in (2_048, 16_384, 65_536)),
    *(Size(16_384, dim) for dim in (16, 256)),
    *(Size(16_384, dim, 8) for dim in (16, 64)),
    Size(4_096, 128, 4),
    *(Size(4_096, 64, 1, "uniform", key_bytes) for key_bytes in (2**24, 2**22)),
    *(Size(16_384, 64, workers=workers) for workers in (1, 4, 8)),
)
CHECKED = (
    Size(8_192, 32, 2),
    Size(32_768, 64),
    Size(16_384, 128, 4),
    Size(16_384, 64, 1, "zipf"),
    Size(32_768, 32, workers=6),
)


@dataclass(frozen=True)
class Measured:
    """A measured step: seconds, rows of each worker, and core seconds of a worker and of a server."""

    seconds: float
    rows: float
    worker: float
    server: float


def measure(size: Size, servers: int) -> Measured:
    """Train with ``servers`` servers and the workers of ``size``, 0: in process."""
    work = make_work(FOLDER / "work", Draw(size.ids, *TABLE_ROWS, 4_000_000))
    run_dir = FOLDER / "runs" / "costs"
    steps = max(40, int(4e6 / size.batch / (1 + size.negatives) / size.dim * 64))
    workers = size.workers if servers else 0
    while True:
        job = bpr_job(work.dataset, steps=steps, batch=size.batch, dim=size.dim, negatives=size.negatives)
        job["cluster"] = {"max_key_bytes": size.key_bytes}
        result = train(job, run_dir, servers=servers, workers=workers)
        if result["seconds"] >= MIN_SECONDS:
            break
        steps = int(steps * (MIN_SECONDS + 2) / (result["seconds"] + 1))
    rows = result["rows_per_second"] * result["step_ms"] / 1e3 / max(1, workers)
    cpu = core_seconds(run_dir) if servers else {}
    return Measured(result["step_ms"] / 1e3, rows, *(cpu.get(kind, 0.0) for kind in ("worker", "server")))


def core_seconds(run_dir: Path) -> dict[str, float]:
    """Return the core seconds of a step of the workers and the servers of a run, on average."""
    steps = [event for event in _lines(run_dir / "events.jsonl") if event["event"] == "step"]
    begin = steps[0]["time"] + START_SECONDS
    samples = [sample for sample in _lines(run_dir / "processes.jsonl") if sample["event"] == "sample"]
    inside = [sample for sample in samples if begin <= sample["time"] <= steps[-1]["time"]]
    first, last = inside[0], inside[-1]
    at = [np.interp(each["time"], *zip(*((s["time"], s["step"]) for s in steps), strict=True)) for each in inside]
    found: dict[str, list[float]] = {"worker": [], "server": []}
    for name, load in last["processes"].items():
        if (kind := name.split("-")[0]) in found:
            seconds = load["cpu_seconds"] - first["processes"][name]["cpu_seconds"]
            found[kind].append(seconds / float(at[-1] - at[0]))
    return {kind: statistics.mean(values) for kind, values in found.items()}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def fit(factors_MF: FloatArray, seconds_M: FloatArray) -> FloatArray:
    """Return non-negative costs of F factors that minimize the squared relative errors of M measurements."""
    scaled_MF = factors_MF / seconds_M[:, None]
    used = [factor for factor in range(factors_MF.shape[1]) if factors_MF[:, factor].any()]
    while True:
        costs = np.linalg.lstsq(scaled_MF[:, used], np.ones(len(seconds_M)), rcond=None)[0]
        if (costs >= 0).all():
            costs_F = np.zeros(factors_MF.shape[1])
            costs_F[used] = costs
            return costs_F
        used.pop(int(costs.argmin()))


def factors_of(size: Size, measured: Measured, role: str) -> list[float]:
    """Return what each field of ``Costs`` is multiplied by in the core seconds of a step of ``role``."""
    workers = size.workers if measured.server else 1
    uses = size.batch / workers * (1 + size.negatives)
    if role == "server":
        rows = measured.rows * workers / SERVERS
        keys = size.keys(SERVERS) / SERVERS * workers
        return [1.0, rows, rows * size.dim, keys, rows * size.dim * (workers - 1), 0.0, 0.0]
    keys = size.keys(SERVERS) if measured.server else 0
    return [1.0, measured.rows, measured.rows * size.dim, keys, 0.0, uses, uses * size.dim]


def predict(size: Size, measured: Measured, servers: int) -> float:
    """Return the predicted seconds of a step on this machine."""
    workers = size.workers if servers else 1
    step = WorkerStep(measured.rows, size.batch / workers * (1 + size.negatives))
    roles = [Role("server", index) for index in range(servers)] + [Role("worker", index) for index in range(workers)]
    keys = size.keys(servers) if servers else 0
    cores = len(os.sched_getaffinity(0))
    return step_seconds([step] * workers, size.dim, [roles] if servers else [], cores=cores, keys=keys)


def measure_all(sizes: list[Size], repeats: int, server_counts: tuple[int, ...]) -> dict[tuple[Size, int], Measured]:
    """Return the medians of each size on servers, and in process those that differ in more than keys and workers."""
    measured = {}
    for servers in server_counts:
        for size in sizes:
            if not servers and (size.workers != Size.workers or size.key_bytes != DEFAULT_KEY_BYTES):
                continue
            runs = [measure(size, servers) for _ in range(repeats)]
            medians = (statistics.median(values) for values in zip(*map(astuple, runs), strict=True))
            measured[size, servers] = Measured(*medians)
            print(f"{servers} servers, {size.name}: {_describe(measured[size, servers])}", file=sys.stderr, flush=True)
    return measured


def fit_costs(measured: dict[tuple[Size, int], Measured], cores: int) -> None:
    """Fit the costs, print them, and use them for predictions from here on."""
    for name, servers, of in (
        ("WORKER", SERVERS, "worker"),
        ("SERVER", SERVERS, "server"),
        ("IN_PROCESS", 0, "seconds"),
    ):
        if all(at != servers for _, at in measured):
            continue
        here = [(size, result) for (size, at), result in measured.items() if at == servers and size in FITTED]
        factors_MF = np.array([factors_of(size, result, of) for size, result in here])
        seconds_M = np.array([getattr(result, of) * (1 if servers else cores) for _, result in here])
        costs = Costs(*(float(f"{cost:.3g}") for cost in fit(factors_MF, seconds_M)))
        print(f"{name} = {costs}")
        setattr(step_time, name, costs)


def main() -> int:
    """Measure, fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="take medians of N (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare with the constants as they are; fit nothing")
    parser.add_argument("--in-process", action="store_true", help="leave the costs on servers as they are")
    arguments = parser.parse_args()
    server_counts = (0,) if arguments.in_process else (SERVERS, 0)
    measured = measure_all([*([] if arguments.check else FITTED), *CHECKED], arguments.repeats, server_counts)
    if not arguments.check:
        fit_costs(measured, len(os.sched_getaffinity(0)))
    for (size, servers), result in measured.items():
        predicted = predict(size, result, servers)
        kind = "fitted " if size in FITTED else "checked"
        milliseconds = f"measured {1e3 * result.seconds:6.1f} ms, predicted {1e3 * predicted:6.1f} ms"
        print(f"{servers} servers, {size.name}, {kind}: {milliseconds}, {predicted / result.seconds - 1:+.0%}")
    return 0


def _describe(measured: Measured) -> str:
    return (
        f"{1e3 * measured.seconds:.1f} ms, {measured.rows:,.0f} rows; worker {1e3 * measured.worker:.2f} ms, "
        f"server {1e3 * measured.server:.2f} ms of a core"
    )


if __name__ == "__main__":
    sys.exit(main())
