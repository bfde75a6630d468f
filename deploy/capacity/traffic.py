"""The expected traffic of a step: active rows of each table, and their bytes on the wire.

The vocabularies hold how often each row occurs in train. A worker's b examples of a step are b of the N interactions
of train, drawn without replacement if the shuffling is good, so a row that occurs c times is absent from them with
probability

    C(N - c, b) / C(N, b)  ≈  (1 - b / (N - (c - 1) / 2))^c

and from m negatives, each drawn with probability q, with (1 - q)^m. Where g rows of a query are read together, a step
that takes b consecutive ones of the n rows of their partition misses them with probability 1 - (g + b - 1) / n. The
expected number of active rows is the sum of the complements over all rows. Rows of the same count have the same
probability, so a histogram of counts represents a vocabulary.

Shape suffixes. K: distinct counts of a table. N: any rows. P: partitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.deploy.topology import Role
from crossfade.kvstore.sharded import WIRE_VALUE_BYTES
from crossfade.kvstore.sharded.store import POSITION_BYTES
from crossfade.kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec, Traffic
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reader import InteractionReader, RowGroup
from crossfade.trainer.data.schedule import BatchSchedule
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.spec import ModelSpec

_PIECE_ROWS = 1 << 20

WIRE_ROW_BYTES = ROW_ID_BYTES + 4
"""What ps-lite sends with the values of each row: its ID, and their length, 4 bytes."""
WIRE_REQUEST_BYTES = ROW_ID_BYTES
"""What a pull sends to request a row. Measured at the sockets of real jobs of 4 and 64 columns, on 2 and 3 servers, the
two account for all but 0.1 of the bytes per row, and for all but 50 bytes of a message."""


@dataclass(frozen=True)
class Wire:
    """What a row takes on the wire: beside its values in a pull or a push, in the request of a pull, and each value."""

    row_bytes: int
    request_bytes: int
    value_bytes: int = VALUE_BYTES


SERVERS_WIRE = Wire(WIRE_ROW_BYTES, WIRE_REQUEST_BYTES)
RANKS_WIRE = {dtype: Wire(0, POSITION_BYTES, value_bytes) for dtype, value_bytes in WIRE_VALUE_BYTES.items()}
"""By ``cluster.wire_dtype``. Workers that hold the tables send row positions once a step; what they announce takes some
50 bytes a peer."""


@dataclass(frozen=True)
class CountHistogram:
    """Counts of the rows of a table in train: ``rows_K`` (int64) rows occur ``count_K`` (float64) times each."""

    count_K: FloatArray
    rows_K: IntArray

    @staticmethod
    def of(pieces: Iterable[IntArray]) -> CountHistogram:
        """Return the histogram of a table whose counts come in ``pieces``."""
        merged: dict[int, int] = {}
        for count_N in pieces:
            count_K, rows_K = np.unique(count_N, return_counts=True)
            for count, rows in zip(count_K.tolist(), rows_K.tolist(), strict=True):
                merged[count] = merged.get(count, 0) + rows
        ordered = sorted(merged)
        rows_K = np.array([merged[count] for count in ordered], np.int64)
        return CountHistogram(np.array(ordered, np.float64), rows_K)

    @property
    def known(self) -> bool:
        """Whether any row occurs."""
        return bool((self.count_K > 0).any())

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return int(self.rows_K.sum())

    def warm(self) -> CountHistogram:
        """Return the histogram of the warm rows, which occur in train; of all rows if none does."""
        warm_K = (self.count_K > 0) | (not self.known)
        return CountHistogram(self.count_K[warm_K], self.rows_K[warm_K])

    def factor(self, total: int) -> float:
        """Return the factor that scales the counts to the sum ``total``, the interactions of train."""
        return total / float(self.count_K @ self.rows_K)


def read_counts(folder: Folder, manifest: DatasetManifest, entity: str) -> CountHistogram:
    """Read the counts of the vocabulary of ``entity``, piece by piece.

    Raises:
        InputError: a file of it is missing or corrupt.
    """
    vocabulary = Vocabulary(folder, manifest, entity)
    return CountHistogram.of(
        vocabulary.read(start, min(start + _PIECE_ROWS, vocabulary.rows), ["count"]).column("count").to_numpy()
        for start in range(0, vocabulary.rows, _PIECE_ROWS)
    )


@dataclass(frozen=True)
class WorkerLoad:
    """The part of a step that one worker does, on average."""

    examples: float
    negatives: float
    """Negatives drawn for the examples; those of the batch itself do not count."""
    block_rows: int = 0
    """Maximum interactions of the shuffle blocks that it holds: the current and the next one of each partition."""
    max_block_rows: int = 0
    """Interactions of the largest shuffle block of all workers."""
    partition_examples: float = 0.0
    """Examples of each of its partitions, which are one another's in-batch negatives."""
    step_examples: float = 0.0
    """Examples of all workers."""
    kept_rows: int = 0
    """Interactions that it keeps for the following epochs."""


def worker_loads(
    job: JobConfig, folder: Folder, manifest: DatasetManifest, groups: Sequence[RowGroup]
) -> list[WorkerLoad]:
    """Return the load of each worker: ``groups`` go to partitions, and blocks of partitions to workers."""
    schedule = BatchSchedule(
        InteractionReader(folder, manifest),
        groups,
        batch_size=job.train.batch_size,
        partitions=job.data.partitions,
        shuffle_block_rows=job.data.shuffle_block_rows,
        seed=job.train.seed,
        group_rows=job.data.group_rows,
    )
    blocks_P = [
        [block.rows for block in schedule.shuffle_blocks(0, partition, partition_groups, skip=0)]
        for partition, partition_groups in enumerate(schedule.assign_partitions(epoch=0))
    ]
    # After an epoch's last shuffle block comes the first of the next epoch.
    held_P = [max(map(sum, pairwise([*blocks, blocks[0]]))) for blocks in blocks_P]
    max_block_rows = max(max(blocks) for blocks in blocks_P)
    loads, step_examples = [], schedule.rows / schedule.steps
    items = manifest.entities[manifest.item].rows
    for rank in range(job.cluster.workers):
        of_rank = schedule.partitions_of(rank, job.cluster.workers)
        local = slice(of_rank.start, of_rank.stop)
        examples = sum(map(sum, blocks_P[local])) / schedule.steps
        negatives = _negatives(job.negatives, examples, items)
        partition_examples = examples / max(1, len(blocks_P[local]))
        held_rows = sum(held_P[local])
        sizes = held_rows, max_block_rows, partition_examples, step_examples, schedule.kept_rows
        loads.append(WorkerLoad(examples, negatives, *sizes))
    return loads


def _negatives(spec: NegativesConfig, examples: float, items: int) -> float:
    """Return how many rows are drawn; negatives from the batch are active anyway."""
    if examples == 0 or spec.kind == "in_batch":
        return 0.0
    if spec.kind == "all":
        return float(items)
    return spec.count * examples if spec.kind == "per_example" else float(spec.count)


def touch_probability(
    counts: CountHistogram, load: WorkerLoad, total: int, negatives: NegativesConfig | None
) -> FloatArray:
    """Return the probability that a step of ``load`` touches a row of each of a table's counts: float64 (K,).

    ``total`` is the interactions of train. ``negatives`` is how negatives are drawn from the table, or None if they are
    not.
    """
    if negatives is not None and negatives.kind == "all" and load.negatives:
        return np.ones(len(counts.count_K))
    if not counts.known:
        uses = load.examples + (load.negatives if negatives else 0.0)
        return np.full(len(counts.count_K), min(1.0, uses / counts.rows))
    scaled_K = counts.count_K * counts.factor(total)
    drawn_K = load.examples / np.maximum(total - (scaled_K - 1) / 2, 1.0)
    absent_K = np.maximum(0.0, 1.0 - drawn_K) ** scaled_K
    if negatives is not None:
        power = negatives.power if negatives.sampling == "popularity" else 0.0
        mass = float(np.maximum(counts.count_K, 1.0) ** power @ counts.rows_K)
        absent_K = absent_K * (1.0 - np.maximum(counts.count_K, 1.0) ** power / mass) ** load.negatives
    touched_K: FloatArray = 1.0 - absent_K
    return touched_K


def mean_history(queries: CountHistogram, total: int, length: int, has_timestamps: bool) -> float:
    """Return the mean number of items in the history of an interaction; the maximum if counts are not known.

    The i-th interaction of a query in time has min(i - 1, ``length``) before it. Without timestamps, each of its n has
    min(n - 1, ``length``) others.
    """
    if not queries.known:
        return length
    scaled_K = np.maximum(queries.count_K * queries.factor(total), 1.0)
    full_K = np.minimum(scaled_K - 1.0, length)
    if has_timestamps:
        full_K = full_K - full_K * (full_K + 1.0) / (2.0 * scaled_K)
    return float(full_K @ (queries.rows_K * scaled_K)) / total


def touch_probability_of_groups(
    counts: CountHistogram, load: WorkerLoad, total: int, group_rows: int | None, piece_rows: float
) -> FloatArray:
    """Return the same for queries whose interactions in a partition are read in groups of ``group_rows``; None: all.

    A query's interactions are consecutive in up to ``piece_rows`` rows, which are assigned to a partition together: the
    row groups of a grouped dataset, else single rows.
    """
    if load.examples == 0:
        return np.zeros(len(counts.count_K))
    scaled_K = np.maximum(counts.count_K * counts.factor(total), 1e-9)
    partitions = load.step_examples / load.partition_examples
    pieces_K = 1.0 + np.maximum(scaled_K - 1.0, 0.0) / piece_rows
    occupied_K = partitions * (1.0 - (1.0 - 1.0 / partitions) ** pieces_K)
    rows_K = scaled_K / occupied_K
    size_K = np.maximum(np.minimum(rows_K, group_rows or total), 1.0)
    hit_K = np.minimum(1.0, (size_K + load.partition_examples - 1.0) * partitions / total)
    touched_K = (1.0 - (1.0 - hit_K) ** (rows_K / size_K)) * load.examples / load.step_examples
    touched_by_any_K: FloatArray = 1.0 - (1.0 - touched_K) ** occupied_K
    return touched_by_any_K


def touch_probability_of_values(
    counts: CountHistogram, owner: CountHistogram, load: WorkerLoad, total: int, pairs: int, drawn: bool
) -> FloatArray:
    """Return the same for the values of a feature: float64 (K,).

    The feature has ``pairs`` pairs of a row and a value, and its entity the counts ``owner``. ``drawn`` is whether
    negatives are drawn from that entity; their values are assumed to be spread evenly.
    """
    draws = load.negatives * pairs / owner.rows if drawn else 0.0
    if not owner.known:
        uses = load.examples * pairs / owner.rows + draws
        return np.full(len(counts.count_K), min(1.0, uses / counts.rows))
    scaled_K = np.minimum(counts.count_K * owner.factor(total), total)
    absent_K = (1.0 - scaled_K / total) ** load.examples * (1.0 - 1.0 / counts.rows) ** draws
    touched_K: FloatArray = 1.0 - absent_K
    return touched_K


@dataclass(frozen=True)
class TableTraffic:
    """The rows of one table that each worker touches in a step: upper bounds if ``bound``, else expected numbers."""

    table: str
    rows: tuple[float, ...]
    bound: bool


@dataclass(frozen=True)
class StepTraffic:
    """What all workers together move in a step."""

    examples: float
    tables: tuple[TableTraffic, ...]
    dim: int
    bytes_pulled: float
    bytes_pushed: float
    dense_equivalent_bytes_pushed: int
    bytes_all_reduced: float = 0.0
    """What each worker sends, and receives, to sum dense gradients: by a ring, or in parts to each other worker."""
    on_wire: Wire = SERVERS_WIRE

    @property
    def rows(self) -> tuple[float, ...]:
        """Rows of all tables that each worker pulls, and pushes, in a step."""
        return tuple(sum(rows) for rows in zip(*(table.rows for table in self.tables), strict=True))

    @property
    def pushed_share(self) -> float:
        """The share of pulled rows that are pushed: those of tables that are not frozen."""
        return self.bytes_pushed / self.bytes_pulled

    @property
    def bound(self) -> bool:
        """Whether any figure is an upper bound."""
        return any(table.bound for table in self.tables)

    def wire(self, rows: float) -> tuple[float, float]:
        """Return the bytes on the wire of ``rows`` rows: with their values (in a pull or a push), and of requests."""
        return rows * (self.on_wire.row_bytes + self.dim * self.on_wire.value_bytes), rows * self.on_wire.request_bytes


def expect_traffic(
    job: JobConfig,
    manifest: DatasetManifest,
    model: ModelSpec,
    loads: Sequence[WorkerLoad],
    counts: dict[str, CountHistogram],
    total: int,
) -> StepTraffic:
    """Return the expected traffic of a step of ``job``, whose train split has ``total`` interactions."""
    tables, moved, owners = [], Traffic(), manifest.feature_owners()
    group_rows = job.data.group_rows
    row_groups = [rows for file in manifest.trained_on().files for rows in file.row_groups]
    piece_rows = float(np.mean(row_groups)) if manifest.is_grouped else 1.0
    for table in model.tables:
        negatives = job.negatives if table == model.item else None
        # Cold items of a model with item features are never negatives, and have no ID embedding.
        rows_of_table = counts[table.name]
        if table == model.item and model.has_item_features:
            rows_of_table = rows_of_table.warm()
        owner = owners.get(table.name)
        if table == model.query and rows_of_table.known and (group_rows != 1 or manifest.is_grouped):
            touched_by_worker = [
                touch_probability_of_groups(rows_of_table, load, total, group_rows, piece_rows) for load in loads
            ]
        elif owner is None:
            uses = _uses(table, model, counts[model.query.name], total, manifest.has_timestamp)
            using = [replace(load, examples=min(total, load.examples * uses)) for load in loads]
            touched_by_worker = [touch_probability(rows_of_table, load, total, negatives) for load in using]
        else:
            pairs, drawn = manifest.features[owner][table.name].pairs, owner == model.item.name
            touched_by_worker = [
                touch_probability_of_values(rows_of_table, counts[owner], load, total, pairs, drawn) for load in loads
            ]
        rows = tuple(float(touched_K @ rows_of_table.rows_K) for touched_K in touched_by_worker)
        tables.append(TableTraffic(table.name, rows, bound=not rows_of_table.known))
        if table.name not in model.frozen:
            for _ in rows:
                moved.count_push(0, table)
    row_bytes = ROW_ID_BYTES + job.model.dim * VALUE_BYTES
    pushed = sum(sum(table.rows) for table in tables if table.table not in model.frozen)
    return StepTraffic(
        sum(load.examples for load in loads),
        tuple(tables),
        job.model.dim,
        bytes_pulled=sum(sum(table.rows) for table in tables) * row_bytes,
        bytes_pushed=pushed * row_bytes,
        dense_equivalent_bytes_pushed=moved.dense_equivalent_bytes_pushed,
        bytes_all_reduced=_all_reduced_bytes(job, model),
        on_wire=RANKS_WIRE[job.cluster.wire_dtype] if job.cluster.workers_hold_tables else SERVERS_WIRE,
    )


def _uses(table: TableSpec, model: ModelSpec, queries: CountHistogram, total: int, has_timestamps: bool) -> float:
    """Return how many rows of ``table`` an example uses: its own, and those of its history."""
    if model.history is None or table != model.history.table:
        return 1.0
    return 1.0 + mean_history(queries, total, model.history.length, has_timestamps)


def _all_reduced_bytes(job: JobConfig, model: ModelSpec) -> float:
    if not job.all_reduces_dense:
        return 0.0
    workers = job.cluster.workers
    return 2 * (workers - 1) / workers * VALUE_BYTES * sum(spec.parameters for spec in model.dense)


def busiest_bytes(traffic: StepTraffic, hosts: Sequence[Sequence[Role]]) -> float:
    """Return the bytes that the busiest network card moves in one direction in a step.

    Requests, answers and the push follow one another, and so does the all-reduce, whose ring may leave a host once per
    worker; workers that hold the tables send each other a part of the sum. Rows between a worker and the holder of a
    table on the same host stay off the wire.
    """
    workers = [sum(role.kind == "worker" for role in host) for host in hosts]
    holders = [sum(role.kind == "server" for role in host) for host in hosts]
    if any(holders):
        leaving: float = max(min(here, sum(workers) - here) for here in workers)
    else:
        holders = workers
        leaving = max(here * (sum(workers) - here) for here in workers) / (sum(workers) - 1)
    rows_by_host = [sum(traffic.rows[role.index] for role in host if role.kind == "worker") for host in hosts]
    busiest_rows = 0.0
    for here, local_rows in zip(holders, rows_by_host, strict=True):
        share = here / sum(holders)
        busiest_rows = max(busiest_rows, local_rows * (1 - share), (sum(rows_by_host) - local_rows) * share)
    values, requests = traffic.wire(busiest_rows)
    return requests + (1 + traffic.pushed_share) * values + leaving * traffic.bytes_all_reduced
