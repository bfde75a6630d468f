"""Measure growth over servers and workers, of MXNet's store and of workers that hold the tables: what more processes
cost on this machine, what links of a given bandwidth cost, and what four slow workers bring over one.

for name, run in cluster_runs(planner):
    run()       # figures of processes/2-4, sharded-bandwidth/10, or sharded-quarter-cores/bpr/4
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from suite.slow_workers import train_on_shares
from suite.training import bpr_job, softmax_job
from suite.two_hosts import train_on_two_hosts

if TYPE_CHECKING:
    from suite.plan import Planner, Scale

USUAL = 2
"""Servers while workers grow, and workers while servers grow."""
NO_SERVERS = 0
SHARE = 0.25
PARTITIONS = 4
"""Partitions of a batch where gradients are the bottleneck: one for each of four workers. A softmax over the batch
scores every example with all of its partition, so few partitions mean much work for each row that moves."""
LOSSES = ("bpr", "softmax")
"""Losses of slow workers that hold the tables; BPR computes least for each row that moves."""
ENDLESS_STEPS = 1_000_000
UNLIMITED = 0


def process_counts(scale: Scale) -> dict[str, list[tuple[int, int]]]:
    """Return servers and workers of each axis, by its name."""
    return {
        "servers": [(servers, USUAL) for servers in scale.cluster_servers],
        "workers": [(USUAL, workers) for workers in scale.cluster_workers],
        "workers that hold the tables": [(NO_SERVERS, workers) for workers in scale.sharded_workers],
    }


def bandwidth_key(gbits: float, servers: int) -> str:
    """Return the key of the measurement on two hosts with links of ``gbits``."""
    return f"cluster/{_store_prefix(servers)}bandwidth/{gbits}"


def slow_key(servers: int, loss: str, workers: int) -> str:
    """Return the key of the measurement of slow workers. On servers, the loss is always softmax."""
    kind = "" if servers else f"{loss}/"
    return f"cluster/{_store_prefix(servers)}quarter-cores/{kind}{workers}"


def _store_prefix(servers: int) -> str:
    return "" if servers else "sharded-"


def slow_runs() -> list[tuple[int, str]]:
    """Return servers and losses that slow workers are measured with."""
    return [(USUAL, "softmax"), *((NO_SERVERS, loss) for loss in LOSSES)]


def cluster_runs(planner: Planner) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the measurements of the section."""
    scale = planner.scale
    counts = dict.fromkeys(pair for pairs in process_counts(scale).values() for pair in pairs)
    for servers, workers in counts:
        run = partial(planner.crossfade, processes=(servers, workers))
        yield f"processes/{servers}-{workers}", run
    for gbits in (UNLIMITED, *scale.gbits):
        for servers in (USUAL, NO_SERVERS):
            yield _name(bandwidth_key(gbits, servers)), partial(_bandwidth, planner, gbits, servers)
    for servers, loss in slow_runs():
        for workers in scale.slow_workers:
            run = partial(_quarter_cores, planner, servers, loss, workers)
            yield _name(slow_key(servers, loss, workers)), run


def _name(key: str) -> str:
    return key.removeprefix("cluster/")


def _bandwidth(planner: Planner, gbits: float, servers: int) -> dict[str, Any]:
    scale = planner.scale
    job = bpr_job(planner.work().dataset, steps=scale.server_steps, batch=scale.batch, dim=scale.dim)
    return train_on_two_hosts(job, planner.run_dir, gbits, servers=servers)


def _quarter_cores(planner: Planner, servers: int, loss: str, workers: int) -> dict[str, Any]:
    scale = planner.scale
    sizes = {"steps": ENDLESS_STEPS, "batch": scale.batch, "dim": scale.dim}
    dataset = planner.work().dataset
    job = bpr_job(dataset, **sizes) if loss == "bpr" else softmax_job(dataset, partitions=PARTITIONS, **sizes)
    seconds = scale.slow_seconds
    return train_on_shares(job, planner.run_dir, servers=servers, workers=workers, share=SHARE, seconds=seconds)
