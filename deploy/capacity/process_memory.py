"""Memory of the processes of a job, item by item, and its peak.

Each item is counted from the job and its data, or is one of the constants here, which were measured. A process's memory
is its private memory; libraries that processes share are counted once per host. An item is required if the job needs it
in any case. Other items depend on how training goes: what an evaluation gathers, and rows that
change before a checkpoint of them is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from crossfade.base.io.folder import Folder
from crossfade.deploy.capacity.plan_inputs import PlanInputs
from crossfade.kvstore.checkpoint.snapshot import COPY_INDEX_BYTES, max_copied_rows
from crossfade.kvstore.mxnet.server_protocol import make_layout
from crossfade.kvstore.optimizer_spec import state_bytes_per_row
from crossfade.kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.features import content_width, lists_bytes
from crossfade.trainer.data.schedule import MAX_KEPT_BYTES
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.embeddings.files import GROUP_ROWS
from crossfade.trainer.model.negatives import needs_counts
from crossfade.trainer.model.spectral_start import start_bytes

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
IN_PROCESS_BYTES = 211 * _MIB
"""A run without servers, libraries included (``rss``)."""
SHARED_LIBRARIES_BYTES, RANK_LIBRARIES_BYTES = 195 * _MIB, 131 * _MIB
"""Resident libraries that a host's processes share: the resident size of a worker (``rss``) less its private memory.
The second is of workers without MXNet."""
PACKAGE_BYTES = {"torch": 196 * _MIB, "mxnet": 88 * _MIB}
"""What the package of an engine adds to a process: its libraries, and what it holds after its first products."""
PIECE_BYTES = 8 * _MIB
"""The pieces of a checkpoint that are copied and written at a time."""
UPLOAD_BYTES, FILES_PER_SHARD = 17 * _MIB, 2
"""Memory for each file that is uploaded to S3 at a time: a part of the upload. A shard has the weights and, for most
optimizers, one array of state."""

ACTIVE_COPIES = 8
"""Copies of a step's rows that a worker holds: pulled, gathered, normalized, their gradients and uses, and the push
that waits to be sent. With ``BLOCK_COPIES`` it counts 359 MiB for a worker of 8,192 examples a step on 1.5 million rows
of 64 columns, which held 340 to 374, and 290 for each of two that shared the step, which held 234 to 269."""
LAYER_COPIES = 3
"""Copies of a step's rows that each dense layer holds: its output, the same normalized, and a temporary one."""
DENSE_COPIES = 5
"""Copies of the weights of dense layers: weights, gradients, and three of these while workers add them up."""
SERVED_COPIES = 3
"""Copies of a step's rows that a server holds: as received, as merged, and as answered."""
BLOCK_COPIES = 2
"""The shuffle blocks of a partition, and as much again that the allocator keeps of earlier ones. With the decoding
threads it counts 194 MiB for 16 partitions of 131,072 rows, for which a process grew by 212 to 235."""
_ROW_BYTES, _WEIGHT_BYTES, _TIMESTAMP_BYTES = 8, 4, 8
_ROW_USE_BYTES, _BATCHES_HELD = 4 * 8, 4
"""One computes, two wait, and one is being prepared (``Prefetcher``)."""

MemoryPhase = Literal["always", "start", "steps", "evaluation", "checkpoint"]


@dataclass(frozen=True)
class MemoryItem:
    """Memory that a process holds for one purpose, and during which phase; ``required`` in any case, or at most."""

    what: str
    bytes: int
    phase: MemoryPhase = "always"
    required: bool = True


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


def plan_processes(inputs: PlanInputs) -> list[ProcessPlan]:
    """Return all processes: one, or the command and the workers, and the scheduler and servers if it has servers.

    Each worker counts as the one with the most partitions.
    """
    cluster, worker = inputs.job.cluster, tuple(_worker(inputs))
    if not cluster.is_distributed:
        process = MemoryItem("process", IN_PROCESS_BYTES), *_tables(inputs), *worker, *_spectral_start(inputs)
        return [ProcessPlan("process", process)]
    command = ProcessPlan("train", (MemoryItem("process", COMMAND_BYTES),))
    if cluster.workers_hold_tables:
        rank = MemoryItem("process", RANK_BYTES), *_tables(inputs), *_messages(inputs), *worker
        return [command, *_workers(inputs, rank)]
    server = MemoryItem("process", SERVER_BYTES), *_server(inputs)
    worker = MemoryItem("process", WORKER_BYTES), *worker
    return [
        command,
        ProcessPlan("scheduler", (MemoryItem("process", SCHEDULER_BYTES),)),
        *(ProcessPlan(f"server-{number}", server) for number in range(cluster.servers)),
        *_workers(inputs, worker),
    ]


def _workers(inputs: PlanInputs, parts: tuple[MemoryItem, ...]) -> Iterator[ProcessPlan]:
    for number in range(inputs.job.cluster.workers):
        of_first = _spectral_start(inputs) if number == 0 else ()
        yield ProcessPlan(f"worker-{number}", (*parts, *of_first))


def _spectral_start(inputs: PlanInputs) -> Iterator[MemoryItem]:
    """Yield what the process that computes singular vectors holds of them, if any does."""
    job = inputs.job
    if job.model.initialization == "spectral" and job.checkpoint.warm_start_from is None:
        held = start_bytes(inputs.selection.rows, inputs.model.item.rows, job.model.dim)
        yield MemoryItem("spectral start", held, "start")


def _tables(inputs: PlanInputs) -> Iterator[MemoryItem]:
    """Yield what a process that trains holds of the tables: all of each, or its shard."""
    workers = inputs.job.cluster.workers
    local_rows = {table.name: -(-table.rows // workers) for table in inputs.model.tables}
    yield from _table_rows(inputs.job, local_rows, inputs.job.model.dim * VALUE_BYTES, shards=1)


def _server(inputs: PlanInputs) -> Iterator[MemoryItem]:
    """Yield what a server holds: its rows with their numbers, and messages."""
    cluster, dim = inputs.job.cluster, inputs.job.model.dim
    layouts = make_layout(inputs.model.tables, cluster.servers, cluster.max_key_bytes)
    local_rows = {layout.table.name: layout.keys_per_server * layout.shard_rows for layout in layouts}
    row_bytes, state_bytes = ROW_ID_BYTES + dim * VALUE_BYTES, state_bytes_per_row(inputs.job.optimizer.kind, dim)
    yield from _table_rows(inputs.job, local_rows, row_bytes, max(layout.keys_per_server for layout in layouts))
    # The message of a key while the store copies it. Keys arrive one by one, table by table.
    held = peak = 0
    for layout in layouts:
        held += local_rows[layout.table.name] * (row_bytes + state_bytes)
        peak = max(peak, held + layout.shard_rows * (row_bytes + ROW_ID_BYTES))
    yield MemoryItem("receiving a key", peak - held, "start")
    served_rows = cluster.workers * _step_rows(inputs) // cluster.servers
    yield MemoryItem("rows of a step", SERVED_COPIES * served_rows * row_bytes, "steps")


def _table_rows(job: JobConfig, local_rows: dict[str, int], row_bytes: int, shards: int) -> Iterator[MemoryItem]:
    """Yield what a process with ``local_rows`` of each table, in ``shards`` shards, holds of them, and to save them."""
    state_bytes = state_bytes_per_row(job.optimizer.kind, job.model.dim)
    for name, rows in local_rows.items():
        yield MemoryItem(f"{name}: weights of {rows:,} rows", rows * row_bytes)
        if state_bytes:
            yield MemoryItem(f"{name}: state of {job.optimizer.kind}", rows * state_bytes)
    on_s3 = job.checkpoint.path is not None and Folder(job.checkpoint.path).on_s3
    uploads = shards * FILES_PER_SHARD if on_s3 else 0
    yield MemoryItem("writing a checkpoint", PIECE_BYTES + uploads * UPLOAD_BYTES, "checkpoint")
    yield MemoryItem("index of changed rows", COPY_INDEX_BYTES * sum(local_rows.values()), "checkpoint")
    if job.checkpoint.interval_seconds or job.checkpoint.interval_steps:
        saved_bytes = job.model.dim * VALUE_BYTES + state_bytes
        copied = sum(max_copied_rows(rows, saved_bytes) for rows in local_rows.values()) * saved_bytes
        yield MemoryItem("rows that change before they are written", copied, "checkpoint", required=False)


def _messages(inputs: PlanInputs) -> Iterator[MemoryItem]:
    """Yield what a worker that holds a shard of the tables needs to exchange rows with the others."""
    job, workers = inputs.job, inputs.job.cluster.workers
    # Embeddings are exchanged a piece at a time.
    embedding_rows = _embedding_rows(inputs) if job.train.save_embeddings == "best" else 0
    rows, row_bytes = max(_step_rows(inputs), embedding_rows), job.model.dim * VALUE_BYTES
    remote = workers - min(workers, -(-workers // job.cluster.host_count))
    # Rows are in two memories for messages, which alternate. Receivers read them there on one host, and have copies on
    # others.
    copies = (2 * (workers - 1) + remote) / workers
    yield MemoryItem("rows sent to and received from other workers", int(copies * rows * row_bytes))


def _embedding_rows(inputs: PlanInputs) -> int:
    """Return how many rows of embeddings are written at a time."""
    return min(GROUP_ROWS, max(table.rows for table in inputs.model.vectors))


def _step_rows(inputs: PlanInputs) -> int:
    """Return how many rows of all tables a step of a worker uses at most."""
    return min(_row_uses(inputs), sum(table.rows for table in inputs.model.tables))


def _row_uses(inputs: PlanInputs) -> int:
    """Return how often a step of the worker with the most partitions uses a row of a table."""
    model, negatives, rows = inputs.model, inputs.job.negatives, inputs.selection.rows
    partitions, mine = _partitions(inputs)
    examples = rows / -(-rows // inputs.job.train.batch_size) * mine / partitions
    drawn = {"in_batch": 0, "all": model.item.rows, "per_example": negatives.count * examples}
    query, item = (1 + _mean_values(inputs, entity) for entity in (model.query, model.item))
    query += len(model.context) + (model.history.length if model.history else 0)
    return math.ceil(query * examples + item * (examples + drawn.get(negatives.kind, negatives.count)))


def _partitions(inputs: PlanInputs) -> tuple[int, int]:
    """Return the number of partitions of the interactions, and how many of them one worker reads at most."""
    partitions = min(inputs.job.data.partitions, len(inputs.selection.groups))
    return partitions, -(-partitions // inputs.job.cluster.workers)


def _mean_values(inputs: PlanInputs, entity: TableSpec) -> float:
    """Return how many feature values of its tower a row of ``entity`` has on average."""
    features = [table.name for tower in inputs.model.towers if tower.entity == entity for table in tower.features]
    return sum(inputs.manifest.features[entity.name][name].pairs for name in features) / entity.rows


def _worker(inputs: PlanInputs) -> Iterator[MemoryItem]:
    """Yield what a worker holds to train, tables aside."""
    job, rows = inputs.job, _step_rows(inputs)
    yield from _interactions(inputs)
    yield from _features(inputs)
    yield from _rows_at_start(inputs)
    yield MemoryItem("batches", _BATCHES_HELD * _row_uses(inputs) * _ROW_USE_BYTES, "steps")
    yield MemoryItem("rows of a step", ACTIVE_COPIES * rows * job.model.dim * VALUE_BYTES, "steps")
    # Servers are MXNet's, so their workers have its package anyway.
    if job.train.engine in PACKAGE_BYTES and not (job.train.engine == "mxnet" and job.cluster.servers):
        yield MemoryItem(f"engine {job.train.engine}", PACKAGE_BYTES[job.train.engine])
    yield from _dense_layers(inputs, rows)
    if job.train.save_embeddings == "best":
        # Pulled, gathered, as Arrow arrays, and encoded.
        written = 4 * _embedding_rows(inputs) * job.model.dim * VALUE_BYTES
        yield MemoryItem("writing embeddings", written, "evaluation")
    splits: tuple[SplitName, ...] = ("valid", "test")
    evaluations = [list(_evaluation(inputs, split)) for split in splits]
    yield from max(evaluations, key=lambda items: sum(item.bytes for item in items))


def _interactions(inputs: PlanInputs) -> Iterator[MemoryItem]:
    """Yield what a worker holds of interactions: two rows, a weight, and the rows of their context and history.

    It holds the current and the next shuffle block of each of its partitions, which consist of whole row groups, and
    keeps row groups for the following epochs.
    """
    data, selection = inputs.job.data, inputs.selection
    row_bytes = (2 + len(inputs.model.context)) * _ROW_BYTES + _WEIGHT_BYTES
    if inputs.model.history is not None:  # where it begins, how many items it has, and its part of a sequence
        row_bytes += (3 if inputs.manifest.has_timestamp else 4) * _ROW_BYTES
    partitions, mine = _partitions(inputs)
    largest, of_partition = max(group.rows for group in selection.groups), -(-selection.rows // partitions)
    block_rows = min(-(-data.shuffle_block_rows // largest) * largest, of_partition)
    yield MemoryItem("interactions: two shuffle blocks a partition", BLOCK_COPIES * 2 * mine * block_rows * row_bytes)
    kept = min(MAX_KEPT_BYTES, selection.rows * row_bytes)
    yield MemoryItem("interactions kept for the next epochs", kept)
    # In each reading thread: a row group as fetched and as decoded, and a shuffle block with its order.
    group_rows = max(group.file.row_groups[group.index] for group in selection.groups)
    columns = row_bytes + _TIMESTAMP_BYTES if selection.has_time_range else row_bytes
    decoding = 2 * group_rows * columns + block_rows * (row_bytes + _ROW_BYTES)
    yield MemoryItem("fetching, decoding and shuffling them", data.reader_threads * decoding)


def _features(inputs: PlanInputs) -> Iterator[MemoryItem]:
    """Yield what a worker holds of the features, content, and history of all rows."""
    for tower in inputs.model.towers:
        entity, rows = tower.entity.name, tower.entity.rows
        for table in tower.features:
            pairs = inputs.manifest.features[entity][table.name].pairs
            yield MemoryItem(f"{table.name} of each {entity}", lists_bytes(rows, pairs, table.rows))
        if tower.content:
            width = content_width([inputs.manifest.content[entity][name] for name in tower.content])
            yield MemoryItem(f"content of each {entity}", rows * (width * VALUE_BYTES + 1))
        # Counts of the vocabulary, or how many values each row has; then whether it is warm.
        yield MemoryItem(f"reading the features of each {entity}", (3 * _ROW_BYTES + 1) * rows, "start")
    history, query = inputs.model.history, inputs.model.query
    if history is not None:
        items = min(inputs.manifest.splits["train"].rows + inputs.earlier_rows, query.rows * history.length)
        yield MemoryItem(f"latest history of each {query.name}", _ROW_BYTES * (items + query.rows))
        yield MemoryItem(f"finding the latest history of each {query.name}", 9 * _ROW_BYTES * items, "start")


def _rows_at_start(inputs: PlanInputs) -> Iterator[MemoryItem]:
    """Yield what the start of new rows, popularity, and weights by frequency take."""
    job, model = inputs.job, inputs.model
    powers = (job.train.query_frequency_power, model.query), (job.train.item_frequency_power, model.item)
    weights = [("frequency weights", table, 4) for power, table in powers if power]
    if needs_counts(job.negatives, model.has_item_features):
        weights.append(("popularity", model.item, 8))
    for what, table, row_bytes in weights:
        yield MemoryItem(f"{what} of {table.name}", row_bytes * table.rows)
        yield MemoryItem(f"computing the {what} of {table.name}", 40 * table.rows, "start")


def _dense_layers(inputs: PlanInputs, rows: int) -> Iterator[MemoryItem]:
    """Yield what a worker holds of dense layers, and of their activations for ``rows`` rows."""
    kind = inputs.job.optimizer.kind
    for spec in inputs.model.dense:
        state = sum(outputs * state_bytes_per_row(kind, columns) for outputs, columns in spec.shapes().values())
        layers = DENSE_COPIES * VALUE_BYTES * spec.parameters + state
        yield MemoryItem(f"dense layers of {spec.entity}: {spec.parameters:,} weights", layers)
        activations = LAYER_COPIES * sum(spec.widths[1:]) * VALUE_BYTES
        if spec.reads_content:
            activations += _BATCHES_HELD * spec.widths[0] * VALUE_BYTES
        yield MemoryItem(f"rows of a step in the dense layers of {spec.entity}", rows * activations, "steps")
        if inputs.job.train.save_embeddings == "best":
            written = min(GROUP_ROWS, inputs.manifest.entities[spec.side].rows) * activations
            yield MemoryItem(f"writing outputs of the dense layers of {spec.entity}", written, "evaluation")


def _evaluation(inputs: PlanInputs, split: SplitName) -> Iterator[MemoryItem]:
    """Yield what a worker gathers to rank items of ``split``, at most: it depends on which queries have some."""
    job, splits = inputs.job, inputs.manifest.splits
    if split not in splits or not splits[split].rows:
        return
    held_out = splits[split].rows
    # A query is evaluated once, or in each context, or at each moment.
    has_several = bool(inputs.manifest.context) or job.evaluate.by == "moment"
    candidates = held_out if has_several else min(held_out, inputs.model.query.rows)
    sample = job.evaluate.queries_of(split, in_training=True)
    evaluated = candidates if sample is None else min(candidates, sample)
    names = job.evaluate.excluded_from(split)
    excluded = sum(splits[name].rows for name in set(names) & set(splits)) + (inputs.earlier_rows if names else 0)
    share = evaluated / candidates
    pairs = math.ceil(share * (excluded + held_out) / job.cluster.workers)
    # A query and an item are one int64; concatenating, sorting and comparing make copies. A sample is drawn before, by
    # a hash of each query, which is sorted. Each of a query's best items takes 12 bytes.
    yield MemoryItem("held-out and excluded items", 8 * pairs, required=False)
    gathered = max(32 * pairs, 24 * held_out if share < 1 else 0)
    yield MemoryItem("gathering held-out and excluded items", gathered, "start", required=False)
    ranking = -(-evaluated // job.cluster.workers) * (2 * job.model.dim * VALUE_BYTES + max(job.evaluate.k) * 13)
    yield MemoryItem("queries and their rankings", ranking, "evaluation", required=False)
