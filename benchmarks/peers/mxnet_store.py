"""MXNet's dist_sync store as it comes: its server, its optimizer, on row-sparse keys of active rows.

``options`` of the task: ``servers``, ``workers``, ``optimizer``, such as groupadagrad, and ``train``. With it, workers
train with Gluon's SparseEmbedding and Trainer, as MXNet's documentation does. Without it, they only pull and push
active rows and compute nothing, so the rate is an upper bound for any training on this store.

Shapes: B triples, N uses, A active rows, D columns.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from peers.task import Ids, Task

KEYS = ("customers", "tracks")
LEARNING_RATE = 0.05
CountRows = Callable[[Ids, Ids], int]


def main() -> None:
    """Run a worker, or start all processes and print the rate of all workers together."""
    if "DMLC_ROLE" in os.environ:
        print(json.dumps(work(Task.from_command_line())), flush=True)
        return
    task = Task.from_command_line()
    results = run_roles(task)
    rows = sum(result["rows"] for result in results)
    seconds = max(result["seconds"] for result in results)
    figures = {"rows_per_second": rows / seconds, "step_ms": 1e3 * seconds / task.steps}
    if task.options["train"]:
        figures["triples_per_second"] = task.options["workers"] * task.batch * task.steps / seconds
    print(json.dumps(figures))


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
            command = [sys.executable, "-W", "ignore", "-m", "peers.mxnet_store", sys.argv[1]]
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
    """Take one worker's part of the batches; return its rows and seconds."""
    from peers.stock_mxnet import mx

    store = mx.kv.create("dist_sync")
    step = gluon_step(task, store, mx) if task.options["train"] else moving_step(task, store, mx)
    batches = task.batches(store.rank, store.num_workers)

    def steps(count: int) -> int:
        rows = 0
        for customer_B, positive_B, negative_B in itertools.islice(batches, count):
            rows += step(customer_B, np.concatenate([positive_B, negative_B]))
            mx.nd.waitall()
        return rows

    steps(task.warm_up)
    begin = time.perf_counter()
    rows = steps(task.steps)
    return {"rows": rows, "seconds": time.perf_counter() - begin}


def moving_step(task: Task, store: Any, mx: Any) -> CountRows:
    """Return a step that pulls and pushes active rows, with gradients made beforehand."""
    shapes = {"customers": (task.customers, task.dim), "tracks": (task.tracks, task.dim)}
    for key, shape in shapes.items():
        values = mx.nd.random.normal(0, 0.1, shape) if store.rank == 0 else mx.nd.zeros((1, task.dim))
        rows = mx.nd.arange(len(values), dtype="int64")
        store.init(key, mx.nd.sparse.row_sparse_array((values, rows), shape=shape))
    store.set_optimizer(mx.optimizer.create(task.options["optimizer"], learning_rate=LEARNING_RATE))
    for key, shape in shapes.items():
        # The store keeps rank 0's array until the first push.
        store.push(key, mx.nd.sparse.zeros("row_sparse", shape))
    gradient_ND = np.full((2 * task.batch, task.dim), 1e-3, np.float32)

    def step(customer_B: Ids, track_N: Ids) -> int:
        active = dict(zip(KEYS, (np.unique(customer_B), np.unique(track_N)), strict=True))
        pulled = {key: mx.nd.sparse.zeros("row_sparse", shapes[key]) for key in KEYS}
        for key, rows_A in active.items():
            store.row_sparse_pull(key, out=pulled[key], row_ids=mx.nd.array(rows_A, dtype="int64"))
        mx.nd.waitall()
        for key, rows_A in active.items():
            values = gradient_ND[: len(rows_A)], rows_A
            store.push(key, mx.nd.sparse.row_sparse_array(values, shape=shapes[key]))
        return sum(len(rows_A) for rows_A in active.values())

    return step


def gluon_step(task: Task, store: Any, mx: Any) -> CountRows:
    """Return a step of training that pulls active rows, computes the BPR loss, and pushes row-sparse gradients."""
    customers, tracks = tables = [
        mx.gluon.contrib.nn.SparseEmbedding(rows, task.dim, weight_initializer=mx.init.Normal(0.1))
        for rows in (task.customers, task.tracks)
    ]
    parameters = {}
    for table in tables:
        table.initialize()
        parameters.update(table.collect_params().items())
    options = {"learning_rate": LEARNING_RATE}
    trainer = mx.gluon.Trainer(parameters, task.options["optimizer"], options, kvstore=store)

    def step(customer_B: Ids, track_N: Ids) -> int:
        customer, track = (mx.nd.array(ids_N, dtype="int64") for ids_N in (customer_B, track_N))
        with mx.autograd.record():
            track_ND = tracks(track)
            difference_BD = track_ND[: task.batch] - track_ND[task.batch :]
            loss = mx.nd.Activation(-(customers(customer) * difference_BD).sum(axis=1), act_type="softrelu").mean()
        loss.backward()
        trainer.step(1)  # the loss is a mean already
        return len(np.unique(customer_B)) + len(np.unique(track_N))

    return step


if __name__ == "__main__":
    main()
