"""Memory of the processes of a job, item by item, and its peak.

Each item is counted from the job and its data, or is one of the constants here and in ``worker_memory``, which were
measured. A process's memory is its private memory; libraries that processes share are counted once per host. An item is
required if the job needs it in any case. Other items depend on how training goes: memory left over from compiling,
what an evaluation gathers, and rows that change before a checkpoint of them is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crossfade.base.io.folder import Folder
from crossfade.deploy.capacity.inputs import PlanInputs
from crossfade.deploy.capacity.traffic import WorkerLoad
from crossfade.deploy.capacity.worker_memory import MemoryItem, MemoryPhase, row_uses, worker_items
from crossfade.kvstore.checkpoint.snapshot import COPY_INDEX_BYTES, max_copied_rows
from crossfade.kvstore.mxnet.protocol import TableLayout
from crossfade.kvstore.optimizer_spec import state_bytes_per_row
from crossfade.kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec
from crossfade.trainer.config.schema import JobConfig

_MIB = 2**20

# Private memory (``uss``) of idle processes of a job of a few hundred rows, on Linux x86-64 with Python 3.11, whose
# kernels were compiled before.
SCHEDULER_BYTES = 87 * _MIB
SERVER_BYTES = 104 * _MIB
WORKER_BYTES = 121 * _MIB
COMMAND_BYTES = 60 * _MIB
"""``crossfade train`` itself, where it starts and watches the roles."""
SHARED_LIBRARIES_BYTES = 195 * _MIB
"""Resident libraries that a host's processes share: the resident size of a worker (``rss``) less its private memory."""
FIRST_RUN_BYTES = {"scheduler": 36 * _MIB, "server": 54 * _MIB, "worker": 99 * _MIB}
"""Memory left over in the first run after an installation, which compiles modules and kernels."""
IN_PROCESS_BYTES = 211 * _MIB
"""A run without servers, libraries included (``rss``)."""
WRITER_BYTES = 24 * _MIB
"""The process that writes a server's part of a checkpoint: Python with numpy and pyarrow."""
UPLOAD_BYTES = 12 * _MIB
"""Memory of that process for each file that it uploads to S3 at a time; 64 files took 822 MB."""
FILES_PER_SHARD = 2
"""The weights and, for most optimizers, one array of state, which are uploaded at the same time."""
SERVED_COPIES = 3
"""Copies of a step's rows that a server holds: as received, as merged, and as answered."""


@dataclass(frozen=True)
class ProcessPlan:
    """One process of the job and its memory."""

    name: str
    parts: tuple[MemoryItem, ...]

    @property
    def required_bytes(self) -> int:
        """The peak of the required items."""
        return peak_bytes([part for part in self.parts if part.required])

    @property
    def peak_bytes(self) -> int:
        """The peak of all items."""
        return peak_bytes(self.parts)


def peak_bytes(items: Iterable[MemoryItem]) -> int:
    """Return the most that is held at one time.

    Checkpoints are written during steps and evaluations, not at the start.
    """
    by_phase: dict[MemoryPhase, int] = dict.fromkeys(("always", "start", "steps", "evaluation", "checkpoint"), 0)
    for item in items:
        by_phase[item.phase] += item.bytes
    busy = max(by_phase["steps"], by_phase["evaluation"]) + by_phase["checkpoint"]
    return by_phase["always"] + max(by_phase["start"], busy)


def table_bytes(job: JobConfig, table: TableSpec) -> int:
    """Return the bytes of the weights of ``table`` and of its optimizer state."""
    return table.bytes + table.rows * state_bytes_per_row(job.optimizer.kind, table.dim)


def plan_processes(
    inputs: PlanInputs, loads: Sequence[WorkerLoad], layouts: Sequence[TableLayout]
) -> list[ProcessPlan]:
    """Return all processes of the job: one without servers, else the command, the scheduler, servers and workers."""
    cluster = inputs.job.cluster
    if not cluster.servers:
        return [_in_process(inputs, loads)]
    server = _server(inputs, loads, layouts)
    return [
        ProcessPlan("train", (MemoryItem("process", COMMAND_BYTES),)),
        ProcessPlan("scheduler", _process("scheduler", SCHEDULER_BYTES)),
        *(ProcessPlan(f"server-{index}", server) for index in range(cluster.servers)),
        *(
            ProcessPlan(f"worker-{rank}", (*_process("worker", WORKER_BYTES), *worker_items(inputs, loads[rank])))
            for rank in range(cluster.workers)
        ),
    ]


def _process(kind: str, idle_bytes: int) -> tuple[MemoryItem, ...]:
    compiling = MemoryItem("compiling, in the first run", FIRST_RUN_BYTES[kind], required=False)
    return MemoryItem("process", idle_bytes), compiling


def _in_process(inputs: PlanInputs, loads: Sequence[WorkerLoad]) -> ProcessPlan:
    job = inputs.job
    tables = []
    for table in inputs.model.tables:
        tables.append(MemoryItem(f"{table.name}: weights of {table.rows:,} rows", table.bytes))
        if state := table_bytes(job, table) - table.bytes:
            tables.append(MemoryItem(f"{table.name}: state of {job.optimizer.kind}", state))
    return ProcessPlan(
        "process",
        (
            MemoryItem("process", IN_PROCESS_BYTES),
            *tables,
            *worker_items(inputs, loads[0]),
            *_checkpoint(job, {table.name: table.rows for table in inputs.model.tables}, shards=1),
        ),
    )


def _server(inputs: PlanInputs, loads: Sequence[WorkerLoad], layouts: Sequence[TableLayout]) -> tuple[MemoryItem, ...]:
    job = inputs.job
    local_rows = {layout.table.name: layout.keys_per_server * layout.shard_rows for layout in layouts}
    dim = job.model.dim
    row_bytes = ROW_ID_BYTES + dim * VALUE_BYTES
    state = state_bytes_per_row(job.optimizer.kind, dim)
    all_rows = sum(local_rows.values()) * job.cluster.servers
    served_rows = sum(min(row_uses(inputs, load), all_rows) for load in loads)
    tables = [
        MemoryItem(f"{name}: weights of {rows:,} rows and their numbers", rows * row_bytes)
        for name, rows in local_rows.items()
    ]
    if state:
        tables += [
            MemoryItem(f"{name}: state of {job.optimizer.kind}", rows * state) for name, rows in local_rows.items()
        ]
    return (
        *_process("server", SERVER_BYTES),
        *tables,
        MemoryItem("receiving the keys", _receiving_bytes(layouts, row_bytes, state), "start"),
        MemoryItem("rows of a step", SERVED_COPIES * served_rows * row_bytes // job.cluster.servers, "steps"),
        *_checkpoint(job, local_rows, max(layout.keys_per_server for layout in layouts)),
    )


def _receiving_bytes(layouts: Sequence[TableLayout], row_bytes: int, state: int) -> int:
    """Return what a server needs at the start beyond its tables: the message of a key while the store copies it.

    Keys arrive one by one, table by table, so the largest may arrive before most others.
    """
    held = peak = 0
    for layout in layouts:
        held += layout.keys_per_server * layout.shard_rows * (row_bytes + state)
        peak = max(peak, held + layout.shard_rows * (row_bytes + ROW_ID_BYTES))
    return peak - held


def _checkpoint(job: JobConfig, local_rows: dict[str, int], shards: int) -> Iterable[MemoryItem]:
    """Yield what a process with ``local_rows`` of each table, in ``shards`` shards, needs while they are written."""
    row_bytes = job.model.dim * VALUE_BYTES + state_bytes_per_row(job.optimizer.kind, job.model.dim)
    on_s3 = job.checkpoint.path is not None and Folder(job.checkpoint.path).on_s3
    uploads = shards * FILES_PER_SHARD if on_s3 else 0
    yield MemoryItem("the writer of a checkpoint", WRITER_BYTES + uploads * UPLOAD_BYTES, "checkpoint")
    yield MemoryItem("index of changed rows", COPY_INDEX_BYTES * sum(local_rows.values()), "checkpoint")
    if job.checkpoint.interval_seconds or job.checkpoint.interval_steps:
        copied = sum(max_copied_rows(rows, row_bytes) for rows in local_rows.values()) * row_bytes
        yield MemoryItem("rows that change before they are written", copied, "checkpoint", required=False)
