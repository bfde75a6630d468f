"""MXNet's dist_sync store as it comes: its server, its optimizer; every step pulls and pushes the active rows.

No loss is computed, only rows are moved and updated, so the rate is an upper bound for any training on this store.
``options`` of the task: ``servers``, ``workers``, and ``optimizer``, such as groupadagrad.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

from peers.task import Ids, Task

KEYS = ("customers", "tracks")


def main() -> None:
    """Run a worker, or start all processes and print the rate of all workers together."""
    if "DMLC_ROLE" in os.environ:
        print(json.dumps(work(Task.from_command_line())), flush=True)
        return
    task = Task.from_command_line()
    results = run_roles(task)
    rows = sum(result["rows"] for result in results)
    seconds = max(result["seconds"] for result in results)
    triples = task.options["workers"] * task.batch * task.steps
    print(json.dumps({"rows_per_second": rows / seconds, "triples_per_second": triples / seconds}))


def run_roles(task: Task) -> list[dict[str, Any]]:
    """Start a scheduler, servers, and workers; return what the workers print."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port), "DMLC_NODE_HOST": "127.0.0.1"}
    counts = {f"DMLC_NUM_{role.upper()}": str(task.options[f"{role}s"]) for role in ("server", "worker")}
    environment = {**os.environ, **address, **counts, "OMP_NUM_THREADS": str(task.threads)}
    others, workers = [], []
    try:
        for role in ["scheduler", *["server"] * task.options["servers"]]:
            command = [sys.executable, "-m", "peers.stock_mxnet"]
            others.append(subprocess.Popen(command, env={**environment, "DMLC_ROLE": role}, stdout=subprocess.DEVNULL))
        for _ in range(task.options["workers"]):
            command = [sys.executable, "-m", "peers.mxnet_store", sys.argv[1]]
            workers.append(
                subprocess.Popen(command, env={**environment, "DMLC_ROLE": "worker"}, stdout=subprocess.PIPE, text=True)
            )
        outputs = [worker.communicate()[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            raise SystemExit("a worker failed")
        return [json.loads(output.splitlines()[-1]) for output in outputs]
    finally:
        for process in [*workers, *others]:
            if process.poll() is None:
                process.terminate()
            process.wait()


def work(task: Task) -> dict[str, Any]:
    """Train one worker's part of the batches; return its rows and seconds."""
    from peers.stock_mxnet import mx

    store = mx.kv.create("dist_sync")
    shapes = {"customers": (task.customers, task.dim), "tracks": (task.tracks, task.dim)}
    for key, shape in shapes.items():
        values = mx.nd.random.normal(0, 0.1, shape) if store.rank == 0 else mx.nd.zeros((1, task.dim))
        rows = mx.nd.arange(len(values), dtype="int64")
        store.init(key, mx.nd.sparse.row_sparse_array((values, rows), shape=shape))
    store.set_optimizer(mx.optimizer.create(task.options["optimizer"], learning_rate=0.05))
    for key, shape in shapes.items():
        # The store keeps rank 0's array until the first push.
        store.push(key, mx.nd.sparse.zeros("row_sparse", shape))
    gradient_ND = np.full((2 * task.batch, task.dim), 1e-3, np.float32)

    def step(customer_B: Ids, positive_B: Ids, negative_B: Ids) -> int:
        uses = dict(zip(KEYS, (customer_B, np.concatenate([positive_B, negative_B])), strict=True))
        active = {key: np.unique(uses_N) for key, uses_N in uses.items()}
        pulled = {key: mx.nd.sparse.zeros("row_sparse", shapes[key]) for key in KEYS}
        for key, rows_A in active.items():
            store.row_sparse_pull(key, out=pulled[key], row_ids=mx.nd.array(rows_A, dtype="int64"))
        mx.nd.waitall()
        for key, rows_A in active.items():
            values = gradient_ND[: len(rows_A)], rows_A
            store.push(key, mx.nd.sparse.row_sparse_array(values, shape=shapes[key]))
        mx.nd.waitall()
        return sum(len(rows_A) for rows_A in active.values())

    batches = task.batches(store.rank, store.num_workers)
    for batch in itertools.islice(batches, task.warm_up):
        step(*batch)
    begin = time.perf_counter()
    rows = sum(step(*batch) for batch in itertools.islice(batches, task.steps))
    return {"rows": rows, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    main()
