"""What is measured, by section and at two scales: the figures of docs/evidence.md, and a quick check of the suite.

for measurement in measurements(FULL, folder, install=True):
    measurement.run()       # a dict of figures, or MeasurementError
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from suite.cluster import cluster_runs
from suite.environments import ensure_environment
from suite.gpu import gpu_runs
from suite.processes import MeasurementError, run_module
from suite.training import bpr_job, train
from suite.waiting import waiting_runs
from suite.waiting_work import WaitingSizes
from suite.work import Distribution, Draw, Work, make_work


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        figures: The figures that its table shows, the first of which is compared.
        references: Measurements that others of the same group are compared with: the first that has the figure.
    """

    figures: tuple[str, ...]
    references: tuple[str, ...] = ()


SECTIONS = {
    "dense": Section(("step_ms", "triples_per_second")),
    "single": Section(("triples_per_second", "step_ms"), ("crossfade",)),
    "distributed": Section(("triples_per_second", "rows_per_second", "step_ms"), ("crossfade",)),
    "products": Section(("share", "ratio", "engine_ms", "rank_ms", "products_ms")),
    "growth": Section(("step_ms", "triples_per_second")),
    "cluster": Section(("step_ms", "triples_per_second", "link_gbits", "bytes_pulled", "bytes_pushed")),
    "waiting": Section(
        (
            *("seconds", "cpu_seconds", "events_per_second", "peak_gib", "ndcg@10"),
            *("recommend_ms", "similar_ms", "second_seconds", "share"),
        ),
        ("plain", "implicit"),
    ),
    "gpu": Section(("triples_per_second", "step_ms", "prepare_ms", "device_gib"), ("crossfade",)),
}
"""What is measured, by the name of the section; the page says how."""
HOGWILD = {"implicit": "implicit_bpr"}
"""Peers that take whole epochs: by environment, the script."""
ENVIRONMENTS = [*HOGWILD, "torch"]
MXNET_MODES = {
    "mxnet-dense": {"sparse": False, "optimizer": "groupadagrad"},
    "mxnet-dense-sgd": {"sparse": False, "optimizer": "sgd"},
    "mxnet-row-sparse": {"sparse": True, "optimizer": "groupadagrad"},
    "mxnet-row-sparse-sgd": {"sparse": True, "optimizer": "sgd"},
}
MXNET_COPIES = {"mxnet-dense": 6, "mxnet-dense-sgd": 2, "mxnet-row-sparse": 2, "mxnet-row-sparse-sgd": 2}
"""Arrays as large as the tables that are in memory at the same time, at the peak."""
TORCHREC_PLANS = ("row", "table", "column")
PIPELINED = "pipelined"
TORCHREC_VARIANTS = {
    **{f"torchrec-{plan}": {"plan": plan, PIPELINED: False} for plan in TORCHREC_PLANS},
    **{f"torchrec-{plan}-{PIPELINED}": {"plan": plan, PIPELINED: True} for plan in TORCHREC_PLANS},
}
"""By key, the options of ``peers/torchrec_bpr.py``."""
STOCK_MODES = {
    "stock-groupadagrad": {"optimizer": "groupadagrad", "train": True},
    "stock-adagrad": {"optimizer": "adagrad", "train": True},
    "stock-rows-only": {"optimizer": "groupadagrad", "train": False},
}
IN_PROCESS, SERVERS, SHARDED = (0, 0), (2, 2), (0, 2)
"""Servers and workers. Without servers, several workers hold the tables."""
MAX_MXNET_ELEMENTS = 2**31
MEMORY_FACTOR, MEMORY_BASE = 1.1, 3 * 2**29
TIMEOUT_SECONDS = 600.0
GIB = 2**30


@dataclass(frozen=True)
class Scale:
    """Sizes of the work, and how long each measurement runs.

    ``growth_rows`` are rows beside ``dense_rows``; ``server_rows`` those that grow in distributed jobs.
    ``sharded_workers`` are counts of workers that hold the tables. ``gbits`` are bandwidths of links. Crossfade
    takes more steps where the timed ones would take less than ``min_seconds``. ``waiting`` are that section's.
    """

    name: str = "full"
    distributions: tuple[Distribution, ...] = ("uniform", "zipf")
    customers: int = 1_000_000
    tracks: int = 100_000
    triples: int = 4_000_000
    dim: int = 64
    batch: int = 16_384
    steps: int = 400
    server_steps: int = 300
    peer_steps: int = 60
    epochs: int = 3
    rounds: int = 5
    min_seconds: float = 5.0
    dense_rows: tuple[int, ...] = (64_000, 256_000, 1_000_000, 4_000_000, 16_000_000, 64_000_000)
    growth_rows: tuple[int, ...] = (32_000_000,)
    server_rows: tuple[int, ...] = (1_000_000, 64_000_000)
    batches: tuple[int, ...] = (1_024, 4_096, 16_384, 65_536)
    dims: tuple[int, ...] = (16, 32, 64, 128, 256)
    negatives: tuple[int, ...] = (1, 2, 4, 8, 16)
    softmax_tracks: int = 10_000
    queries: int = 10_000
    items: int = 40_000
    cluster_servers: tuple[int, ...] = (1, 2, 4)
    cluster_workers: tuple[int, ...] = (1, 2, 4, 8)
    sharded_workers: tuple[int, ...] = (1, 2, 4, 8)
    gbits: tuple[int, ...] = (1, 10, 25)
    waiting: WaitingSizes = field(default_factory=WaitingSizes)


FULL = Scale()
QUICK = Scale(
    name="quick",
    distributions=("uniform",),
    customers=200_000,
    tracks=20_000,
    triples=1_000_000,
    steps=80,
    server_steps=60,
    peer_steps=10,
    epochs=1,
    rounds=2,
    min_seconds=0.0,
    dense_rows=(64_000, 256_000),
    growth_rows=(),
    server_rows=(64_000, 200_000),
    batches=(4_096,),
    dims=(32,),
    negatives=(4,),
    softmax_tracks=5_000,
    queries=1_000,
    items=10_000,
    cluster_servers=(1,),
    cluster_workers=(),
    sharded_workers=(1, 4),
    gbits=(1,),
    waiting=WaitingSizes(
        events=200_000,
        event_users=10_000,
        event_tracks=5_000,
        plays=20_000,
        users=1_000,
        tracks=1_000,
        trained=(2_000, 1_000, 20_000),
        calls=50,
        starts=2,
    ),
)


@dataclass(frozen=True)
class Measurement:
    """One figure, or several that are measured together. ``run`` raises MeasurementError if there are none."""

    section: str
    key: str
    run: Callable[[], dict[str, Any]]


def threads() -> int:
    """Return the cores of this process; every measurement uses all of them."""
    return len(os.sched_getaffinity(0))


class Planner:
    """Builds the measurements of a scale. IDs are generated when a measurement first needs them."""

    def __init__(self, scale: Scale, folder: Path, install: bool) -> None:
        """Keep IDs and runs below ``folder``; ``install`` peers that are missing."""
        self.scale = scale
        self.run_dir = folder / "runs" / "bench"
        self.folder = folder
        self._install = install
        self._steps: dict[tuple[object, ...], int] = {}

    def environment(self, name: str) -> Path:
        """Return the interpreter of a peer's environment."""
        return ensure_environment(name, self._install)

    def work(self, distribution: Distribution = "uniform", customers: int | None = None) -> Work:
        """Return the IDs of a distribution."""
        scale = self.scale
        draw = Draw(distribution, customers or scale.customers, scale.tracks, scale.triples)
        return make_work(self.folder / "work", draw)

    def crossfade(
        self,
        distribution: Distribution = "uniform",
        *,
        rows: int | None = None,
        processes: tuple[int, int] = IN_PROCESS,
        **options: int,
    ) -> dict[str, Any]:
        """Train with ``processes``: servers and workers. Without servers, several workers hold the tables."""
        scale, negatives = self.scale, options.get("negatives", 1)
        servers, workers = processes
        batch, dim = options.get("batch", scale.batch), options.get("dim", scale.dim)
        check_memory((rows or scale.customers) * (dim + 1) * 4)
        dataset = self.work(distribution, rows).dataset
        # Steps of other sizes take about as long together as the standard ones.
        cost = batch * dim * (2 + negatives) / (scale.batch * scale.dim * 3)
        kind = distribution, rows, processes, *options.items()
        usual = scale.server_steps if servers or workers > 1 else scale.steps
        steps = self._steps.get(kind) or max(20, int(usual / cost))
        while True:
            job = bpr_job(dataset, steps=steps, batch=batch, dim=dim, negatives=negatives)
            result = train(job, self.run_dir, servers=servers, workers=workers)
            if result["seconds"] >= scale.min_seconds:
                return result
            # The first second is the warm-up, and events are a second apart.
            steps = int(steps * (scale.min_seconds + 3) / (result["seconds"] + 1))
            self._steps[kind] = steps

    def peer(
        self,
        script: str,
        environment: str | None,
        distribution: Distribution,
        *,
        rows: int | None = None,
        batch: int | None = None,
        steps: int | None = None,
        warm_up: int = 1,
        threads_each: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run a script of ``benchmarks/peers/`` in an environment, None: that of the project."""
        scale = self.scale
        python = self.environment(environment) if environment else sys.executable
        task = {
            "ids": str(self.work(distribution, rows).ids),
            "customers": rows or scale.customers,
            "tracks": scale.tracks,
            "dim": scale.dim,
            "batch": batch or scale.batch,
            "steps": steps or scale.peer_steps,
            "warm_up": warm_up,
            "threads": threads_each or threads(),
            "options": options,
        }
        return run_module(python, f"peers.{script}", task, TIMEOUT_SECONDS)

    def mxnet(self, mode: str, distribution: Distribution, rows: int | None = None) -> dict[str, Any]:
        """Run MXNet's own training in one process, with fewer steps the larger the tables."""
        scale, dense = self.scale, not MXNET_MODES[mode]["sparse"]
        table = rows or scale.customers
        if table * scale.dim >= MAX_MXNET_ELEMENTS:
            raise MeasurementError("MXNet 1.9.1's arrays hold fewer than 2³¹ elements")
        check_memory(table * scale.dim * 4 * MXNET_COPIES[mode])
        steps = max(4, min(scale.peer_steps, scale.peer_steps * 1_000_000 // table // (4 if dense else 1)))
        return self.peer("mxnet_gluon", None, distribution, rows=rows, steps=steps, warm_up=2, **MXNET_MODES[mode])

    def peer_script(self, script: str, environment: str, **task: Any) -> dict[str, Any]:
        """Run a script of ``benchmarks/peers/`` in an environment, with ``task`` instead of triples."""
        python = self.environment(environment)
        return run_module(python, f"peers.{script}", {"threads": threads(), **task}, TIMEOUT_SECONDS)

    def script(self, module: str, **task: Any) -> dict[str, Any]:
        """Run a module of the suite in a separate process."""
        task = {"dim": self.scale.dim, "rounds": self.scale.rounds, "threads": threads(), **task}
        return run_module(sys.executable, f"suite.{module}", task, TIMEOUT_SECONDS)


def check_memory(table_bytes: float) -> None:
    """Check that tables of this size fit.

    Raises:
        MeasurementError: they do not.
    """
    needed, free = MEMORY_FACTOR * table_bytes + MEMORY_BASE, psutil.virtual_memory().available
    if needed > free:
        raise MeasurementError(f"it needs {needed / GIB:.0f} GiB of memory, and {free / GIB:.0f} GiB are free")


def measurements(scale: Scale, folder: Path, install: bool) -> Iterator[Measurement]:
    """Yield all measurements of a scale."""
    planner = Planner(scale, folder, install)
    for section, builder in (
        ("dense", _dense),
        ("single", _single),
        ("distributed", _distributed),
        ("products", _products),
        ("growth", _growth),
        ("cluster", cluster_runs),
        ("waiting", waiting_runs),
        ("gpu", gpu_runs),
    ):
        for name, run in builder(planner):
            yield Measurement(section, f"{section}/{name}", run)


Runs = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def _dense(planner: Planner) -> Runs:
    for rows in planner.scale.dense_rows:
        for mode in MXNET_MODES:
            yield f"{mode}/{rows}", partial(planner.mxnet, mode, "uniform", rows)
        yield f"crossfade/{rows}", partial(planner.crossfade, rows=rows)


def _single(planner: Planner) -> Runs:
    scale = planner.scale
    for ids in scale.distributions:
        yield f"{ids}/crossfade", partial(planner.crossfade, ids)
        for environment, script in HOGWILD.items():
            yield f"{ids}/{environment}", partial(planner.peer, script, environment, ids, steps=scale.epochs)
        yield f"{ids}/fbgemm", partial(planner.peer, "fbgemm_bpr", "torch", ids, warm_up=5)
        for mode in MXNET_MODES:
            yield f"{ids}/{mode}", partial(planner.mxnet, mode, ids)


def _distributed(planner: Planner) -> Runs:
    half = planner.scale.batch // 2
    two = {"batch": half, "warm_up": 5, "threads_each": 1}
    for ids in planner.scale.distributions:
        yield f"{ids}/sharded", partial(planner.crossfade, ids, processes=SHARDED)
        yield f"{ids}/crossfade", partial(planner.crossfade, ids, processes=SERVERS)
        yield f"{ids}/crossfade-1", partial(planner.crossfade, ids, processes=(1, 1))
        for key, variant in TORCHREC_VARIANTS.items():
            yield f"{ids}/{key}", partial(planner.peer, "torchrec_bpr", "torch", ids, ranks=2, **variant, **two)
        for mode, options in STOCK_MODES.items():
            yield (
                f"{ids}/{mode}",
                partial(planner.peer, "mxnet_store", None, ids, servers=2, workers=2, **options, **two),
            )


def _products(planner: Planner) -> Runs:
    scale = planner.scale
    softmax = {"examples": scale.batch, "customers": scale.customers, "partitions": 16}
    yield "in_batch", partial(planner.script, "softmax_share", negatives="in_batch", tracks=scale.tracks, **softmax)
    yield "all", partial(planner.script, "softmax_share", negatives="all", tracks=scale.softmax_tracks, **softmax)
    yield "evaluation", partial(planner.script, "evaluation_share", queries=scale.queries, items=scale.items, depth=40)


def _growth(planner: Planner) -> Runs:
    scale = planner.scale
    for rows in scale.growth_rows:
        yield f"rows/{rows}", partial(planner.crossfade, rows=rows)
    for rows in scale.server_rows:
        yield f"sharded/{rows}", partial(planner.crossfade, rows=rows, processes=SHARDED)
        yield f"servers/{rows}", partial(planner.crossfade, rows=rows, processes=SERVERS)
    for batch in scale.batches:
        yield f"batch/{batch}", partial(planner.crossfade, batch=batch)
    for dim in scale.dims:
        yield f"dim/{dim}", partial(planner.crossfade, dim=dim)
    for negatives in scale.negatives:
        yield f"negatives/{negatives}", partial(planner.crossfade, negatives=negatives)
