"""Memory of the processes of a job, item by item, and its peak.

Each item is counted from the job and its data, or is one of the constants here, which were measured. A process's memory
is its private memory; libraries that processes share are counted once per host. An item is required if the job needs it
in any case. Other items depend on how training goes: memory left over from compiling, what an evaluation gathers, and
rows that change before a checkpoint of them is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crossfade.base.io.folder import Folder
from crossfade.deploy.capacity.plan_inputs import PlanInputs
from crossfade.deploy.capacity.traffic import CountHistogram, WorkerLoad
from crossfade.kvstore.checkpoint.snapshot import COPY_INDEX_BYTES, max_copied_rows
from crossfade.kvstore.mxnet.server_protocol import TableLayout
from crossfade.kvstore.optimizer_spec import state_bytes_per_row
from crossfade.kvstore.sharded import WIRE_VALUE_BYTES
from crossfade.kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.features import content_group_rows, content_width, lists_bytes
from crossfade.trainer.data.parquet import GROUP_ROWS_MAX
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.embeddings.files import GROUP_ROWS
from crossfade.trainer.model.given_vectors import BLOCK_ROWS, JOIN_BYTES
from crossfade.trainer.model.negatives import needs_counts
from crossfade.trainer.model.neighbor_start import BYTES_PER_PAIR, MAX_PAIRS, has_neighbor_start

ACTIVE_COPIES = 8
"""Copies of a step's rows that a worker holds: pulled, gathered, normalized, their gradients and uses, and the push
that waits to be sent. With ``BLOCK_COPIES`` it counts 359 MiB for a worker of 8,192 examples a step on 1.5 million rows
of 64 columns, which held 340 to 374, and 290 for each of two that shared the step, which held 234 to 269."""
LAYER_COPIES = 3
"""Copies of a step's rows that each dense layer holds: its output, the same normalized, and a temporary one."""
SUM_COPIES = 3
"""Copies of the gradients of all dense layers during an all-reduce: one array, Horovod's, and the sum."""
BLOCK_COPIES = 2
"""The shuffle blocks of a partition, and as much again that the allocator keeps of earlier ones. With the decoding
threads it counts 194 MiB for 16 partitions of 131,072 rows, for which a process grew by 212 to 235."""
PACKAGE_BYTES = {"torch": 196 << 20, "mxnet": 88 << 20}
"""What the package of an engine adds to a process: its libraries, and what it holds after its first products."""
_SCORES, _SCORE_ROWS, _SCORE_COPIES = 1 << 20, 256, 10
"""Scores that the engines torch and mxnet compute at a time on a CPU, the rows that they are of at least, and the
arrays of that size that exist at once at most."""
_INTERACTION_BYTES = 8 + 8 + 4
_ROW_BYTES = 8
_HISTORY_BYTES = 8 + 8
"""Where the history of an interaction begins, and how many items it has."""
_TIMESTAMP_BYTES = 8
_ROW_USE_BYTES = 4 * 8
_BATCHES_HELD = 4
"""One computes, two wait, and one is being prepared (``Prefetcher``)."""

MemoryPhase = Literal["always", "start", "steps", "evaluation", "checkpoint"]


@dataclass(frozen=True)
class MemoryItem:
    """Memory that a process holds for one purpose, and during which phase; ``required`` in any case, or at most."""

    what: str
    bytes: int
    phase: MemoryPhase = "always"
    required: bool = True


def worker_items(inputs: PlanInputs, load: WorkerLoad) -> Iterable[MemoryItem]:
    """Yield what a worker with ``load`` holds to train."""
    job, model = inputs.job, inputs.model
    yield MemoryItem(
        "interactions: two shuffle blocks a partition", BLOCK_COPIES * load.block_rows * _interaction_bytes(inputs)
    )
    yield MemoryItem("interactions kept for the next epoch", load.kept_rows * _interaction_bytes(inputs))
    yield MemoryItem("fetching, decoding and shuffling them", _decoding_bytes(inputs, load.max_block_rows))
    yield from _features(inputs)
    yield from _latest_histories(inputs)
    yield from _given_vectors(inputs)
    uses = row_uses(inputs, load)
    yield MemoryItem("batches", _BATCHES_HELD * uses * _ROW_USE_BYTES, "steps")
    rows = min(uses, sum(table.rows for table in model.tables))
    yield MemoryItem("rows of a step", ACTIVE_COPIES * rows * job.model.dim * VALUE_BYTES, "steps")
    yield from _engine(inputs, load)
    yield from _dense_layers(inputs, rows)
    yield from _weights_of_rows(inputs)
    if job.train.save_embeddings == "best":
        piece = min(GROUP_ROWS, max(table.rows for table in model.vectors))
        # Pulled, gathered, as Arrow arrays, and encoded.
        yield MemoryItem("writing embeddings", 4 * piece * job.model.dim * VALUE_BYTES, "evaluation")
    yield from _evaluation(inputs)


def _engine(inputs: PlanInputs, load: WorkerLoad) -> Iterable[MemoryItem]:
    """Yield what the engine adds to that of the CPU, whose tiles stay in the cache. Memory of a GPU is not planned."""
    job, engine = inputs.job, inputs.job.train.engine
    if engine not in PACKAGE_BYTES:
        return
    if engine == "torch" or not job.cluster.servers:  # servers are MXNet's, so their workers have it too
        yield MemoryItem(f"engine {engine}", PACKAGE_BYTES[engine])
    if job.negatives.kind == "per_example":
        scores = int(1 + load.negatives / max(load.examples, 1)) * job.model.dim
    else:
        scores = int(load.negatives + load.partition_examples)
    at_a_time = min(max(_SCORES, _SCORE_ROWS * scores), int(load.examples + 1) * scores)
    yield MemoryItem("scores of a step", _SCORE_COPIES * at_a_time * VALUE_BYTES, "steps", required=False)


def row_uses(inputs: PlanInputs, load: WorkerLoad) -> int:
    """Return how often a step of ``load`` uses a row of a table: an upper bound of its active rows."""
    query, item = (1 + _mean_values(inputs, entity) for entity in (inputs.model.query, inputs.model.item))
    query += len(inputs.model.context) + (inputs.model.history.length if inputs.model.history else 0)
    return int(np.ceil(query * load.examples + item * (load.examples + load.negatives)))


def _interaction_bytes(inputs: PlanInputs) -> int:
    """Return the bytes of an interaction in memory: two rows, a weight, and those of its context and history."""
    history = 0
    if inputs.model.history is not None:
        history = _HISTORY_BYTES + (_ROW_BYTES if inputs.manifest.has_timestamp else 2 * _ROW_BYTES)
    return _INTERACTION_BYTES + _ROW_BYTES * len(inputs.model.context) + history


def _mean_values(inputs: PlanInputs, entity: TableSpec) -> float:
    """Return how many feature values of its tower a row of ``entity`` has on average."""
    features = [table.name for tower in inputs.model.towers if tower.entity == entity for table in tower.features]
    return sum(inputs.manifest.features[entity.name][name].pairs for name in features) / entity.rows


def _features(inputs: PlanInputs) -> Iterable[MemoryItem]:
    """Yield what a worker holds of the feature values of all rows."""
    for tower in inputs.model.towers:
        entity, rows = tower.entity.name, tower.entity.rows
        for table in tower.features:
            pairs = inputs.manifest.features[entity][table.name].pairs
            yield MemoryItem(f"{table.name} of each {entity}", lists_bytes(rows, pairs, table.rows))
        if tower.content:
            width = content_width([inputs.manifest.content[entity][name] for name in tower.content])
            group = content_group_rows(min(rows, GROUP_ROWS_MAX), width) * width * VALUE_BYTES
            yield MemoryItem(f"content of each {entity}", rows * (width * VALUE_BYTES + 1))
            yield MemoryItem(f"reading the content of each {entity}", 4 * group, "start")
        yield MemoryItem(f"which {entity} is warm", rows)
        # Counts of the vocabulary, or how many values each row has.
        yield MemoryItem(f"reading the features of each {entity}", 3 * 8 * rows, "start")


def _latest_histories(inputs: PlanInputs) -> Iterable[MemoryItem]:
    """Yield what a worker holds of the history of each query after train, of which it reads query, item and time."""
    history, query = inputs.model.history, inputs.model.query
    if history is not None:
        items = min(inputs.manifest.splits["train"].rows + inputs.earlier_rows, query.rows * history.length)
        yield MemoryItem(f"latest history of each {query.name}", _ROW_BYTES * (items + query.rows))
        yield MemoryItem(f"finding the latest history of each {query.name}", 9 * _ROW_BYTES * items, "start")


def _given_vectors(inputs: PlanInputs) -> Iterable[MemoryItem]:
    """Yield what the first worker holds while it joins as many given vectors with a table as rows."""
    for table in (table for table in inputs.model.tables if table.name in inputs.job.model.start):
        block = min(BLOCK_ROWS, table.rows) * table.dim * (VALUE_BYTES + 2 * 8)
        yield MemoryItem(f"joining the given vectors of {table.name}", JOIN_BYTES * table.rows + block, "start")
    if inputs.job.checkpoint.warm_start_from is not None and has_neighbor_start(inputs.model):
        pairs = BYTES_PER_PAIR * min(2 * MAX_PAIRS, inputs.selection.rows)
        yield MemoryItem("start of new rows", pairs, "start", required=False)


def _weights_of_rows(inputs: PlanInputs) -> Iterable[MemoryItem]:
    """Yield what sampling by popularity and weighting by frequency hold for each row."""
    job, model = inputs.job, inputs.model
    if needs_counts(job.negatives, model.has_item_features):
        # NegativeSampler keeps float64 sums, from five arrays of a number per item.
        yield MemoryItem("popularity of items", 8 * model.item.rows)
        yield MemoryItem("computing the popularity of items", 40 * model.item.rows, "start")
    powers = ((job.train.query_frequency_power, model.query), (job.train.item_frequency_power, model.item))
    for table in (table for power, table in powers if power):
        yield MemoryItem(f"frequency weights of {table.name}", 4 * table.rows)
        yield MemoryItem(f"computing frequency weights of {table.name}", 40 * table.rows, "start")


def _dense_layers(inputs: PlanInputs, rows: int) -> Iterable[MemoryItem]:
    """Yield what a worker holds of dense layers: weights, gradients, state, and activations of ``rows``."""
    kind = inputs.job.optimizer.kind
    for spec in inputs.model.dense:
        shapes = spec.shapes().values()
        state = sum(outputs * state_bytes_per_row(kind, columns) for outputs, columns in shapes)
        yield MemoryItem(f"dense layers of {spec.entity}: {spec.parameters:,} weights", VALUE_BYTES * spec.parameters)
        if state:
            yield MemoryItem(f"dense layers of {spec.entity}: state of {kind}", state)
        yield MemoryItem(f"dense layers of {spec.entity}: gradients", VALUE_BYTES * spec.parameters, "steps")
        activations = LAYER_COPIES * sum(spec.widths[1:]) * VALUE_BYTES
        if spec.reads_content:
            activations += _BATCHES_HELD * spec.widths[0] * VALUE_BYTES
        yield MemoryItem(f"rows of a step in the dense layers of {spec.entity}", rows * activations, "steps")
        if inputs.job.train.save_embeddings == "best":
            piece = min(GROUP_ROWS, inputs.manifest.entities[spec.side].rows)
            yield MemoryItem(f"writing outputs of the dense layers of {spec.entity}", piece * activations, "evaluation")
    if inputs.job.all_reduces_dense:
        parameters = sum(spec.parameters for spec in inputs.model.dense)
        yield MemoryItem("all-reduce of dense gradients", SUM_COPIES * VALUE_BYTES * parameters, "steps")


def _decoding_bytes(inputs: PlanInputs, block_rows: int) -> int:
    """Return what reader threads hold: a row group as fetched and as decoded, and a shuffle block being assembled."""
    files = {group.file.path: group.file for group in inputs.selection.groups}.values()
    group_rows = max(max(file.row_groups) for file in files)
    interaction = _interaction_bytes(inputs)
    columns = interaction if inputs.selection.row_counts is None else interaction + _TIMESTAMP_BYTES
    order = 8
    return inputs.job.data.reader_threads * (2 * group_rows * columns + block_rows * (interaction + order))


def _evaluation(inputs: PlanInputs) -> Iterable[MemoryItem]:
    """Yield what a worker gathers to rank items of valid during training, or of test at the end if that is more."""
    splits: tuple[SplitName, ...] = ("valid", "test")
    found = [list(_evaluation_on(inputs, split)) for split in splits]
    yield from max(found, key=lambda items: sum(item.bytes for item in items))


def _evaluation_on(inputs: PlanInputs, split: SplitName) -> Iterable[MemoryItem]:
    """Yield what it gathers of ``split``, at most: it depends on which queries have held-out items."""
    job, splits = inputs.job, inputs.manifest.splits
    if inputs.counts is None or split not in splits or not splits[split].rows:
        return
    query = inputs.model.query
    queries = min(splits[split].rows, query.rows)
    excluded = sum(
        _max_interactions(inputs.counts[query.name], queries, splits["train"].rows)
        if name == "train"
        else splits[name].rows
        for name in set(job.evaluate.excluded_from(split))
        if name in splits
    )
    if job.evaluate.excluded_from(split):
        excluded += inputs.earlier_rows
    has_combinations = _has_combinations(inputs)
    evaluated, held_out = evaluated_queries(inputs, split), splits[split].rows
    share = evaluated / (held_out if has_combinations else queries)
    pairs = math.ceil(share * (excluded + held_out) / job.cluster.workers)
    # A query and an item are one int64 (with context, one each); concatenating, sorting and comparing make copies. Each
    # of a query's best items takes 12 bytes.
    yield MemoryItem("held-out and excluded items", 8 * pairs, required=False)
    columns = len(inputs.manifest.context) + 3 if has_combinations else 1
    gathered = 32 * max(pairs, math.ceil(share * columns * held_out))
    # A sample is drawn before by a hash of each query, which is sorted.
    gathered = max(gathered, 24 * held_out if share < 1 else 0)
    yield MemoryItem("gathering held-out and excluded items", gathered, "start", required=False)
    local_queries = -(-evaluated // job.cluster.workers)
    ranking = local_queries * (2 * job.model.dim * VALUE_BYTES + max(job.evaluate.k) * 13)
    yield MemoryItem("queries and their rankings", ranking, "evaluation", required=False)


def evaluated_queries(inputs: PlanInputs, split: SplitName) -> int:
    """Return how many queries an evaluation on ``split`` by ``crossfade train`` has, at most."""
    splits = inputs.manifest.splits
    if split not in splits:
        return 0
    rows = splits[split].rows
    queries = rows if _has_combinations(inputs) else min(rows, inputs.model.query.rows)
    size = inputs.job.evaluate.queries_of(split, in_training=True)
    return queries if size is None else min(queries, size)


def _has_combinations(inputs: PlanInputs) -> bool:
    """Return whether a query is evaluated in each of its contexts, or at each moment."""
    return bool(inputs.manifest.context) or inputs.job.evaluate.by == "moment"


def _max_interactions(counts: CountHistogram, queries: int, total: int) -> int:
    """Return how many interactions of train ``queries`` rows have at most: those of the most active."""
    if not counts.known:
        return total
    scaled_K = counts.count_K[::-1] * counts.factor(total)
    rows_K = counts.rows_K[::-1]
    selected_K = np.clip(queries - (np.cumsum(rows_K) - rows_K), 0, rows_K)
    return int(np.ceil(scaled_K @ selected_K))


_MIB = 2**20

# Private memory (``uss``) of idle processes of a job of a few hundred rows, on Linux x86-64 with Python 3.11, whose
# kernels were compiled before.
SCHEDULER_BYTES = 87 * _MIB
SERVER_BYTES = 104 * _MIB
WORKER_BYTES = 121 * _MIB
RANK_BYTES = 66 * _MIB
"""A worker that holds a shard of the tables, and loads no MXNet."""
COMMAND_BYTES = 60 * _MIB
"""``crossfade train`` itself, where it starts and watches the roles."""
SHARED_LIBRARIES_BYTES, RANK_LIBRARIES_BYTES = 195 * _MIB, 131 * _MIB
"""Resident libraries that a host's processes share: the resident size of a worker (``rss``) less its private memory.
The second is of workers without MXNet."""
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
POSITION_COPIES_BYTES = 20
"""Of a row that a worker uses, or updates for another: its number, its place and position in its shard, and copies."""
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
    """Return all processes: one, or the command and the workers, and the scheduler and servers if it has servers."""
    cluster = inputs.job.cluster
    if not cluster.is_distributed:
        return [_in_process(inputs, loads)]
    command = ProcessPlan("train", (MemoryItem("process", COMMAND_BYTES),))
    if cluster.workers_hold_tables:
        return [command, *(_rank(inputs, loads, rank) for rank in range(cluster.workers))]
    server = _server(inputs, loads, layouts)
    return [
        command,
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
    tables = _tables(inputs, shards=1)
    return ProcessPlan("process", (MemoryItem("process", IN_PROCESS_BYTES), *tables, *worker_items(inputs, loads[0])))


def _tables(inputs: PlanInputs, shards: int) -> Iterable[MemoryItem]:
    """Yield what a process that trains holds of the tables, one of ``shards`` shards of each, and to save them."""
    job = inputs.job
    local_rows = {table.name: -(-table.rows // shards) for table in inputs.model.tables}
    for table in inputs.model.tables:
        rows = local_rows[table.name]
        yield MemoryItem(f"{table.name}: weights of {rows:,} rows", rows * table.dim * VALUE_BYTES)
        if state := rows * state_bytes_per_row(job.optimizer.kind, table.dim):
            yield MemoryItem(f"{table.name}: state of {job.optimizer.kind}", state)
    yield from _checkpoint(job, local_rows, shards=1)


def _rank(inputs: PlanInputs, loads: Sequence[WorkerLoad], rank: int) -> ProcessPlan:
    """Return a worker that holds a shard of each table."""
    workers = inputs.job.cluster.workers
    all_rows = sum(table.rows for table in inputs.model.tables)
    rows_W = [min(row_uses(inputs, load), all_rows) for load in loads]
    served_rows = sum(rows_W) // workers
    return ProcessPlan(
        f"worker-{rank}",
        (
            *_process("worker", RANK_BYTES),
            *_tables(inputs, shards=workers),
            *_messages(inputs, max(rows_W[rank], served_rows)),
            MemoryItem("positions of rows", POSITION_COPIES_BYTES * (rows_W[rank] + served_rows), "steps"),
            *worker_items(inputs, loads[rank]),
        ),
    )


def _messages(inputs: PlanInputs, step_rows: int) -> Iterable[MemoryItem]:
    """Yield what a worker holds of messages with rows, of which a step has up to ``step_rows`` in each direction."""
    job, workers = inputs.job, inputs.job.cluster.workers
    row_bytes = job.model.dim * VALUE_BYTES
    wire_bytes = job.model.dim * WIRE_VALUE_BYTES[job.cluster.wire_dtype]
    exact_rows = 0  # which embeddings have, unrounded
    if job.train.save_embeddings == "best":
        exact_rows = min(GROUP_ROWS, max(table.rows for table in inputs.model.vectors))
    local = min(workers, -(-workers // job.cluster.host_count))
    remote = workers - local
    step_bytes = step_rows * ((local - 1) * row_bytes + remote * wire_bytes)
    # In both memories for messages, which alternate. On one host, receivers read them there.
    sent = 2 * max(step_bytes, exact_rows * (workers - 1) * row_bytes) // workers
    yield MemoryItem("rows sent to other workers", sent)
    received = max(step_rows * wire_bytes, exact_rows * row_bytes)
    if wire_bytes < row_bytes:
        received += step_rows * row_bytes  # the rounded rows once more, as float32
    if remote:
        yield MemoryItem("rows received from other hosts", received * remote // workers)


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
