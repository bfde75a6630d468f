"""The time of a step, from what its processes compute and move.

Core seconds are those of one virtual CPU of the machine that ``benchmarks/step_costs.py`` measured the constants on.
With b examples of n scored negatives each, r active rows of d columns, and K keys, a worker and a server take

    worker = STEP + r·(ROW + d·VALUE) + K·KEY + b·(1 + n)·(USE + d·USE_VALUE)
    server = STEP' + r'·(ROW' + d·VALUE' + d·(W − 1)·MERGE) + K'·W·KEY'

where W is the number of workers, r' are the rows that they pull from the server and push to it, and K' its keys. MXNet
merges the pushes of a key one by one and copies all rows merged so far each time, hence W − 1. A worker that holds a
shard of the tables also serves and updates rows, about as many as it uses, of which the part (W − 1) / W travels:

    worker = STEP + r·(ROW + d·VALUE + d·(W − 1)/W·TRAVEL) + (W − 1)·PEER + b·(1 + n)·(USE + d·USE_VALUE)

Where examples share negatives, the last term of a worker is 6·b·n·d floating-point operations at ``POOL_FLOPS``: one
product for the scores and two for the gradients. Where all items are the negatives of a softmax, b is the number of
distinct queries, each of which is scored once (``trainer/model/softmax_kernels.py``). A worker waits for the answers
of servers, and servers for the pushes of all workers, so a step takes as long as the slowest worker, the busiest
server, and the network card together; or as long as the cores of a host are busy, where many roles share them. Workers
that hold the tables wait for the slowest of them in each exchange. In process, the cores share the worker's work, and
rows are updated where they are.

An evaluation of q queries among i items is one product, of 2·q·i·d operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossfade.deploy.capacity.traffic import StepTraffic, WorkerLoad
from crossfade.deploy.topology import Role
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec


@dataclass(frozen=True)
class Costs:
    """Core seconds of a step.

    Attributes:
        step: in any case.
        row: of an active row.
        value: of each of its values.
        key: of a key that a worker pulls from and pushes to, or that a server answers one worker for; or of each
            other worker, where they hold the tables.
        merge: of a value of an active row, for each worker but the first; or of one that travels between workers.
        use: of a score.
        use_value: of each of its columns.
    """

    step: float
    row: float
    value: float
    key: float = 0.0
    merge: float = 0.0
    use: float = 0.0
    use_value: float = 0.0

    def seconds(self, rows: float, dim: int, *, keys: float = 0.0, merges: float = 0.0, uses: float = 0.0) -> float:
        """Return the core seconds of a step of ``rows`` rows of ``dim`` columns, which are merged ``merges`` times."""
        of_rows = self.row + dim * (self.value + merges * self.merge)
        return self.step + rows * of_rows + keys * self.key + uses * (self.use + dim * self.use_value)


WORKER = Costs(step=2.00e-3, row=7.9e-9, value=4.94e-9, key=132e-6, use=67.8e-9, use_value=0.779e-9)
SERVER = Costs(step=1.28e-3, row=42.6e-9, value=4.27e-9, key=129e-6, merge=0.352e-9)
SHARDED = Costs(step=1.81e-3, row=83.7e-9, value=1.44e-9, key=234e-6, merge=5.34e-9, use=45.0e-9)
IN_PROCESS = Costs(step=0.91e-3, row=32.8e-9, value=1.44e-9, use=45.0e-9)
POOL_FLOPS = 65e9
"""Floating-point operations per second of a core, in softmax gradients over shared negatives (docs/performance.md)."""
SHARED_CORES = 0.87
"""The part of a host's cores that its roles keep busy where they are the limit: they wait for each other."""


@dataclass(frozen=True)
class WorkerStep:
    """What one worker does in a step.

    ``uses`` are its scores where examples have negatives of their own; ``pool_scores`` those where they share them.
    """

    rows: float
    uses: float
    pool_scores: float = 0.0

    def core_seconds(self, costs: Costs, dim: int, keys: float = 0.0, merges: float = 0.0) -> float:
        """Return its core seconds, with ``keys`` keys and ``merges``, as in ``Costs.seconds``."""
        of_rows = costs.seconds(self.rows, dim, keys=keys, merges=merges, uses=self.uses)
        return of_rows + 6.0 * self.pool_scores * dim / POOL_FLOPS


def worker_steps(
    job: JobConfig, loads: Sequence[WorkerLoad], traffic: StepTraffic, model: ModelSpec
) -> list[WorkerStep]:
    """Return what each worker of ``job`` does in a step."""
    kind = job.negatives.kind
    scored_W: Sequence[float] = [load.examples for load in loads]
    if kind == "all" and job.loss == "softmax":
        scored_W = next((table.rows for table in traffic.tables if table.table == model.query.name), scored_W)
    steps = []
    for load, rows, scored in zip(loads, traffic.rows, scored_W, strict=True):
        if kind == "per_example":
            steps.append(WorkerStep(rows, load.examples + load.negatives))
            continue
        pool = load.negatives + (load.partition_examples if kind in IN_BATCH_KINDS else 0.0)
        steps.append(WorkerStep(rows, 0.0, scored * pool))
    return steps


def step_seconds(
    workers: Sequence[WorkerStep],
    dim: int,
    hosts: Sequence[Sequence[Role]],
    *,
    cores: int,
    keys: int = 0,
    wire_seconds: float = 0.0,
) -> float:
    """Return the seconds of a step of ``workers`` with ``dim`` columns.

    Args:
        workers: what each worker does.
        dim: columns.
        hosts: the roles of each host; none: in process. Without a server, the workers hold the tables.
        cores: virtual CPUs of a host.
        keys: keys of all tables.
        wire_seconds: seconds of the busiest network card.
    """
    servers = sum(role.kind == "server" for roles in hosts for role in roles)
    if not hosts:
        return workers[0].core_seconds(IN_PROCESS, dim) / cores
    by_worker, by_server = role_seconds(workers, dim, servers, keys)
    busiest = max(
        sum(by_worker[role.index] if role.kind == "worker" else by_server for role in roles if role.kind != "scheduler")
        for roles in hosts
    )
    return max(max(by_worker) + by_server + wire_seconds, busiest / (SHARED_CORES * cores))


def evaluation_seconds(queries: int, items: int, dim: int, cores: int) -> float:
    """Return the seconds of an evaluation on ``cores`` cores of all hosts: a product of vectors for each score."""
    return 2.0 * queries * items * dim / (POOL_FLOPS * cores)


def role_seconds(workers: Sequence[WorkerStep], dim: int, servers: int, keys: int) -> tuple[list[float], float]:
    """Return the core seconds of a step of each worker, and of each server; without any, workers hold the tables."""
    count = len(workers)
    if servers == 0:
        return [worker.core_seconds(SHARDED, dim, count - 1, (count - 1) / count) for worker in workers], 0.0
    by_server = SERVER.seconds(
        sum(worker.rows for worker in workers) / servers, dim, keys=keys / servers * count, merges=count - 1
    )
    return [worker.core_seconds(WORKER, dim, keys) for worker in workers], by_server
