"""Measure growth over servers and workers: what more processes cost on this machine, what links of a given bandwidth
cost, and what four slow workers bring over one.

for name, run in cluster_runs(planner):
    run()       # figures of processes/2-4, bandwidth/10, or quarter-cores/4
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
SHARE = 0.25
PARTITIONS = 4
"""Partitions of a batch where gradients are the bottleneck: one for each of four workers. A softmax over the batch
scores every example with all of its partition, so few partitions mean much work for each row that moves."""
ENDLESS_STEPS = 1_000_000
UNLIMITED = 0


def process_counts(scale: Scale) -> dict[str, list[tuple[int, int]]]:
    """Return servers and workers of each axis, by its name."""
    return {
        "servers": [(servers, USUAL) for servers in scale.cluster_servers],
        "workers": [(USUAL, workers) for workers in scale.cluster_workers],
    }


def cluster_runs(planner: Planner) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the measurements of the section."""
    scale = planner.scale
    counts = dict.fromkeys(pair for pairs in process_counts(scale).values() for pair in pairs)
    for servers, workers in counts:
        run = partial(planner.crossfade, processes=(servers, workers))
        yield f"processes/{servers}-{workers}", run
    for gbits in (UNLIMITED, *scale.gbits):
        yield f"bandwidth/{gbits}", partial(_bandwidth, planner, gbits)
    for workers in scale.slow_workers:
        yield f"quarter-cores/{workers}", partial(_quarter_cores, planner, workers)


def _bandwidth(planner: Planner, gbits: float) -> dict[str, Any]:
    scale = planner.scale
    job = bpr_job(planner.work().dataset, steps=scale.server_steps, batch=scale.batch, dim=scale.dim)
    return train_on_two_hosts(job, planner.run_dir, gbits)


def _quarter_cores(planner: Planner, workers: int) -> dict[str, Any]:
    scale = planner.scale
    dataset = planner.work().dataset
    job = softmax_job(dataset, steps=ENDLESS_STEPS, batch=scale.batch, dim=scale.dim, partitions=PARTITIONS)
    seconds = scale.slow_seconds
    return train_on_shares(job, planner.run_dir, servers=USUAL, workers=workers, share=SHARE, seconds=seconds)
