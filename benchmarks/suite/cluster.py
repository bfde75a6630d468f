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
    from suite.plan import Planner, Scale

USUAL = 2
"""Servers while workers grow, and workers while servers grow."""
NO_SERVERS = 0
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


def _store_prefix(servers: int) -> str:
    return "" if servers else "sharded-"


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


def _name(key: str) -> str:
    return key.removeprefix("cluster/")


def _bandwidth(planner: Planner, gbits: float, servers: int) -> dict[str, Any]:
    scale = planner.scale
    job = bpr_job(planner.work().dataset, steps=scale.server_steps, batch=scale.batch, dim=scale.dim)
    return train_on_two_hosts(job, planner.run_dir, gbits, servers=servers)
