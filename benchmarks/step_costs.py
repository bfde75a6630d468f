"""Measure the constants of deploy/capacity/step_time.py, and how well they predict steps that they were not fitted to.

    .venv/bin/python benchmarks/step_costs.py [--repeats 3] [--stores sharded]

It trains with 2 servers and 1 to 8 workers, with 2 to 8 workers that hold the tables, and in process, with several
batches, columns, and negatives; takes the CPU time of each role from the run's own samples (processes.jsonl); and fits
the costs of a step by non-negative least squares of relative errors. Then it compares predicted and measured times of
steps, for these and for other sizes.

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
from typing import Any, Literal, get_args

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

Store = Literal["mxnet", "sharded", "process"]
"""What holds the tables: servers, the workers, or one process that trains."""


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
        uses, layout = f"{self.batch:6} x {1 + self.negatives}", f"{self.dim:3} columns, {self.keys:2} keys"
        return f"{uses}, {layout}, {self.workers} workers, {self.ids}"

    @property
    def keys(self) -> int:
        """The number of keys of the tables on servers."""
        tables = [TableSpec(str(rows), rows, self.dim, 0.1) for rows in TABLE_ROWS]
        return sum(layout.num_shards for layout in make_layout(tables, SERVERS, self.key_bytes))

    def differs(self, store: Store) -> bool:
        """Return whether the size is another one in ``store``: keys are MXNet's, and one process has no workers."""
        if store == "process":
            return self.workers == Size.workers and self.key_bytes == DEFAULT_KEY_BYTES
        return store == "mxnet" or (self.workers > 1 and self.key_bytes == DEFAULT_KEY_BYTES)


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


def measure(size: Size, store: Store) -> Measured:
    """Train with the tables in ``store``."""
    work = make_work(FOLDER / "work", Draw(size.ids, *TABLE_ROWS, 4_000_000))
    run_dir = FOLDER / "runs" / "costs"
    steps = max(40, int(4e6 / size.batch / (1 + size.negatives) / size.dim * 64))
    servers, workers = SERVERS if store == "mxnet" else 0, 0 if store == "process" else size.workers
    while True:
        job = bpr_job(work.dataset, steps=steps, batch=size.batch, dim=size.dim, negatives=size.negatives)
        job["cluster"] = {"max_key_bytes": size.key_bytes}
        result = train(job, run_dir, servers=servers, workers=workers)
        if result["seconds"] >= MIN_SECONDS:
            break
        steps = int(steps * (MIN_SECONDS + 2) / (result["seconds"] + 1))
    rows = result["rows_per_second"] * result["step_ms"] / 1e3 / max(1, workers)
    cpu = core_seconds(run_dir) if workers else {}
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
    return {kind: statistics.mean(values) for kind, values in found.items() if values}


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


def factors_of(size: Size, measured: Measured, store: Store, role: str) -> list[float]:
    """Return what each field of ``Costs`` is multiplied by in the core seconds of a step of ``role``."""
    workers = 1 if store == "process" else size.workers
    values = measured.rows * size.dim
    if role == "server":
        share = workers / SERVERS
        return [1.0, measured.rows * share, values * share, size.keys * share, values * share * (workers - 1), 0.0, 0.0]
    uses = size.batch / workers * (1 + size.negatives)
    if store == "sharded":
        return [1.0, measured.rows, values, workers - 1, values * (workers - 1) / workers, uses, uses * size.dim]
    return [1.0, measured.rows, values, size.keys if store == "mxnet" else 0, 0.0, uses, uses * size.dim]


def predict(size: Size, measured: Measured, store: Store) -> float:
    """Return the predicted seconds of a step on this machine."""
    workers = 1 if store == "process" else size.workers
    step = WorkerStep(measured.rows, size.batch / workers * (1 + size.negatives))
    roles = [Role("server", index) for index in range(SERVERS if store == "mxnet" else 0)]
    roles += [Role("worker", index) for index in range(workers)]
    cores = len(os.sched_getaffinity(0))
    hosts = [] if store == "process" else [roles]
    return step_seconds([step] * workers, size.dim, hosts, cores=cores, keys=size.keys if store == "mxnet" else 0)


def measure_all(sizes: list[Size], repeats: int, stores: list[Store]) -> dict[tuple[Size, Store], Measured]:
    """Return the medians of each size in the stores that it differs in."""
    measured: dict[tuple[Size, Store], Measured] = {}
    for store in stores:
        for size in (size for size in sizes if size.differs(store)):
            runs = [measure(size, store) for _ in range(repeats)]
            medians = (statistics.median(values) for values in zip(*map(astuple, runs), strict=True))
            measured[size, store] = Measured(*medians)
            print(f"{store}, {size.name}: {_describe(measured[size, store])}", file=sys.stderr, flush=True)
    return measured


def fit_costs(measured: dict[tuple[Size, Store], Measured], cores: int) -> None:
    """Fit the costs, print them, and use them for predictions from here on."""
    fits: tuple[tuple[str, Store, str], ...] = (
        ("WORKER", "mxnet", "worker"),
        ("SERVER", "mxnet", "server"),
        ("SHARDED", "sharded", "worker"),
        ("IN_PROCESS", "process", "seconds"),
    )
    for name, store, of in fits:
        here = [(size, result) for (size, at), result in measured.items() if at == store and size in FITTED]
        if not here:
            continue
        factors_MF = np.array([factors_of(size, result, store, of) for size, result in here])
        seconds_M = np.array([getattr(result, of) * (cores if store == "process" else 1) for _, result in here])
        costs = Costs(*(float(f"{cost:.3g}") for cost in fit(factors_MF, seconds_M)))
        print(f"{name} = {costs}")
        setattr(step_time, name, costs)


def main() -> int:
    """Measure, fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="take medians of N (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare with the constants as they are; fit nothing")
    stores = get_args(Store)
    parser.add_argument("--stores", nargs="+", choices=stores, default=stores, help="leave the costs of others")
    arguments = parser.parse_args()
    measured = measure_all([*([] if arguments.check else FITTED), *CHECKED], arguments.repeats, arguments.stores)
    if not arguments.check:
        fit_costs(measured, len(os.sched_getaffinity(0)))
    for (size, store), result in measured.items():
        predicted = predict(size, result, store)
        kind = "fitted " if size in FITTED else "checked"
        milliseconds = f"measured {1e3 * result.seconds:6.1f} ms, predicted {1e3 * predicted:6.1f} ms"
        print(f"{store}, {size.name}, {kind}: {milliseconds}, {predicted / result.seconds - 1:+.0%}")
    return 0


def _describe(measured: Measured) -> str:
    return (
        f"{1e3 * measured.seconds:.1f} ms, {measured.rows:,.0f} rows; worker {1e3 * measured.worker:.2f} ms, "
        f"server {1e3 * measured.server:.2f} ms of a core"
    )


if __name__ == "__main__":
    sys.exit(main())
