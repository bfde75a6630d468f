"""Write the section of the page on servers and workers: processes, bandwidths, and slow workers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from suite.charts import Points
from suite.cluster import (
    NO_SERVERS,
    PARTITIONS,
    SHARE,
    UNLIMITED,
    USUAL,
    bandwidth_key,
    process_counts,
    slow_key,
    slow_runs,
)
from suite.markup import absence, cell, prose, spread, table, thousands
from suite.plan import Scale
from suite.results import Results
from suite.targets import RATE

CHART = "performance-bandwidth.svg"
STORES = {USUAL: "dist_sync", NO_SERVERS: "sharded"}
"""Stores by the servers of a job on two hosts."""
_PHASES = ("pull", "gradients", "push")


def cluster_section(scale: Scale, results: Results) -> Iterator[str]:
    """Yield the tables of the section."""
    yield from _processes(scale, results)
    yield from _bandwidths(scale, results)
    yield from _slow_workers(scale, results)


def bandwidth_chart(scale: Scale, results: Results) -> dict[str, Points]:
    """Return milliseconds of a step by Gbit/s."""
    chart: dict[str, Points] = {}
    for servers, name in STORES.items():
        steps = ((float(gbits), results.median(bandwidth_key(gbits, servers), "step_ms")) for gbits in scale.gbits)
        chart[name] = [(gbits, step) for gbits, step in steps if step]
    return chart


def _processes(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        f"""Milliseconds of a step of {scale.batch:,} triples, all workers together, as servers or workers grow; there
        are {USUAL} of the other. Of workers that hold the tables, there is nothing else, and one of them is a process
        that trains by itself. All processes share this machine's cores, so this shows what processes cost, not what
        more machines bring."""
    )
    rows = []
    for axis, counts in process_counts(scale).items():
        for servers, workers in counts:
            key = f"cluster/processes/{servers}-{workers}"
            count = servers if axis == "servers" else workers
            rate = thousands(results.median(key, RATE))
            rows.append([axis, str(count), cell(results, key, "step_ms"), rate])
    yield table(["of", "count", "ms", "thousand triples/s"], rows) + "\n"


def _bandwidths(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        """The same work on two hosts, which `crossfade train` and `crossfade agent` start: with one server and one
        worker each (dist_sync), or one worker that holds a part of the tables (sharded). The hosts are network
        namespaces of this machine, and the kernel limits both directions of their links. What one TCP connection moves
        between them was measured before each run; where that is less than the limit, the cores are the limit. Megabytes
        are what both workers together pull and push in a step, half of it on the wire. The last column is the time
        beyond an unlimited step of the same repeat."""
    )
    rows = [
        [name, *_bandwidth_row(results, gbits, servers)]
        for servers, name in STORES.items()
        for gbits in (UNLIMITED, *scale.gbits)
    ]
    head = [
        "store",
        "links",
        "connection, Gbit/s",
        "step, ms",
        "MB pulled",
        "MB pushed",
        "difference, ms",
    ]
    yield table(head, rows)
    yield f"\n![Time of a step against bandwidth]({CHART})\n" if any(bandwidth_chart(scale, results).values()) else ""


def _bandwidth_row(results: Results, gbits: float, servers: int) -> list[str]:
    key = bandwidth_key(gbits, servers)
    moved = [cell(results, key, figure, 1e-6) for figure in ("bytes_pulled", "bytes_pushed")]
    row = [f"{gbits} Gbit/s" if gbits else "unlimited", cell(results, key, "link_gbits")]
    row += [cell(results, key, "step_ms"), *moved]
    if not gbits:
        return [*row, ""]
    differences = results.differences(key, bandwidth_key(UNLIMITED, servers), "step_ms")
    return [*row, spread(differences) or absence(results, key)]


def _slow_workers(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        f"""Workers that may use {SHARE:g} of a core each, by CPU cgroups. On dist_sync, {USUAL} servers have no limit,
        so that gradients are the bottleneck. Sharded, the workers hold the tables and there is nothing else; one of
        them is a process that trains by itself, and exchanges nothing. A softmax is over the batch of {scale.batch:,}
        examples in {PARTITIONS} partitions. "Core" is the share of a core that a worker used; "at the limit" is the
        share of the kernel's periods in which it used up its quota. Where the first is about {SHARE:g}, the quotas were
        the limit."""
    )
    rows = []
    for servers, loss in slow_runs():
        one, *more = (slow_key(servers, loss, workers) for workers in scale.slow_workers)
        for workers, key in zip(scale.slow_workers, (one, *more), strict=True):
            rows.append([f"{STORES[servers]}, {loss}", *_slow_row(results, workers, key, one)])
    head = ["store, loss", "workers", "step, ms", *_PHASES, "thousand examples/s", "over one", "core", "at the limit"]
    yield table(head, rows) + "\n"


def _slow_row(results: Results, workers: int, key: str, one: str) -> list[str]:
    ratio = results.ratio(key, one, RATE)
    phases = [result.values["phases_ms"] for result in results if result.key == key and result.values]
    medians = [statistics.median(each[phase] for each in phases) if phases else None for phase in _PHASES]
    return [
        str(workers),
        cell(results, key, "step_ms"),
        *("" if value is None else f"{value:.1f}" for value in medians),
        cell(results, key, RATE, 1e-3),
        f"{ratio:.2f}" if ratio else "",
        cell(results, key, "worker_cpu_share"),
        cell(results, key, "throttled_share"),
    ]
