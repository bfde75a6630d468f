"""Build an index of a model's vectors, in blocks, and compare it with exact search.

    card = build_index(model, IndexOptions(out="indexes/lastfm"), NullReporter())
    card.probes, card.measured.recall_at_100

A sample of the vectors finds the lists by k-means; then all are added to the index as they are read. The number of
lists that a search scans is the smallest power of 2 that reaches the requested recall.

Shapes: N rows, Q queries, K ranks, R rows of the entity, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.checksums import checksums_of
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.files import GROUP_ROWS, staged_export
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.faiss_lists import SAMPLES_PER_LIST, VectorLists, load_faiss, num_lists
from crossfade.trainer.recommend.options import IndexOptions
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.trained_model import TrainedModel
from crossfade.trainer.recommend.vector_index import (
    CARD_FILE,
    INDEX_FILE,
    MEASURED_DEPTH,
    IndexCard,
    IndexedModel,
    IndexMeasurements,
    check_free,
    vectors_crc32,
    without_excluded,
)

_MEASURED_QUERIES = 1000
_SEED = 0


def build_index(model: TrainedModel, options: IndexOptions, reporter: ProgressReporter) -> IndexCard:
    """Build the index, and return its card.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: ``out`` cannot be written.
        InputError: the model has no vectors of the entity, or ``out`` may not be replaced.
        MissingExtraError: FAISS is not installed.
    """
    load_faiss("crossfade index")
    out = Path(options.out)
    check_free(out, options.overwrite)
    entity, item = options.entity or model.spec.item.name, model.spec.item.name
    metric = options.metric or (model.ranking_metric if entity == item else model.job.model.score)
    model = model.compared_by(metric)
    indexed_R = model.trained_rows(entity)
    if not indexed_R.any():
        raise InputError(f"{model.uri}: no row of '{entity}' has a trained vector")
    table = model.table(entity)
    with staged_export(out, lambda: check_free(out, options.overwrite)) as folder:
        lists = _find_lists(model, table, indexed_R, metric, reporter)
        for block_N, vectors_ND in _blocks(model, table, indexed_R, reporter):
            lists.add(block_N, vectors_ND)
        probes, measured = _measure(model, table, indexed_R, lists, options.recall, reporter)
        lists.write(folder / INDEX_FILE)
        card = IndexCard(
            model=IndexedModel(
                uri=model.uri,
                data_fingerprint=data_fingerprint(model.data),
                crc32=vectors_crc32(model, entity, np.flatnonzero(indexed_R)),
            ),
            entity=entity,
            metric=metric,
            rows=int(np.count_nonzero(indexed_R)),
            dim=table.dim,
            lists=lists.lists,
            probes=probes,
            measured=measured,
            files=checksums_of(folder),
        )
        (folder / CARD_FILE).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return card


def _blocks(
    model: TrainedModel, table: TableSpec, kept_R: BoolArray, reporter: ProgressReporter
) -> Iterator[tuple[IntArray, FloatArray]]:
    """Yield the rows in ``kept_R`` and their vectors, from front to back, so that checksums are verified."""
    reporter.phase("read vectors", table.rows, "row")
    for first in range(0, table.rows, GROUP_ROWS):
        block_N = np.arange(first, min(first + GROUP_ROWS, table.rows), dtype=np.int64)
        kept_N = kept_R[block_N]
        vectors_ND = model.vectors.vectors(table.name, block_N)
        yield block_N[kept_N], vectors_ND[kept_N]
        reporter.advance(len(block_N))


def _find_lists(
    model: TrainedModel, table: TableSpec, indexed_R: BoolArray, metric: ScoreKind, reporter: ProgressReporter
) -> VectorLists:
    """Find the lists, by a random sample and, of dot products, the length of the longest vector."""
    rows_N, longest = np.flatnonzero(indexed_R), 0.0
    if metric == "dot":
        for _, vectors_ND in _blocks(model, table, indexed_R, reporter):
            longest = max(longest, float(np.sqrt(np.square(vectors_ND).sum(axis=1).max(initial=0))))
    reporter.phase("find lists", None, "row")
    count = min(len(rows_N), SAMPLES_PER_LIST * num_lists(len(rows_N)))
    sample_N = np.sort(np.random.default_rng(_SEED).choice(rows_N, count, replace=False))
    return VectorLists.train(model.vectors.vectors(table.name, sample_N), len(rows_N), metric, longest)


def _measure(
    model: TrainedModel,
    table: TableSpec,
    indexed_R: BoolArray,
    lists: VectorLists,
    target: float,
    reporter: ProgressReporter,
) -> tuple[int, IndexMeasurements]:
    """Choose how many of the ``lists`` a search scans, by comparison with exact search.

    Items are searched for queries, if by the model's score, and everything else for its own rows.
    """
    is_recommending = table == model.spec.item and lists.metric == model.job.model.score
    source = model.spec.query if is_recommending else table
    query_QD, excluded = _measured_queries(model, source, excludes_itself=not is_recommending)
    reporter.phase("search exactly", len(query_QD), source.name)
    ranker = Ranker(model.vectors, table, Score.of(lists.metric, 1.0), Candidates(indexed_R))
    truth_QK, _ = ranker.rank(query_QD, excluded, MEASURED_DEPTH)
    probes, recall = 0, -1.0
    while recall < target and probes < lists.lists:
        probes = min(max(1, 2 * probes), lists.lists)
        reporter.phase(f"search {probes} of {lists.lists} lists", len(query_QD), source.name)
        # One more, since a row may find itself.
        best = lists.search(query_QD, MEASURED_DEPTH + 1, probes)
        found_QK, _ = without_excluded(*best, excluded, MEASURED_DEPTH, len(indexed_R))
        recall = round(_recall(found_QK, truth_QK), 6)
    return probes, IndexMeasurements(query_entity=source.name, queries=len(query_QD), recall_at_100=recall)


def _measured_queries(
    model: TrainedModel, table: TableSpec, *, excludes_itself: bool
) -> tuple[FloatArray, JaggedArray]:
    """Return the vectors of some rows of ``table``, and which rows each is not compared with."""
    queries_N = np.flatnonzero(model.trained_rows(table.name))
    count = min(_MEASURED_QUERIES, len(queries_N))
    queries_Q = np.sort(np.random.default_rng(_SEED).choice(queries_N, count, replace=False))
    excluded = JaggedArray(np.arange(count + 1), queries_Q) if excludes_itself else JaggedArray.empty(count)
    return model.vectors.vectors(table.name, queries_Q), excluded


def _recall(found_QK: IntArray, truth_QK: IntArray) -> float:
    """Return the mean share of the nearest rows that are found."""
    shares = [
        float(np.isin(true_K[true_K >= 0], found_K).mean())
        for found_K, true_K in zip(found_QK, truth_QK, strict=True)
        if true_K[0] >= 0
    ]
    return float(np.mean(shares)) if shares else 1.0
