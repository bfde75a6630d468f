"""Measure growth over servers and workers, of MXNet's store and of workers that hold the tables: what more processes
cost on this machine, and what links of a given bandwidth cost.

for name, run in cluster_runs(planner):
    run()       # figures of processes/2-4, or sharded-bandwidth/10
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from suite.training import bpr_job
from suite.two_hosts import train_on_two_hosts

if TYPE_CHECKING:
    from suite.plan import Planner

USUAL = 2
"""Servers while workers grow, and workers while servers grow."""
STORES = {"bandwidth": USUAL, "sharded-bandwidth": 0}
"""Servers of the measurements on two hosts. Without, the workers hold the tables."""
UNLIMITED = 0


def cluster_runs(planner: Planner) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the measurements of the section."""
    scale = planner.scale
    counts = [(servers, USUAL) for servers in scale.cluster_servers]
    counts += [(USUAL, workers) for workers in scale.cluster_workers]
    counts += [(0, workers) for workers in scale.sharded_workers]
    for servers, workers in dict.fromkeys(counts):
        yield f"processes/{servers}-{workers}", partial(planner.crossfade, processes=(servers, workers))
    for gbits in (UNLIMITED, *scale.gbits):
        for name, servers in STORES.items():
            yield f"{name}/{gbits}", partial(_bandwidth, planner, gbits, servers)


def _bandwidth(planner: Planner, gbits: float, servers: int) -> dict[str, Any]:
    scale = planner.scale
    job = bpr_job(planner.work().dataset, steps=scale.server_steps, batch=scale.batch, dim=scale.dim)
    return train_on_two_hosts(job, planner.run_dir, gbits, servers=servers)
