"""Recommend to queries that options name and, into one file, to millions, in parts of bounded memory.

    recommend_to(model, RecommendToOptions.of(source="runs/lastfm", customer=["2"]), reporter, print)

    QUERY, rank int32 (from 1), ITEM, score float32, ITEM_name if the dataset has names of items, and is_fallback if
    popular items are recommended to queries without a trained vector

The file appears when it is complete. Histories are first written to temporary files, in one pass over the interactions.

Shapes: Q queries, K ranks, N elements of anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray
from crossfade.base.errors import MissingExtraError, Option
from crossfade.base.io.disk_errors import TEMPORARY_ADVICE, full_disk_errors
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.checkpoint_source import Log
from crossfade.trainer.recommend.candidates import read_lists
from crossfade.trainer.recommend.history import Histories, write_histories
from crossfade.trainer.recommend.model import Model, Rankings
from crossfade.trainer.recommend.options import RecommendOptions, RecommendToOptions
from crossfade.trainer.recommend.queries import Queries, all_queries, find_queries, read_queries
from crossfade.trainer.recommend.row_names import RowLabel
from crossfade.trainer.recommend.table_files import write_output

MAX_PART_QUERIES = 1 << 16
_MAX_PART_RANKS = 1 << 24
"""Ranks of a part's queries, unless a single query has more."""


@dataclass(frozen=True)
class Recommended:
    """What was recommended.

    Attributes:
        queries: to how many.
        rows: recommendations that were written; the following are empty then.
        labels: ID and name of each query; the ID of somebody new may be empty.
        rankings: the items.
        histories: what each query has interacted with.
        fallback_Q: which get popular items for want of a trained vector, bool (Q,); None: such queries get nothing.
    """

    queries: int
    rows: int = 0
    labels: Sequence[RowLabel] = ()
    rankings: Rankings | None = None
    histories: Histories | None = None
    fallback_Q: BoolArray | None = None


def recommend_to(model: Model, options: RecommendToOptions, reporter: ProgressReporter, log: Log) -> Recommended:
    """Recommend to the queries that ``options`` name; ``log`` gets a line for those that are left out.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: the file cannot be written.
        InputError: a query or item is unknown, an option is invalid, or the file cannot be written.
    """
    options = read_lists(options, model.item)
    if options.history:
        rows_N = model.find(model.item, options.history, trained=False)
        histories = model.make_histories([rows_N], [np.ones(len(rows_N), np.float32)])
        rankings = model.recommend_to_histories(histories, options)
        if options.out is not None:
            return Recommended(
                1, write_output(Path(options.out), [recommendation_table(model, pa.array([""]), rankings)])
            )
        return Recommended(1, 0, [RowLabel("", None)], rankings, histories)
    if options.engine == "spark":
        return _on_spark(model, options)
    if options.all:
        queries = all_queries(model, options.on_unknown)
    elif options.customers is not None:
        queries = read_queries(model, options.customers, options.on_unknown, log)
    else:
        queries = find_queries(model, options.customer, options.on_unknown, log)
    rows_Q = queries.rows_Q
    if options.out is not None:
        return Recommended(
            len(rows_Q), write_output(Path(options.out), _tables(model, queries.by_row(), options, reporter))
        )
    rankings, histories = model.recommend(rows_Q, options, reporter), model.histories(rows_Q, reporter=reporter)
    found, ids = model.labels(model.query, rows_Q[rows_Q >= 0].tolist()), queries.ids(model).to_pylist()
    labels = [found.get(row) or RowLabel(id, None) for row, id in zip(rows_Q.tolist(), ids, strict=True)]
    return Recommended(len(rows_Q), 0, labels, rankings, histories, _fallback(model, queries, options))


def _on_spark(model: Model, options: RecommendToOptions) -> Recommended:
    try:
        import_module("pandas")  # PySpark needs it, and does not require it
        spark_bulk = import_module("crossfade.trainer.recommend.spark_bulk")
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "pyspark", "spark", Option("engine", "spark")) from error
    found: Recommended = spark_bulk.recommend_on_spark(model, options)
    return found


def _tables(
    model: Model, queries: Queries, options: RecommendOptions, reporter: ProgressReporter
) -> Iterator[pa.Table]:
    """Yield the recommendations to ``queries`` in parts, at least one, with the histories of all in temporary files."""
    parts = list(_parts(model, queries, options))
    if len(parts) == 1:
        yield _table_of(model, queries, model.recommend(queries.rows_Q, options, reporter), options)
        return
    selection = model.select_items(options)
    with temporary_folder("histories") as work:
        with full_disk_errors(work, TEMPORARY_ADVICE), closing(model.trained.open_lineage()) as lineage:
            histories = write_histories(lineage, options.exclude, work, reporter)
        reporter.phase("recommend", len(queries.rows_Q), model.query)
        for part in parts:
            rankings = model.rank(selection, part.rows_Q, histories.take(part.rows_Q).lists, options)
            yield _table_of(model, part, rankings, options)
            reporter.advance(len(part.rows_Q))


def _parts(model: Model, queries: Queries, options: RecommendOptions) -> Iterator[Queries]:
    """Yield ``queries`` in parts, of which one is ranked at a time: at least one, which may be empty."""
    depth = min(options.depth(options.k), model.tables[model.item].rows)
    step = max(1, min(MAX_PART_QUERIES, _MAX_PART_RANKS // depth))
    for start in range(0, max(len(queries.rows_Q), 1), step):
        yield queries.take(slice(start, start + step))


def recommend_to_queries(model: Model, queries: Queries, options: RecommendOptions) -> pa.Table:
    """Recommend to ``queries``, a part at a time, and return the table of the module.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: an option is invalid or leaves no item, or the dataset cannot be read.
    """
    parts = _parts(model, queries, options)
    return pa.concat_tables(_table_of(model, part, model.recommend(part.rows_Q, options), options) for part in parts)


def _table_of(model: Model, queries: Queries, rankings: Rankings, options: RecommendOptions) -> pa.Table:
    return recommendation_table(model, queries.ids(model), rankings, _fallback(model, queries, options))


def _fallback(model: Model, queries: Queries, options: RecommendOptions) -> BoolArray | None:
    """Return which of ``queries`` get popular items, bool (Q,); None unless ``options`` ask for that."""
    return ~model.has_vector(queries.rows_Q) if options.on_unknown == "popular" else None


def recommendation_table(
    model: Model, ids: pa.Array, rankings: Rankings, fallback_Q: BoolArray | None = None
) -> pa.Table:
    """Return a row for each item recommended to the queries with ``ids``, by query, then by rank.

    ``fallback_Q`` becomes the column is_fallback. The IDs and names of all items stay in memory.
    """
    count = rankings.rows_QK.shape[1]
    kept_N = rankings.rows_QK.ravel() >= 0
    item_N = pa.array(rankings.rows_QK.ravel()[kept_N])
    number_N = pa.array(np.repeat(np.arange(len(ids)), count)[kept_N])
    columns = {
        model.query: ids.take(number_N),
        "rank": np.tile(np.arange(1, count + 1, dtype=np.int32), len(ids))[kept_N],
        model.item: model.item_columns["id"].take(item_N),
        "score": rankings.scores_QK.ravel()[kept_N],
    }
    if "name" in model.item_columns:
        columns[f"{model.item}_name"] = model.item_columns["name"].take(item_N)
    if fallback_Q is not None:
        columns["is_fallback"] = np.repeat(fallback_Q, count)[kept_N]
    return pa.table(columns)
