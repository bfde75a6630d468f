"""Build an index of a model's vectors, in blocks, and compare it with exact search.

    card = build_index(model, IndexOptions(out=Path("indexes/lastfm")), NullReporter())
    card.index.probes, card.measured.recall_at_100

Vectors are read twice: a sample for k-means, and the length of the longest; then all, which are added to the index as
they are read. The number of lists that a search scans is the smallest power of 2 that reaches the requested recall.

An index of an earlier model may be continued: it keeps its lists, and the vectors that have changed move among them.
This takes place only while searches scan no more lists than before.

Shapes: N rows, Q queries, K ranks, R rows of the entity, D columns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.checksums import checksums_of
from crossfade.kvstore.jit import get_num_threads
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.files import GROUP_ROWS, staged_export
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.evaluation.top_k import rank_vectors
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.faiss_lists import (
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
from crossfade.trainer.recommend.index_search import MEASURED_DEPTH, without_excluded
from crossfade.trainer.recommend.options import IndexOptions
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.trained_model import TrainedModel

_MEASURED_QUERIES = 1000
_MOST_GROWN = 2
"""How many times as many lists another number of rows may ask for."""
_SEED = 0


@dataclass(frozen=True)
class EarlierIndex:
    """An index of flat codes, in ``folder``, of an earlier model whose rows have the same IDs."""

    model: TrainedModel
    folder: Path


def build_index(
    model: TrainedModel, options: IndexOptions, reporter: ProgressReporter, earlier: EarlierIndex | None = None
) -> IndexCard:
    """Build the index, and return its card; ``earlier`` is continued if possible.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: ``out`` cannot be written.
        InputError: the model has no vectors of the entity, or ``out`` may not be replaced.
        MissingExtraError: FAISS is not installed.
    """
    faiss = load_faiss("crossfade index")
    check_free(options.out, options.overwrite)
    entity, metric = options.entity or model.spec.item.name, options.metric or model.job.model.score
    indexed_R = indexed_rows(model, entity)
    rows_N = np.flatnonzero(indexed_R)
    if not len(rows_N):
        raise InputError(f"{model.uri}: no row of '{entity}' has a trained vector")
    table = next(table for table in model.spec.vectors if table.name == entity)
    with staged_export(options.out, lambda: check_free(options.out, options.overwrite)) as folder:
        kind = ListOptions(metric, options.codes)
        made = _make_lists(model, table, indexed_R, kind, options.recall, earlier, reporter)
        lists, probes, measured, seconds = made
        lists.write(folder / INDEX_FILE)
        _write_rows(model, entity, indexed_R, folder / ROWS_FILE)
        card = IndexCard(
            model=describe_model(model, entity, rows_N),
            entity=entity,
            metric=metric,
            rows=len(rows_N),
            dim=table.dim,
            library_version=faiss.__version__,
            index=IndexParameters(
                codes=options.codes,
                columns=table.dim + kind.added_columns(table.dim),
                lists=lists.lists,
                probes=probes,
            ),
            measured=measured,
            files=checksums_of(folder),
            build_seconds=round(seconds, 3),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        (folder / CARD_FILE).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return card


def _blocks(
    model: TrainedModel, table: TableSpec, kept_R: BoolArray, phase: str, reporter: ProgressReporter
) -> Iterator[tuple[IntArray, FloatArray]]:
    """Yield the rows in ``kept_R`` and their vectors, from front to back, so that checksums are verified."""
    reporter.phase(phase, table.rows, "row")
    for first in range(0, table.rows, GROUP_ROWS):
        block_N = np.arange(first, min(first + GROUP_ROWS, table.rows), dtype=np.int64)
        vectors_ND = model.vectors.vectors(table.name, block_N)
        kept_N = kept_R[block_N]
        yield block_N[kept_N], vectors_ND[kept_N]
        reporter.advance(len(block_N))


def _make_lists(
    model: TrainedModel,
    table: TableSpec,
    indexed_R: BoolArray,
    options: ListOptions,
    recall: float,
    earlier: EarlierIndex | None,
    reporter: ProgressReporter,
) -> tuple[VectorLists, int, IndexMeasurements, float]:
    """Continue ``earlier``, or find lists; return them, how many a search scans, the figures, and seconds to build."""
    start = time.perf_counter()
    if earlier is not None and (lists := _continue(model, table, earlier, indexed_R, options, reporter)) is not None:
        seconds, most = time.perf_counter() - start, read_card(earlier.folder).index.probes
        found = _measure(model, table, lists, indexed_R, options.metric, recall, reporter, most)
        if found is not None:
            return lists, *found, seconds
    lists = _train(model, table, np.flatnonzero(indexed_R), options, reporter)
    _add(model, table, lists, indexed_R, reporter)
    seconds = time.perf_counter() - start
    found = _measure(model, table, lists, indexed_R, options.metric, recall, reporter)
    assert found is not None, "there is no limit"
    return lists, *found, seconds


def _add(
    model: TrainedModel, table: TableSpec, lists: VectorLists, added_R: BoolArray, reporter: ProgressReporter
) -> None:
    for block_N, vectors_ND in _blocks(model, table, added_R, "add", reporter):
        lists.add(block_N, vectors_ND)


def _continue(
    model: TrainedModel,
    table: TableSpec,
    earlier: EarlierIndex,
    indexed_R: BoolArray,
    options: ListOptions,
    reporter: ProgressReporter,
) -> VectorLists | None:
    """Load the lists of ``earlier``, and move the vectors that have changed; None if lists should be found anew."""
    had_R = np.zeros(table.rows, np.bool_)
    earlier_R = indexed_rows(earlier.model, table.name)
    had_R[: len(earlier_R)] = earlier_R
    changed_R = indexed_R & ~had_R
    for block_N, vectors_ND in _blocks(model, table, indexed_R & had_R, "compare", reporter):
        before_ND = earlier.model.vectors.vectors(table.name, block_N)
        changed_R[block_N] = (vectors_ND != before_ND).any(axis=1)
    lists = VectorLists.load(earlier.folder / INDEX_FILE, options)
    if num_lists(np.count_nonzero(indexed_R)) > _MOST_GROWN * lists.lists:
        return None
    lists.remove(had_R & (changed_R | ~indexed_R))
    _add(model, table, lists, changed_R, reporter)
    return lists


def _train(
    model: TrainedModel, table: TableSpec, rows_N: IntArray, options: ListOptions, reporter: ProgressReporter
) -> VectorLists:
    """Find the lists by a random sample of ``rows_N``, and the length of the longest vector."""
    count = min(len(rows_N), SAMPLES_PER_LIST * num_lists(len(rows_N)))
    kept_R, sampled_R = np.zeros(table.rows, np.bool_), np.zeros(table.rows, np.bool_)
    kept_R[rows_N] = True
    sampled_R[np.random.default_rng(_SEED).choice(rows_N, count, replace=False)] = True
    sample_ND, longest, filled = np.empty((count, table.dim), np.float32), 0.0, 0
    for block_N, vectors_ND in _blocks(model, table, kept_R, "sample", reporter):
        chosen_ND = vectors_ND[sampled_R[block_N]]
        sample_ND[filled : filled + len(chosen_ND)] = chosen_ND
        filled += len(chosen_ND)
        longest = max(longest, float(np.sqrt(np.square(vectors_ND).sum(axis=1).max(initial=0))))
    reporter.phase("find lists", None, "row")
    return VectorLists.train(sample_ND, len(rows_N), options, longest)


def _measure(
    model: TrainedModel,
    table: TableSpec,
    lists: VectorLists,
    indexed_R: BoolArray,
    metric: ScoreKind,
    target: float,
    reporter: ProgressReporter,
    most: int | None = None,
) -> tuple[int, IndexMeasurements] | None:
    """Choose the lists that a search scans, by comparison with exact search; return their number, and the figures.

    None if ``most`` of the lists are too few. Items are searched for queries, if by the model's score, and everything
    else for its own rows.
    """
    is_recommending = table == model.spec.item and metric == model.job.model.score
    source = model.spec.query if is_recommending else table
    query_QD, excluded = _measured_queries(model, source, excludes_itself=not is_recommending)
    count, score = len(query_QD), Score.of(metric, 1.0)
    # Compile kernels, which may take longer than the ranking.
    rank_vectors(query_QD[:1], score, 1, lambda _: query_QD[:1], excluded.slice(0, 1), MEASURED_DEPTH)
    reporter.phase("search exactly", count, source.name)
    ranker = Ranker(model.vectors, table, score, Candidates(indexed_R))
    start = time.perf_counter()
    truth_QK, _ = ranker.rank(query_QD, excluded, MEASURED_DEPTH)
    exact_speed = count / (time.perf_counter() - start)
    probes = max(1, (most or 0) // 2)
    while True:
        reporter.phase(f"search {probes} of {lists.lists} lists", count, source.name)
        start = time.perf_counter()
        # One more, since a row may find itself.
        best = lists.search(query_QD, MEASURED_DEPTH + 1, probes)
        found_QK, _ = without_excluded(*best, excluded, MEASURED_DEPTH, len(indexed_R))
        speed = count / (time.perf_counter() - start)
        recall = _recall(found_QK, truth_QK)
        if recall >= target or probes >= lists.lists:
            break
        if probes == most:
            return None
        probes = min(2 * probes, most or lists.lists)
    return probes, IndexMeasurements(
        query_entity=source.name,
        queries=count,
        recall_at_10=round(_recall(found_QK[:, :10], truth_QK[:, :10]), 6),
        recall_at_100=round(recall, 6),
        exact_queries_per_second=round(exact_speed, 1),
        queries_per_second=round(speed, 1),
        threads=get_num_threads(),
    )


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
