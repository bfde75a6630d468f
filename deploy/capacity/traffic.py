"""What a step of a job moves: the rows that it is expected to touch, and the bytes of them on the wire.

How often each row occurs in train is in the vocabularies. A worker's b examples of a step are b of the N interactions
of train, drawn without putting back as long as the shuffling is good, so a row that occurs c times is missing from them
with probability

    C(N - c, b) / C(N, b)  ≈  (1 - b / (N - (c - 1) / 2))^c

and from m negatives, drawn with probability q each, with (1 - q)^m. What is expected is the sum over all rows. Rows
that occur equally often are alike, so a vocabulary, read in pieces, is kept as a histogram of its counts.

K: different counts of a table. N: any rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from deploy.topology import Role
from kvstore.arrays import FloatArray, IntArray
from kvstore.io.folder import Folder
from kvstore.store import ROW_ID_BYTES, VALUE_BYTES, Traffic
from trainer.config.model_sections import NegativesConfig
from trainer.config.schema import JobConfig
from trainer.data.manifest import DatasetManifest
from trainer.data.reader import InteractionReader, RowGroup
from trainer.data.schedule import BatchSchedule
from trainer.data.vocabulary import Vocabulary
from trainer.model.spec import ModelSpec

_PIECE_ROWS = 1 << 20

WIRE_ROW_BYTES = ROW_ID_BYTES + 4
"""What ps-lite sends with the values of each row: its id, and their length, 4 bytes."""
WIRE_REQUEST_BYTES = ROW_ID_BYTES
"""What a pull asks for a row with. Measured at the sockets of real jobs of 4 and 64 columns, on 2 and 3 servers, these
two account for all but 0.1 of the bytes a row, and for all but 50 bytes of a message."""


@dataclass(frozen=True)
class CountHistogram:
    """How often the rows of a table occur in train: ``rows_K`` rows occur ``count_K`` times each."""

    count_K: FloatArray
    rows_K: IntArray

    @staticmethod
    def of(pieces: Iterable[IntArray]) -> CountHistogram:
        """Those of a table whose counts come in ``pieces``."""
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
        """Whether anything was counted."""
        return bool((self.count_K > 0).any())

    @property
    def rows(self) -> int:
        """The rows of the table."""
        return int(self.rows_K.sum())

    def warm(self) -> CountHistogram:
        """Those of the rows that occur at all; where nothing was counted, of all."""
        met_K = (self.count_K > 0) | (not self.known)
        return CountHistogram(self.count_K[met_K], self.rows_K[met_K])

    def factor(self, total: int) -> float:
        """What makes the counts add up to ``total``, the interactions of train."""
        return total / float(self.count_K @ self.rows_K)


def read_counts(folder: Folder, manifest: DatasetManifest, entity: str) -> CountHistogram:
    """The counts of the vocabulary of ``entity``, which is read in pieces.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    vocabulary = Vocabulary(folder, manifest, entity)
    return CountHistogram.of(
        vocabulary.read(start, min(start + _PIECE_ROWS, vocabulary.rows), ["count"]).column("count").to_numpy()
        for start in range(0, vocabulary.rows, _PIECE_ROWS)
    )


@dataclass(frozen=True)
class WorkerLoad:
    """What one worker has of a step, on average: its examples, and the negatives that are drawn for them.

    ``window_rows``: interactions of the windows that it holds for that, the present and the next of each lane, at most.
    ``largest_window``: those of the largest of them.
    """

    examples: float
    negatives: float
    window_rows: int = 0
    largest_window: int = 0


def shares(job: JobConfig, folder: Folder, manifest: DatasetManifest, groups: Sequence[RowGroup]) -> list[WorkerLoad]:
    """The share of each worker: the lanes to which ``groups`` are dealt are dealt to them in turn."""
    schedule = BatchSchedule(
        InteractionReader(folder, manifest),
        groups,
        batch_size=job.train.batch_size,
        partitions=job.data.partitions,
        shuffle_block_rows=job.data.shuffle_block_rows,
        seed=job.train.seed,
    )
    windows_L = [
        [window.rows for window in schedule.shuffle_blocks(0, lane, lane_groups, skip=0)]
        for lane, lane_groups in enumerate(schedule.assign_partitions(epoch=0))
    ]
    # The window after an epoch's last one is the first of the next epoch.
    held_L = [max(map(sum, pairwise([*windows, windows[0]]))) for windows in windows_L]
    largest = max(max(windows) for windows in windows_L)
    parts = []
    items = manifest.entities[manifest.item].rows
    for rank in range(job.cluster.workers):
        mine = slice(rank, None, job.cluster.workers)
        examples = sum(map(sum, windows_L[mine])) / schedule.steps
        parts.append(
            WorkerLoad(
                examples,
                _negatives(job.resolved_negatives(items), examples, items),
                sum(held_L[mine]),
                largest,
            )
        )
    return parts


def _negatives(spec: NegativesConfig, examples: float, items: int) -> float:
    """How many rows are drawn; those from the batch are active anyway."""
    if examples == 0 or spec.kind == "in_batch":
        return 0.0
    if spec.kind == "all":
        return float(items)
    return spec.count * examples if spec.kind == "per_example" else float(spec.count)


def touched_values(
    counts: CountHistogram, owner: CountHistogram, share: WorkerLoad, total: int, pairs: int, drawn: bool
) -> FloatArray:
    """The same of the values of a feature with ``pairs`` pairs, whose entity has the counts ``owner``.

    ``drawn``: negatives are drawn of that entity. The values of these are taken to be spread evenly, as far as can be.
    """
    draws = share.negatives * pairs / owner.rows if drawn else 0.0
    if not owner.known:
        uses = share.examples * pairs / owner.rows + draws
        return np.full(len(counts.count_K), min(1.0, uses / counts.rows))
    scaled_K = np.minimum(counts.count_K * owner.factor(total), total)
    missing_K = (1.0 - scaled_K / total) ** share.examples * (1.0 - 1.0 / counts.rows) ** draws
    touched_K: FloatArray = 1.0 - missing_K
    return touched_K


def touch_probability(
    counts: CountHistogram, share: WorkerLoad, total: int, negatives: NegativesConfig | None
) -> FloatArray:
    """The probability that a step of ``share`` touches a row of each of a table's ``counts``: float64 (K,).

    ``total``: interactions of train. ``negatives``: how they are drawn; None for a
    table that they are not drawn from.
    """
    if negatives is not None and negatives.kind == "all" and share.negatives:
        return np.ones(len(counts.count_K))
    if not counts.known:
        uses = share.examples + (share.negatives if negatives else 0.0)
        return np.full(len(counts.count_K), min(1.0, uses / counts.rows))
    scaled_K = counts.count_K * counts.factor(total)
    drawn_K = share.examples / np.maximum(total - (scaled_K - 1) / 2, 1.0)
    missing_K = np.maximum(0.0, 1.0 - drawn_K) ** scaled_K
    if negatives is not None:
        power = negatives.power if negatives.sampling == "popularity" else 0.0
        mass = float(np.maximum(counts.count_K, 1.0) ** power @ counts.rows_K)
        missing_K = missing_K * (1.0 - np.maximum(counts.count_K, 1.0) ** power / mass) ** share.negatives
    touched_K: FloatArray = 1.0 - missing_K
    return touched_K


@dataclass(frozen=True)
class TableTraffic:
    """The rows of one table that each worker touches a step. ``bound``: at most so many; else as expected."""

    table: str
    rows: tuple[float, ...]
    bound: bool


@dataclass(frozen=True)
class StepTraffic:
    """What a step of all workers moves."""

    examples: float
    tables: tuple[TableTraffic, ...]
    dim: int
    bytes_pulled: float
    bytes_pushed: float
    bytes_pushed_if_dense: int
    bytes_summed: float = 0.0
    """What each worker sends, and receives, to sum the gradients of dense layers, in a ring of all workers."""

    @property
    def rows(self) -> tuple[float, ...]:
        """Rows of all tables that each worker pulls, and pushes, a step."""
        return tuple(sum(rows) for rows in zip(*(table.rows for table in self.tables), strict=True))

    @property
    def bound(self) -> bool:
        """Whether any of it is only known not to be more."""
        return any(table.bound for table in self.tables)

    def wire(self, rows: float) -> tuple[float, float]:
        """Bytes on the wire of ``rows`` rows: with their values, once a pull and once a push; and to ask for them."""
        return rows * (WIRE_ROW_BYTES + self.dim * VALUE_BYTES), rows * WIRE_REQUEST_BYTES


def expect_traffic(
    job: JobConfig,
    manifest: DatasetManifest,
    model: ModelSpec,
    parts: Sequence[WorkerLoad],
    counts: dict[str, CountHistogram],
    total: int,
) -> StepTraffic:
    """What is expected of a step of ``job``, whose train split has ``total`` interactions."""
    tables = []
    moved = Traffic()
    owners = manifest.feature_owners()
    for table in model.tables:
        negatives = job.resolved_negatives(table.rows) if table == model.item else None
        # The others neither are negatives then, nor have an embedding of their own.
        known = counts[table.name].warm() if table == model.item and model.has_item_features else counts[table.name]
        owner = owners.get(table.name)
        if owner is None:
            touched_by = [touch_probability(known, share, total, negatives) for share in parts]
        else:
            of_owner, pairs, drawn = counts[owner], manifest.features[owner][table.name].pairs, owner == model.item.name
            touched_by = [touched_values(known, of_owner, share, total, pairs, drawn) for share in parts]
        rows = tuple(float(touched_K @ known.rows_K) for touched_K in touched_by)
        tables.append(TableTraffic(table.name, rows, bound=not known.known))
        for _ in rows:
            moved.count_push(0, table)
    row_bytes = ROW_ID_BYTES + job.model.dim * VALUE_BYTES
    all_bytes = sum(sum(table.rows) for table in tables) * row_bytes
    return StepTraffic(
        examples=sum(share.examples for share in parts),
        tables=tuple(tables),
        dim=job.model.dim,
        bytes_pulled=all_bytes,
        bytes_pushed=all_bytes,
        bytes_pushed_if_dense=moved.bytes_pushed_if_dense,
        bytes_summed=_summed(job, model),
    )


def _summed(job: JobConfig, model: ModelSpec) -> float:
    if not job.all_reduces_dense:
        return 0.0
    workers = job.cluster.workers
    return 2 * (workers - 1) / workers * VALUE_BYTES * sum(spec.parameters for spec in model.dense)


def busiest_bytes(traffic: StepTraffic, hosts: Sequence[Sequence[Role]]) -> float:
    """Bytes that the busiest network card passes one way in a step: requests, then answers, then the push.

    They follow one another, and so does the sum over workers, whose ring may leave a host once a worker. What a worker
    exchanges with servers of its own host stays off the wire.
    """
    workers = [sum(role.kind == "worker" for role in host) for host in hosts]
    ring = max(min(here, sum(workers) - here) for here in workers) * traffic.bytes_summed
    servers = [sum(role.kind == "server" for role in host) for host in hosts]
    owned = [sum(traffic.rows[role.index] for role in host if role.kind == "worker") for host in hosts]
    most = 0.0
    for here, own in zip(servers, owned, strict=True):
        share = here / sum(servers)
        most = max(most, own * (1 - share), (sum(owned) - own) * share)
    values, requests = traffic.wire(most)
    return requests + 2 * values + ring
