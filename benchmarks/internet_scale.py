"""Predict training at sizes that no benchmark here reaches: the table of docs/internet-scale.md.

    .venv/bin/python benchmarks/internet_scale.py [--hosts 16 64 256] [--vcpus 32] [--workers 4] [--price 2.016]

It uses the costs of deploy/capacity/step_time.py, measured on one machine, for both stores: MXNet's servers, one a
host, and workers that hold the tables. Customers of a step are assumed to differ, and tracks are drawn by Zipf's law,
each with one uniform negative. The bill has one pass over the events, what comes before it (preparing), beside it
(checkpoints), and after it (evaluations of valid and test, an index of the tracks, and exact recommendations to all
customers), and the storage meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from crossfade.deploy.capacity.stages import (
    GIB,
    SAVE_BYTES_PER_CORE_SECOND,
    Hosts,
    index_core_seconds,
    prepare_core_seconds,
    recommend_core_seconds,
)
from crossfade.deploy.capacity.step_time import (
    SERVER,
    SHARDED,
    WORKER,
    WorkerStep,
    evaluation_seconds,
    role_seconds,
    step_seconds,
)
from crossfade.deploy.capacity.traffic import RANKS_WIRE, SERVERS_WIRE
from crossfade.deploy.topology import Role
from crossfade.kvstore.mxnet.server_protocol import MAX_KEY_BYTES, make_layout
from crossfade.kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec

DIM = 64
STATE_BYTES = 4
ZIPF_EXPONENT = 1.1
STORES = ("mxnet", "sharded")
PARTS = ("worker", "server", "copies", "messages", "wire", "step")
"""Columns of milliseconds. Those of worker and server are without copies and messages."""
BILL = ("prepare", "train", "save", "evaluate", "index", "recommend", "storage")

SAVE_INTERVAL_SECONDS, KEPT_CHECKPOINTS = 3600.0, 3
RAW_EVENT_BYTES, PREPARED_EVENT_BYTES = 19.3, 8.1
"""Bytes of 100 million events on disk, raw and prepared, an event (docs/scale.md, "Preparing data")."""
QUERIES_PER_EXAMPLE, FINAL_FACTOR = 300, 10
"""Queries of an evaluation: 300 · interactions / items on valid, ten times as many on test (docs/evaluation.md)."""


@dataclass(frozen=True)
class Job:
    """Tables, interactions, and the triples of a worker's step."""

    customers: int
    tracks: int
    events: float
    batch: int


@dataclass(frozen=True)
class Cluster(Hosts):
    """Hosts with ``workers_each`` workers and a network card of ``gbit`` Gbit/s."""

    workers_each: int = 1
    gbit: float = 0.0


def distinct_tracks(tracks: int, draws: int) -> float:
    """Return the expected number of distinct tracks among ``draws`` by Zipf's law and as many uniform ones."""
    edges = np.unique(np.geomspace(1, tracks + 1, 20_000).astype(np.int64))
    rank_K, count_K = np.sqrt(edges[:-1] * (edges[1:] - 1.0)), np.diff(edges)
    weight_K = rank_K**-ZIPF_EXPONENT
    absent_K = np.exp(draws * (np.log1p(-weight_K / (weight_K @ count_K)) + np.log1p(-1.0 / tracks)))
    return float((1.0 - absent_K) @ count_K)


def predict(job: Job, hosts: Cluster, store: str) -> dict[str, float]:
    """Return what a step takes with the tables in ``store``, what each host holds, and the bill in dollars."""
    is_held = store == "sharded"
    tables = [TableSpec("customer", job.customers, DIM, 0.1), TableSpec("track", job.tracks, DIM, 0.1)]
    keys = 0 if is_held else sum(layout.num_shards for layout in make_layout(tables, hosts.count, MAX_KEY_BYTES))
    rows = job.batch + distinct_tracks(job.tracks, job.batch)
    workers = hosts.count * hosts.workers_each
    step = WorkerStep(rows, 2.0 * job.batch)
    wire = RANKS_WIRE["float32"] if is_held else SERVERS_WIRE
    host_rows = rows * hosts.workers_each * (1 - 1 / hosts.count)
    wire_bytes = host_rows * (wire.request_bytes + 2 * (wire.row_bytes + DIM * wire.value_bytes))
    wire_seconds = wire_bytes * 8 / (hosts.gbit * 1e9)
    roles = [
        [Role("worker", host * hosts.workers_each + number) for number in range(hosts.workers_each)]
        + [Role("server", host)] * (not is_held)
        for host in range(hosts.count)
    ]
    seconds = step_seconds([step] * workers, DIM, roles, cores=hosts.cores, keys=keys, wire_seconds=wire_seconds)
    server_rows = 0.0 if is_held else rows * hosts.workers_each
    worker = step.core_seconds(SHARDED if is_held else WORKER, DIM)
    server = SERVER.seconds(server_rows, DIM) if server_rows else 0.0
    messages = (workers - 1) * SHARDED.key if is_held else keys * WORKER.key + keys / hosts.count * workers * SERVER.key
    by_worker, by_server = role_seconds([step] * workers, DIM, 0 if is_held else hosts.count, keys)
    table_bytes = (job.customers + job.tracks) * (DIM * VALUE_BYTES + STATE_BYTES)
    rate = workers * job.batch / seconds
    writers = hosts.count * (hosts.workers_each if is_held else 1)
    return {
        "memory": (table_bytes + (0 if is_held else (job.customers + job.tracks) * ROW_ID_BYTES)) / hosts.count / GIB,
        "worker": worker,
        "server": server,
        "copies": by_worker[0] + by_server - worker - server - messages,
        "messages": messages,
        "wire": wire_seconds,
        "step": seconds,
        "rate": rate,
        "days": job.events / rate / 86_400,
        **bill(job, hosts, table_bytes, job.events / rate, writers),
    }


def bill(job: Job, hosts: Cluster, table_bytes: float, train_seconds: float, writers: int) -> dict[str, float]:
    """Return the dollars of each part of ``BILL``; ``writers`` processes write a checkpoint."""
    prepare_seconds = prepare_core_seconds(job.events) / hosts.cores
    # The processors of a host that training goes without, and the last checkpoint, for which it waits.
    saves = train_seconds / SAVE_INTERVAL_SECONDS
    save_core_seconds = table_bytes / SAVE_BYTES_PER_CORE_SECOND
    save_seconds = saves * save_core_seconds / (hosts.count * hosts.cores) + save_core_seconds / writers
    queries = min(job.customers, QUERIES_PER_EXAMPLE * job.events / job.tracks)
    evaluated = queries + min(job.customers, FINAL_FACTOR * queries)
    evaluate_seconds = evaluation_seconds(int(evaluated), job.tracks, DIM, hosts.cores * hosts.count)
    index_seconds = index_core_seconds(job.tracks, DIM) / hosts.cores
    recommend_seconds = recommend_core_seconds(job.customers, job.tracks, DIM) / (hosts.cores * hosts.count)
    after_seconds = evaluate_seconds + index_seconds + recommend_seconds
    seconds = prepare_seconds + train_seconds + save_seconds + after_seconds
    stored = job.events * (RAW_EVENT_BYTES + PREPARED_EVENT_BYTES) + KEPT_CHECKPOINTS * table_bytes
    return {
        "prepare": hosts.dollars(prepare_seconds, 1),
        "train": hosts.dollars(train_seconds),
        "save": hosts.dollars(save_seconds),
        "evaluate": hosts.dollars(evaluate_seconds),
        "index": hosts.dollars(index_seconds, 1),
        "recommend": hosts.dollars(recommend_seconds),
        "storage": stored / 1e9 * S3_DOLLARS_PER_GB_MONTH * seconds / (30 * 86_400),
    }


S3_DOLLARS_PER_GB_MONTH = 0.023
"""AWS's list price of S3 Standard in us-east-1."""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES, help="default: both")
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
    heads = "".join(f"{name:>9}" for name in PARTS), "".join(f"{name:>10}" for name in BILL)
    print(f"{'store':7}  hosts  workers    batch  GiB/host |{heads[0]} |  events/s   days |{heads[1]}  all USD")
    for batch in arguments.batches:
        for count in arguments.hosts:
            hosts = Cluster(
                count, arguments.vcpus, price=arguments.price, workers_each=arguments.workers, gbit=arguments.gbit
            )
            for store in arguments.stores:
                at = predict(Job(customers, tracks, arguments.events, batch), hosts, store)
                times = "".join(f"{1e3 * at[name]:9.1f}" for name in PARTS)
                dollars = "".join(f"{at[name]:10,.0f}" for name in BILL)
                print(
                    f"{store:7}  {count:5}  {count * arguments.workers:7}  {batch:7,}  {at['memory']:8.0f} |{times} |"
                    f" {at['rate'] / 1e6:7.2f} M  {at['days']:5.1f} |{dollars}  {sum(at[name] for name in BILL):7,.0f}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
