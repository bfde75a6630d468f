"""Predict training at sizes that no benchmark here reaches: the table of docs/internet-scale.md.

    .venv/bin/python benchmarks/internet_scale.py [--hosts 16 64 256] [--vcpus 32] [--memory 256] [--price 2.016]

It uses the costs of deploy/capacity/step_time.py, measured on one machine, and the layout of the key-value store. Each
host runs one server and the given number of workers; customers of a step are assumed to differ, and tracks are drawn by
Zipf's law, each with one uniform negative.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from crossfade.deploy.capacity.step_time import SERVER, WORKER, WorkerStep, step_seconds
from crossfade.deploy.capacity.traffic import WIRE_REQUEST_BYTES, WIRE_ROW_BYTES
from crossfade.deploy.topology import Role
from crossfade.kvstore.mxnet.server_protocol import MAX_KEY_BYTES, make_layout
from crossfade.kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec

DIM = 64
STATE_BYTES = 4
ZIPF_EXPONENT = 1.1
GIB = 2**30
PARTS = ("worker", "server", "merges", "of_keys", "wire", "step")
"""Columns of milliseconds. Those of worker and server are without merges and keys."""


@dataclass(frozen=True)
class Job:
    """Tables, interactions, and the triples of a worker's step."""

    customers: int
    tracks: int
    events: float
    batch: int


def distinct_tracks(tracks: int, draws: int) -> float:
    """Return the expected number of distinct tracks among ``draws`` by Zipf's law and as many uniform ones."""
    edges = np.unique(np.geomspace(1, tracks + 1, 20_000).astype(np.int64))
    rank_K, count_K = np.sqrt(edges[:-1] * (edges[1:] - 1.0)), np.diff(edges)
    weight_K = rank_K**-ZIPF_EXPONENT
    absent_K = np.exp(draws * (np.log1p(-weight_K / (weight_K @ count_K)) + np.log1p(-1.0 / tracks)))
    return float((1.0 - absent_K) @ count_K)


def predict(job: Job, hosts: int, workers_each: int, vcpus: int, gbit: float) -> dict[str, float]:
    """Return what a step takes on ``hosts`` hosts of one server each, and what each of them holds."""
    tables = [TableSpec("customer", job.customers, DIM, 0.1), TableSpec("track", job.tracks, DIM, 0.1)]
    keys = sum(layout.num_shards for layout in make_layout(tables, hosts, MAX_KEY_BYTES))
    rows = job.batch + distinct_tracks(job.tracks, job.batch)
    workers = hosts * workers_each
    step = WorkerStep(rows, 2.0 * job.batch)
    host_rows = rows * workers_each * (1 - 1 / hosts)
    wire_bytes = host_rows * (WIRE_REQUEST_BYTES + 2 * (WIRE_ROW_BYTES + DIM * VALUE_BYTES))
    wire_seconds = wire_bytes * 8 / (gbit * 1e9)
    roles = [
        [Role("server", host), *(Role("worker", host * workers_each + number) for number in range(workers_each))]
        for host in range(hosts)
    ]
    seconds = step_seconds([step] * workers, DIM, roles, cores=vcpus, keys=keys, wire_seconds=wire_seconds)
    rate = workers * job.batch / seconds
    return {
        "memory": (job.customers + job.tracks) * (DIM * VALUE_BYTES + STATE_BYTES + ROW_ID_BYTES) / hosts / GIB,
        "keys": keys,
        "worker": step.core_seconds(WORKER, DIM),
        "server": SERVER.seconds(rows * workers_each, DIM),
        "merges": SERVER.seconds(rows * workers_each, DIM, merges=workers - 1)
        - SERVER.seconds(rows * workers_each, DIM),
        "of_keys": keys * WORKER.key + keys / hosts * workers * SERVER.key,
        "wire": wire_seconds,
        "step": seconds,
        "rate": rate,
        "days": job.events / rate / 86_400,
    }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=float, default=1.5e9, metavar="N", help="default: %(default)g")
    parser.add_argument("--tracks", type=float, default=62.5e6, metavar="N", help="default: %(default)g")
    parser.add_argument("--events", type=float, default=1e12, metavar="N", help="interactions (default: %(default)g)")
    parser.add_argument("--batches", type=int, nargs="+", default=[16_384, 131_072], metavar="N", help="of a worker")
    parser.add_argument("--hosts", type=int, nargs="+", default=[4, 16, 64], metavar="N")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="of a host (default: %(default)s)")
    parser.add_argument("--vcpus", type=int, default=32, metavar="N", help="of a host (default: %(default)s)")
    parser.add_argument("--gbit", type=float, default=12.5, metavar="RATE", help="of a host (default: %(default)s)")
    parser.add_argument("--price", type=float, default=2.016, metavar="USD", help="of a host's hour")
    arguments = parser.parse_args()
    customers, tracks = int(arguments.customers), int(arguments.tracks)
    print(f"{(customers + tracks) * DIM:,} parameters, {arguments.events:,.0f} interactions")
    print(
        f"hosts  workers    batch  GiB/host  keys |  {'  '.join(f'{name:>8}' for name in PARTS)} |  events/s     days"
        "        USD"
    )
    for batch in arguments.batches:
        for hosts in arguments.hosts:
            job = Job(customers, tracks, arguments.events, batch)
            at = predict(job, hosts, arguments.workers, arguments.vcpus, arguments.gbit)
            cost = at["days"] * 24 * hosts * arguments.price
            times = "  ".join(f"{1e3 * at[name]:8.1f}" for name in PARTS)
            print(
                f"{hosts:5}  {hosts * arguments.workers:7}  {batch:7,}  {at['memory']:8.0f}  {at['keys']:4.0f} |"
                f"  {times} | {at['rate'] / 1e6:6.2f} M  {at['days']:7.1f}  {cost:9,.0f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
