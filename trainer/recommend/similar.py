"""Find the nearest neighbors of rows among the rows of the same entity: by cosine, exactly or by an index.

rows_QK, cosine_QK = similar_rows(model, "artist", np.array([7]), 10, FilterOptions())

Shapes: Q queries, K ranks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import FilterOptions, select_candidates
from crossfade.trainer.recommend.index_search import IndexRanker, open_index
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.trained_model import TrainedModel


def similar_rows(
    model: TrainedModel, entity: str, rows_Q: IntArray, count: int, filters: FilterOptions, index: Path | None = None
) -> tuple[IntArray, FloatArray]:
    """Return the ``count`` rows of ``entity`` nearest to each of ``rows_Q``, int64, other than itself, nearest first.

    ``index`` is the folder of an index to search; None: the ranking is exact.

    Returns:
        Rows, int64 (Q, K), -1 where there are fewer, and cosines, float32 (Q, K).

    Raises:
        InputError: a filter is invalid or leaves no row, the embeddings cannot be read, or the index is another one.
        CheckpointError: the checkpoint is corrupt or cannot be read.
    """
    table = next(table for table in model.spec.vectors if table.name == entity)
    candidates = select_candidates(model.data, model.manifest, entity, filters, model.counts)
    if table in (model.spec.query, model.spec.item):
        # The vectors of other rows are random.
        candidates = replace(candidates, kept_R=candidates.kept_R & model.trained_rows(table))
    unique_rows, place_Q = np.unique(rows_Q, return_inverse=True)
    query_QD = model.vectors.vectors(entity, unique_rows)[place_Q]
    itself = ItemLists(np.arange(len(rows_Q) + 1), rows_Q)
    score = Score.of("cosine", 1.0)
    if index is None:
        ranker = Ranker(model.vectors, table, score, candidates)
    else:
        ranker = IndexRanker(open_index(index, model, entity, "cosine"), model, table, score, candidates)
    return ranker.rank(query_QD, itself, count)
