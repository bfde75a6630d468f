"""Memory of a worker, or of a run in process, without its tables: interactions, batches, layers and evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crossfade.deploy.capacity.inputs import PlanInputs
from crossfade.deploy.capacity.traffic import CountHistogram, WorkerLoad
from crossfade.kvstore.optimizer_spec import state_bytes_per_row
from crossfade.kvstore.store import VALUE_BYTES, TableSpec
from crossfade.trainer.data.features import content_group_rows, content_width, lists_bytes
from crossfade.trainer.embeddings.files import GROUP_ROWS
from crossfade.trainer.model.given_vectors import BLOCK_ROWS, JOIN_BYTES
from crossfade.trainer.model.negatives import needs_counts
from crossfade.trainer.prepare.staging import GROUP_ROWS_MAX

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
    if engine == "torch" or not job.cluster.servers:  # MXNet has the key-value store too
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
    """Yield what the first worker holds while it joins given vectors with a table, of which it has as many as rows."""
    for table in (table for table in inputs.model.tables if table.name in inputs.job.model.start):
        block = min(BLOCK_ROWS, table.rows) * table.dim * (VALUE_BYTES + 2 * 8)
        yield MemoryItem(f"joining the given vectors of {table.name}", JOIN_BYTES * table.rows + block, "start")


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
    """Yield what a worker gathers to rank items, at most: it depends on which queries have held-out items."""
    job, splits = inputs.job, inputs.manifest.splits
    if inputs.counts is None or "valid" not in splits or not splits["valid"].rows:
        return
    query = inputs.model.query
    queries = min(splits["valid"].rows, query.rows)
    excluded = sum(
        _max_interactions(inputs.counts[query.name], queries, splits["train"].rows)
        if name == "train"
        else splits[name].rows
        for name in set(job.evaluate.excluded_from("valid"))
        if name in splits
    )
    if job.evaluate.excluded_from("valid"):
        excluded += inputs.earlier_rows
    # A query is evaluated in each of its contexts, and at each moment.
    has_combinations = bool(inputs.manifest.context) or job.evaluate.by == "moment"
    local_queries = -(-(splits["valid"].rows if has_combinations else queries) // job.cluster.workers)
    pairs = -(-(excluded + splits["valid"].rows) // job.cluster.workers)
    # A query and an item are one int64 (with context, one each); concatenating, sorting and comparing make copies. Each
    # of a query's best items takes 12 bytes.
    yield MemoryItem("held-out and excluded items", 8 * pairs, required=False)
    columns = len(inputs.manifest.context) + 3 if has_combinations else 1
    gathered = 32 * max(pairs, columns * splits["valid"].rows)
    yield MemoryItem("gathering held-out and excluded items", gathered, "start", required=False)
    ranking = local_queries * (2 * job.model.dim * VALUE_BYTES + max(job.evaluate.k) * 13)
    yield MemoryItem("queries and their rankings", ranking, "evaluation", required=False)


def _max_interactions(counts: CountHistogram, queries: int, total: int) -> int:
    """Return how many interactions of train ``queries`` rows have at most: those of the most active."""
    if not counts.known:
        return total
    scaled_K = counts.count_K[::-1] * counts.factor(total)
    rows_K = counts.rows_K[::-1]
    selected_K = np.clip(queries - (np.cumsum(rows_K) - rows_K), 0, rows_K)
    return int(np.ceil(scaled_K @ selected_K))
