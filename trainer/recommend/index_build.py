"""Build an index of a model's vectors, in blocks, and compare it with exact search.

    card = build_index(model, IndexOptions(out="indexes/lastfm"), NullReporter())
    card.index.probes, card.measured.recall_at_100

Vectors are read twice: a sample for k-means, and the length of the longest; then all, which are added to the index as
they are read. The number of lists that a search scans is the smallest power of 2 that reaches the requested recall.

An index of an earlier model may be continued: it keeps its lists, and the vectors that have changed move among them.
This takes place only while searches scan no more lists than before.

Shapes: N rows, Q queries, K ranks, R rows of the entity, D columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, OptionError
from crossfade.base.io.checksums import checksums_of
from crossfade.kvstore.jit import get_num_threads
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.files import GROUP_ROWS, staged_export
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.faiss_lists import (
    MIN_PQ_ROWS,
    SAMPLES_PER_LIST,
    ListOptions,
    VectorLists,
    load_faiss,
    num_lists,
)
from crossfade.trainer.recommend.index_folder import (
    CARD_FILE,
    INDEX_FILE,
    ROWS_FILE,
    IndexCard,
    IndexMeasurements,
    IndexParameters,
    check_free,
    describe_model,
    indexed_rows,
    read_card,
)
from crossfade.trainer.recommend.index_search import MEASURED_DEPTH, search_lists, without_excluded
from crossfade.trainer.recommend.item_lists import ItemLists
from crossfade.trainer.recommend.options import Codes, IndexOptions
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.top_k import rank_vectors
from crossfade.trainer.recommend.trained_model import TrainedModel

_MEASURED_QUERIES = 1000
_MOST_GROWN = 2
"""How many times as many lists another number of rows may ask for."""
_LEAST_GAIN = 0.002
"""How much more recall twice as many lists must give with product quantization."""
_SEED = 0


@dataclass(frozen=True)
class EarlierIndex:
    """An index of flat codes, in ``folder``, of an earlier model whose rows have the same IDs."""

    model: TrainedModel
    folder: Path


@dataclass(frozen=True)
class Found:
    """What a search of ``probes`` lists finds."""

    probes: int
    measured: IndexMeasurements


@dataclass(frozen=True)
class Indexing:
    """Which vectors of ``model`` are indexed, those of the rows ``indexed_R`` of ``table``, bool (R,), and how."""

    model: TrainedModel
    table: TableSpec
    indexed_R: BoolArray
    kind: ListOptions
    reporter: ProgressReporter

    @staticmethod
    def of(model: TrainedModel, options: IndexOptions, reporter: ProgressReporter) -> Indexing:
        """Return what ``options`` ask for.

        Raises:
            InputError: the model has no vectors of the entity, or too few.
        """
        entity, item = options.entity or model.spec.item.name, model.spec.item.name
        metric = options.metric or (model.ranking_metric if entity == item else model.job.model.score)
        model = model.compared_by(metric)
        indexed_R = indexed_rows(model, entity)
        if not (rows := int(np.count_nonzero(indexed_R))):
            raise InputError(f"{model.uri}: no row of '{entity}' has a trained vector")
        if options.codes == "pq" and rows < MIN_PQ_ROWS:
            problem = f"needs {MIN_PQ_ROWS} vectors, but '{entity}' has {rows} that are trained"
            raise OptionError("codes", found="pq", problem=problem, expected="flat or sq8")
        table = next(table for table in model.spec.vectors if table.name == entity)
        kind = ListOptions(metric, options.codes, options.columns_per_byte)
        return Indexing(model, table, indexed_R, kind, reporter)

    def blocks(self, kept_R: BoolArray, phase: str) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield the rows in ``kept_R`` and their vectors, from front to back, so that checksums are verified."""
        self.reporter.phase(phase, self.table.rows, "row")
        for first in range(0, self.table.rows, GROUP_ROWS):
            block_N = np.arange(first, min(first + GROUP_ROWS, self.table.rows), dtype=np.int64)
            kept_N = kept_R[block_N]
            vectors_ND = self.model.vectors.vectors(self.table.name, block_N)
            yield block_N[kept_N], vectors_ND[kept_N]
            self.reporter.advance(len(block_N))

    def find_lists(self) -> VectorLists:
        """Find the lists, by a random sample, and the length of the longest vector."""
        rows_N = np.flatnonzero(self.indexed_R)
        count = min(len(rows_N), SAMPLES_PER_LIST * num_lists(len(rows_N)))
        sampled_R = np.zeros(self.table.rows, np.bool_)
        sampled_R[np.random.default_rng(_SEED).choice(rows_N, count, replace=False)] = True
        sample_ND, longest, filled = np.empty((count, self.table.dim), np.float32), 0.0, 0
        for block_N, vectors_ND in self.blocks(self.indexed_R, "sample"):
            chosen_ND = vectors_ND[sampled_R[block_N]]
            sample_ND[filled : filled + len(chosen_ND)] = chosen_ND
            filled += len(chosen_ND)
            longest = max(longest, float(np.sqrt(np.square(vectors_ND).sum(axis=1).max(initial=0))))
        self.reporter.phase("find lists", None, "row")
        return VectorLists.train(sample_ND, len(rows_N), self.kind, longest)

    def add(self, lists: VectorLists, added_R: BoolArray) -> None:
        """Add the vectors of ``added_R`` to ``lists``."""
        for block_N, vectors_ND in self.blocks(added_R, "add"):
            lists.add(block_N, vectors_ND)

    def write_card(self, folder: Path, lists: VectorLists, found: Found, seconds: float) -> IndexCard:
        """Write the rows and the card of the index in ``folder``, whose ``lists`` took ``seconds``."""
        rows_N = np.flatnonzero(self.indexed_R)
        _write_rows(self.model, self.table.name, self.indexed_R, folder / ROWS_FILE)
        card = IndexCard(
            model=describe_model(self.model, self.table.name, rows_N),
            entity=self.table.name,
            metric=self.kind.metric,
            rows=len(rows_N),
            dim=self.table.dim,
            library_version=load_faiss("crossfade index").__version__,
            index=IndexParameters(
                codes=self.kind.codes,
                columns=self.table.dim + self.kind.added_columns(self.table.dim),
                lists=lists.lists,
                probes=found.probes,
            ),
            measured=found.measured,
            files=checksums_of(folder),
            build_seconds=round(seconds, 3),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        (folder / CARD_FILE).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return card


def build_index(
    model: TrainedModel, options: IndexOptions, reporter: ProgressReporter, earlier: EarlierIndex | None = None
) -> IndexCard:
    """Build the index, and return its card; ``earlier`` is continued if possible.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: ``out`` cannot be written.
        InputError: the model has no vectors of the entity, or too few, or ``out`` may not be replaced.
        MissingExtraError: FAISS is not installed.
    """
    load_faiss("crossfade index")
    out = Path(options.out)
    check_free(out, options.overwrite)
    indexing = Indexing.of(model, options, reporter)
    with staged_export(out, lambda: check_free(out, options.overwrite)) as folder:
        lists, found, seconds = _make_lists(indexing, options.recall, earlier)
        lists.write(folder / INDEX_FILE)
        return indexing.write_card(folder, lists, found, seconds)


def _make_lists(indexing: Indexing, recall: float, earlier: EarlierIndex | None) -> tuple[VectorLists, Found, float]:
    """Continue ``earlier``, or find lists; return them, how they are searched, and seconds to build."""
    start = time.perf_counter()
    if earlier is not None and (lists := _continue(indexing, earlier)) is not None:
        seconds, most = time.perf_counter() - start, read_card(earlier.folder).index.probes
        found = measure(indexing, lists, recall, most)
        if found.measured.recall_at_100 >= recall or found.probes >= lists.lists:
            return lists, found, seconds
    lists = indexing.find_lists()
    indexing.add(lists, indexing.indexed_R)
    seconds = time.perf_counter() - start
    return lists, measure(indexing, lists, recall), seconds


def _continue(indexing: Indexing, earlier: EarlierIndex) -> VectorLists | None:
    """Load the lists of ``earlier``, and move the vectors that have changed; None if lists should be found anew."""
    table, indexed_R = indexing.table, indexing.indexed_R
    had_R = np.zeros(table.rows, np.bool_)
    earlier_model = earlier.model.compared_by(indexing.kind.metric)
    earlier_R = indexed_rows(earlier_model, table.name)
    had_R[: len(earlier_R)] = earlier_R
    changed_R = indexed_R & ~had_R
    for block_N, vectors_ND in indexing.blocks(indexed_R & had_R, "compare"):
        before_ND = earlier_model.vectors.vectors(table.name, block_N)
        changed_R[block_N] = (vectors_ND != before_ND).any(axis=1)
    lists = VectorLists.load(earlier.folder / INDEX_FILE, indexing.kind)
    if num_lists(np.count_nonzero(indexed_R)) > _MOST_GROWN * lists.lists:
        return None
    lists.remove(had_R & (changed_R | ~indexed_R))
    indexing.add(lists, changed_R)
    return lists


def measure(indexing: Indexing, lists: VectorLists, target: float, most: int | None = None) -> Found:
    """Choose how many of the ``lists``, of ``most`` if given, a search scans, by comparison with exact search.

    Items are searched for queries, if by the model's score, and everything else for its own rows. Product quantization
    limits what any number of lists finds, so that the number is not doubled for little.
    """
    model, table, metric = indexing.model, indexing.table, indexing.kind.metric
    is_recommending = table == model.spec.item and metric == model.job.model.score
    source = model.spec.query if is_recommending else table
    query_QD, excluded = _measured_queries(model, source, excludes_itself=not is_recommending)
    count, score, vectors = len(query_QD), Score.of(metric, 1.0), partial(model.vectors.vectors, table.name)
    # Compile kernels, which may take longer than the ranking.
    rank_vectors(query_QD[:1], score, 1, lambda _: query_QD[:1], excluded.slice(0, 1), MEASURED_DEPTH)
    indexing.reporter.phase("search exactly", count, source.name)
    ranker = Ranker(model.vectors, table, score, Candidates(indexing.indexed_R))
    start = time.perf_counter()
    truth_QK, _ = ranker.rank(query_QD, excluded, MEASURED_DEPTH)
    exact_speed = count / (time.perf_counter() - start)

    def search(probes: int) -> Found:
        indexing.reporter.phase(f"search {probes} of {lists.lists} lists", count, source.name)
        start = time.perf_counter()
        # One more, since a row may find itself.
        best = search_lists(lists, vectors, query_QD, MEASURED_DEPTH + 1, probes)
        found_QK, _ = without_excluded(*best, excluded, MEASURED_DEPTH, len(indexing.indexed_R))
        speed = count / (time.perf_counter() - start)
        measured = IndexMeasurements(
            query_entity=source.name,
            queries=count,
            recall_at_10=round(_recall(found_QK[:, :10], truth_QK[:, :10]), 6),
            recall_at_100=round(_recall(found_QK, truth_QK), 6),
            exact_queries_per_second=round(exact_speed, 1),
            queries_per_second=round(speed, 1),
            threads=get_num_threads(),
        )
        return Found(probes, measured)

    return _fewest_lists(search, target, max(1, (most or 0) // 2), most or lists.lists, indexing.kind.codes)


def _fewest_lists(search: Callable[[int], Found], target: float, probes: int, most: int, codes: Codes) -> Found:
    """Return the search of the fewest lists, ``most`` at most, that reaches ``target`` or, of pq, what it can reach."""
    found = search(probes)
    while found.measured.recall_at_100 < target and found.probes < most:
        further = search(min(2 * found.probes, most))
        if codes == "pq" and further.measured.recall_at_100 - found.measured.recall_at_100 < _LEAST_GAIN:
            break
        found = further
    return found


def _measured_queries(model: TrainedModel, table: TableSpec, *, excludes_itself: bool) -> tuple[FloatArray, ItemLists]:
    """Return the vectors of some rows of ``table``, and which rows each is not compared with."""
    queries_N = np.flatnonzero(indexed_rows(model, table.name))
    count = min(_MEASURED_QUERIES, len(queries_N))
    queries_Q = np.sort(np.random.default_rng(_SEED).choice(queries_N, count, replace=False))
    itself = ItemLists(np.arange(count + 1), queries_Q)
    nothing = ItemLists(np.zeros(count + 1, np.int64), queries_Q[:0])
    return model.vectors.vectors(table.name, queries_Q), itself if excludes_itself else nothing


def _recall(found_QK: IntArray, truth_QK: IntArray) -> float:
    """Return the mean share of the nearest rows that are found."""
    shares = [
        float(np.isin(true_K[true_K >= 0], found_K).mean())
        for found_K, true_K in zip(found_QK, truth_QK, strict=True)
        if true_K[0] >= 0
    ]
    return float(np.mean(shares)) if shares else 1.0


def _write_rows(model: TrainedModel, entity: str, kept_R: BoolArray, path: Path) -> None:
    """Write row, ID and name of the rows in ``kept_R``."""
    writer: pq.ParquetWriter | None = None
    first = 0
    try:
        for table in model.vocabulary(entity).iter_tables():
            kept = table.filter(pa.array(kept_R[first : first + table.num_rows]))
            first += table.num_rows
            # A file with vacant rows has a nullable ID column, the others do not.
            plain = pa.table({name: kept.column(name) for name in kept.column_names})
            writer = writer or pq.ParquetWriter(path, plain.schema, compression="zstd")
            writer.write_table(plain)
    finally:
        if writer is not None:
            writer.close()
