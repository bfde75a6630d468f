"""TODO-DOC split from deploy/capacity/plan.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from deploy.capacity.traffic import CountHistogram, WorkerLoad, read_counts
from kvstore.checkpoint.snapshot import COPY_INDEX_BYTES, max_copied_rows
from kvstore.io.folder import Folder
from kvstore.layout import TableLayout
from kvstore.optimizers import state_bytes_per_row
from kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec
from trainer.config.schema import JobConfig
from trainer.data.features import lists_bytes
from trainer.data.manifest import DatasetManifest
from trainer.embeddings.files import GROUP_ROWS
from trainer.model.negatives import needs_counts
from trainer.model.spec import ModelSpec, make_model
from trainer.runs.row_selection import RowSelection

_MIB = 2**20

SERVER_BYTES = 104 * _MIB


FIRST_RUN_BYTES = {"scheduler": 36 * _MIB, "server": 54 * _MIB, "worker": 99 * _MIB}
"""What a process keeps besides in the first run after an installation, which compiles modules and kernels."""


WRITER_BYTES = 24 * _MIB
"""The process that writes a server's part of a checkpoint: Python with numpy and pyarrow."""


UPLOAD_BYTES = 12 * _MIB
"""Of that process for each file that it uploads to S3 at a time; 64 files took 822 MB."""


FILES_A_RANGE = 2
"""The weights and, of most optimizers, one array of state, which are sent side by side."""


IN_PROCESS_BYTES = 211 * _MIB
"""A run without servers, libraries included (``rss``)."""


ACTIVE_COPIES = 8
"""Copies of a step's rows that a worker holds: pulled, gathered, normalised, their gradients and uses, and the push as
it waits to be sent. With ``WINDOW_COPIES`` it counts 359 MiB for a worker of 8,192 examples a step on 1.5 million rows
of 64 columns, which held 340 to 374, and 290 for each of two that shared the step, which held 234 to 269."""


LAYER_COPIES = 3
"""Copies of a step's rows that each dense layer holds: its output, the same normalised, and a temporary one."""


SUM_COPIES = 3
"""Copies of the gradients of all dense layers while they are summed over workers: one array, Horovod's, and the sum."""


WINDOW_COPIES = 2
"""The windows of a lane, and as much that the allocator keeps of those that were used up. With what threads hold while
they decode it counts 194 MiB for 16 lanes of 131,072 rows, for which a process grew by 212 to 235."""


SERVED_COPIES = 3
"""Copies of a step's rows that a server holds: as received, as merged, and as answered."""


_INTERACTION_BYTES = 8 + 8 + 4


_TIMESTAMP_BYTES = 8


_USE_BYTES = 4 * 8


_BATCHES_HELD = 4
"""One computes, two wait, one is being made (``ReadAhead``)."""


Phase = Literal["always", "start", "steps", "evaluation", "checkpoint"]


@dataclass(frozen=True)
class MemoryItem:
    """What a process holds something for: ``sure`` or at most, and when."""

    what: str
    bytes: int
    phase: Phase = "always"
    required: bool = True


@dataclass(frozen=True)
class ProcessPlan:
    """One process of the job and what it holds."""

    name: str
    parts: tuple[MemoryItem, ...]

    @property
    def required_bytes(self) -> int:
        """Its peak, of what it needs in any case."""
        return _peak([part for part in self.parts if part.required])

    @property
    def peak_bytes(self) -> int:
        """Its peak at most."""
        return _peak(self.parts)


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is made from. ``counts`` by table, or None if they have not been read."""

    job: JobConfig
    folder: Folder
    manifest: DatasetManifest
    model: ModelSpec
    selection: RowSelection
    counts: dict[str, CountHistogram] | None

    def of(self, job: JobConfig) -> PlanInputs:
        """The same data under another job."""
        return replace(self, job=job, model=make_model(job, self.manifest))

    def with_counts(self) -> PlanInputs:
        """The same, with the vocabularies read, in pieces.

        Raises:
            InputError: a file of them is missing or damaged.
        """
        names = {table.name for table in (*self.model.tables, self.model.query, self.model.item)}
        return replace(self, counts={name: read_counts(self.folder, self.manifest, name) for name in names})


def table_bytes(job: JobConfig, table: TableSpec) -> int:
    """Bytes of the weights of ``table`` and of its optimizer state."""
    return table.bytes + table.rows * state_bytes_per_row(job.optimizer.kind, table.dim)


def _process(kind: str, idle_bytes: int) -> tuple[MemoryItem, ...]:
    return MemoryItem("process", idle_bytes), MemoryItem(
        "compiling, in the first run", FIRST_RUN_BYTES[kind], required=False
    )


def _server(inputs: PlanInputs, parts: Sequence[WorkerLoad], layouts: Sequence[TableLayout]) -> tuple[MemoryItem, ...]:
    job = inputs.job
    held = {layout.table.name: layout.keys * layout.shard_rows for layout in layouts}
    dim = job.model.dim
    row_bytes = ROW_ID_BYTES + dim * VALUE_BYTES
    state = state_bytes_per_row(job.optimizer.kind, dim)
    served = sum(min(_uses(inputs, share), sum(held.values()) * job.cluster.servers) for share in parts)
    tables = [
        MemoryItem(f"{name}: weights of {rows:,} rows and their numbers", rows * row_bytes)
        for name, rows in held.items()
    ]
    if state:
        tables += [MemoryItem(f"{name}: state of {job.optimizer.kind}", rows * state) for name, rows in held.items()]
    return (
        *_process("server", SERVER_BYTES),
        *tables,
        MemoryItem("receiving the keys", _receiving(layouts, row_bytes, state), "start"),
        MemoryItem("rows of a step", SERVED_COPIES * served * row_bytes // job.cluster.servers, "steps"),
        *_checkpoint(job, held, max(layout.keys for layout in layouts)),
    )


def _receiving(layouts: Sequence[TableLayout], row_bytes: int, state: int) -> int:
    """What a server needs at the start besides its tables: a key lies in the message while the store takes it over.

    Keys come one by one, tables in turn, so the largest may come before there is much else.
    """
    held = most = 0
    for layout in layouts:
        held += layout.keys * layout.shard_rows * (row_bytes + state)
        most = max(most, held + layout.shard_rows * (row_bytes + ROW_ID_BYTES))
    return most - held


def _in_process(inputs: PlanInputs, parts: Sequence[WorkerLoad]) -> ProcessPlan:
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
            *_training(inputs, parts, 0),
            *_checkpoint(job, {table.name: table.rows for table in inputs.model.tables}, ranges=1),
        ),
    )


def _uses(inputs: PlanInputs, share: WorkerLoad) -> int:
    """How often a step of ``share`` uses a row of a table: it touches no more rows, but where rows have many values."""
    query, item = (1 + _values(inputs, entity) for entity in (inputs.model.query, inputs.model.item))
    return int(np.ceil(query * share.examples + item * (share.examples + share.negatives)))


def _values(inputs: PlanInputs, entity: TableSpec) -> float:
    """How many values of features a row of ``entity`` has on average, of those that its tower joins."""
    features = [table.name for tower in inputs.model.towers if tower.entity == entity for table in tower.features]
    return sum(inputs.manifest.features[entity.name][name].pairs for name in features) / entity.rows


def _features(inputs: PlanInputs) -> Iterable[MemoryItem]:
    """What a worker holds of the values that rows have."""
    for tower in inputs.model.towers:
        rows = tower.entity.rows
        for table in tower.features:
            pairs = inputs.manifest.features[tower.entity.name][table.name].pairs
            yield MemoryItem(f"{table.name} of each {tower.entity.name}", lists_bytes(rows, pairs, table.rows))
        yield MemoryItem(f"which {tower.entity.name} has been met", rows)
        # Counts of the vocabulary, or how many values each row has.
        yield MemoryItem(f"reading what each {tower.entity.name} has", 3 * 8 * rows, "start")


def _training(inputs: PlanInputs, parts: Sequence[WorkerLoad], rank: int) -> Iterable[MemoryItem]:
    """What worker ``rank`` holds to train: windows of interactions, batches, and the rows of a step."""
    job, share = inputs.job, parts[rank]
    yield MemoryItem("interactions: two windows a lane", WINDOW_COPIES * share.window_rows * _INTERACTION_BYTES)
    yield MemoryItem("fetching, decoding and shuffling them", _decoding(inputs, share.largest_window))
    uses = _uses(inputs, share)
    yield from _features(inputs)
    yield MemoryItem("batches", _BATCHES_HELD * uses * _USE_BYTES, "steps")
    rows = min(uses, sum(table.rows for table in inputs.model.tables))
    yield MemoryItem("rows of a step", ACTIVE_COPIES * rows * job.model.dim * VALUE_BYTES, "steps")
    yield from _dense_layers(inputs, rows)
    if needs_counts(job.resolved_negatives(inputs.model.item.rows), inputs.model.has_item_features):
        # negatives.Sampler keeps float64 sums, from five arrays of a number an item.
        yield MemoryItem("popularity of items", 8 * inputs.model.item.rows)
        yield MemoryItem("making the popularity of items", 40 * inputs.model.item.rows, "start")
    balanced = (
        (job.train.query_frequency_power, inputs.model.query),
        (job.train.item_frequency_power, inputs.model.item),
    )
    for table in (table for power, table in balanced if power):
        yield MemoryItem(f"balance of {table.name}", 4 * table.rows)
        yield MemoryItem(f"making the balance of {table.name}", 40 * table.rows, "start")
    if job.train.save_embeddings == "best":
        piece = min(GROUP_ROWS, max(table.rows for table in inputs.model.vectors))
        # Pulled, gathered, in Arrow's form, and encoded.
        yield MemoryItem("writing embeddings", 4 * piece * job.model.dim * VALUE_BYTES, "evaluation")
    yield from _evaluation(inputs)


def _dense_layers(inputs: PlanInputs, rows: int) -> Iterable[MemoryItem]:
    """What a worker holds of dense layers: themselves, their gradients and state, and what ``rows`` leave in them."""
    kind = inputs.job.optimizer.kind
    for spec in inputs.model.dense:
        shapes = spec.shapes().values()
        state = sum(outputs * state_bytes_per_row(kind, columns) for outputs, columns in shapes)
        yield MemoryItem(f"dense layers of {spec.entity}: {spec.parameters:,} weights", VALUE_BYTES * spec.parameters)
        if state:
            yield MemoryItem(f"dense layers of {spec.entity}: state of {kind}", state)
        yield MemoryItem(f"dense layers of {spec.entity}: gradients", VALUE_BYTES * spec.parameters, "steps")
        passing = LAYER_COPIES * sum(spec.widths[1:]) * VALUE_BYTES
        yield MemoryItem(f"rows of a step in the dense layers of {spec.entity}", rows * passing, "steps")
        if inputs.job.train.save_embeddings == "best":
            piece = min(GROUP_ROWS, inputs.manifest.entities[spec.entity].rows)
            yield MemoryItem(f"writing what the dense layers of {spec.entity} make", piece * passing, "evaluation")
    if inputs.job.all_reduces_dense:
        parameters = sum(spec.parameters for spec in inputs.model.dense)
        yield MemoryItem(
            "summing gradients of dense layers over workers", SUM_COPIES * VALUE_BYTES * parameters, "steps"
        )


def _decoding(inputs: PlanInputs, window_rows: int) -> int:
    """What the threads hold: a row group as it is fetched, as decoded, and a window as it is put together."""
    files = {group.file.path: group.file for group in inputs.selection.groups}.values()
    stored = max(max(file.row_groups) for file in files)
    columns = _INTERACTION_BYTES if inputs.selection.row_counts is None else _INTERACTION_BYTES + _TIMESTAMP_BYTES
    order = 8
    return inputs.job.data.reader_threads * (2 * stored * columns + window_rows * (_INTERACTION_BYTES + order))


def _evaluation(inputs: PlanInputs) -> Iterable[MemoryItem]:
    """What a worker gathers to rank items: at most, since it depends on who has held-out items."""
    job, splits = inputs.job, inputs.manifest.splits
    if inputs.counts is None or "valid" not in splits or not splits["valid"].rows:
        return
    query = inputs.model.query
    queries = min(splits["valid"].rows, query.rows)
    excluded = sum(
        _most_interactions(inputs.counts[query.name], queries, splits["train"].rows)
        if name == "train"
        else splits[name].rows
        for name in set(job.evaluate.exclude_splits) - {"valid"}
        if name in splits
    )
    own = -(-queries // job.cluster.workers)
    pairs = -(-(excluded + splits["valid"].rows) // job.cluster.workers)
    # Query and item are one int64; concatenate, sort and compare make copies. The best of a query are 12 bytes each.
    yield MemoryItem("held-out and excluded items", 8 * pairs, required=False)
    yield MemoryItem(
        "gathering held-out and excluded items", 32 * max(pairs, splits["valid"].rows), "start", required=False
    )
    ranking = own * (2 * job.model.dim * VALUE_BYTES + max(job.evaluate.k) * 13)
    yield MemoryItem("queries and their rankings", ranking, "evaluation", required=False)


def _most_interactions(counts: CountHistogram, queries: int, total: int) -> int:
    """Interactions of train that ``queries`` rows have at most: those of the busiest."""
    if not counts.known:
        return total
    scaled_K = counts.count_K[::-1] * counts.factor(total)
    rows_K = counts.rows_K[::-1]
    taken_K = np.clip(queries - (np.cumsum(rows_K) - rows_K), 0, rows_K)
    return int(np.ceil(scaled_K @ taken_K))


def _checkpoint(job: JobConfig, held: dict[str, int], ranges: int) -> Iterable[MemoryItem]:
    """What a process that holds so many rows of each table, in at most ``ranges``, needs while they are written."""
    row_bytes = job.model.dim * VALUE_BYTES + state_bytes_per_row(job.optimizer.kind, job.model.dim)
    uploads = 0 if job.checkpoint.path is None or not Folder(job.checkpoint.path).on_s3 else ranges * FILES_A_RANGE
    yield MemoryItem("the writer of a checkpoint", WRITER_BYTES + uploads * UPLOAD_BYTES, "checkpoint")
    yield MemoryItem("where changed rows are kept", COPY_INDEX_BYTES * sum(held.values()), "checkpoint")
    if job.checkpoint.interval_seconds or job.checkpoint.interval_steps:
        kept = sum(max_copied_rows(rows, row_bytes) for rows in held.values()) * row_bytes
        yield MemoryItem("rows that change before they are written", kept, "checkpoint", required=False)


def _peak(parts: Iterable[MemoryItem]) -> int:
    """The most that is held at one time: checkpoints are written during steps and evaluations, not at the start."""
    by_phase: dict[Phase, int] = dict.fromkeys(("always", "start", "steps", "evaluation", "checkpoint"), 0)
    for part in parts:
        by_phase[part.phase] += part.bytes
    busy = max(by_phase["steps"], by_phase["evaluation"]) + by_phase["checkpoint"]
    return by_phase["always"] + max(by_phase["start"], busy)
