"""Rankings by an index: a query's ranking is its own, whatever the others exclude."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from written_runs import ArrayVectors

from crossfade.kvstore.store import TableSpec
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.faiss_lists import ListOptions, VectorLists
from crossfade.trainer.recommend.index_search import IndexRanker, VectorIndex
from crossfade.trainer.recommend.options import Codes
from crossfade.trainer.recommend.trained_model import TrainedModel

pytestmark = pytest.mark.slow

ROWS, QUERIES, DIM, DEPTH = 4000, 60, 8, 20


@pytest.mark.parametrize("codes", ["flat", "pq"])
def test_ranking_of_a_query_does_not_depend_on_other_queries(codes: Codes) -> None:
    random = np.random.default_rng(1)
    vectors_RD, query_QD = (random.standard_normal((rows, DIM), np.float32) for rows in (ROWS, QUERIES))
    lists = VectorLists.train(vectors_RD, ROWS, ListOptions("cosine", codes), 1.0)
    lists.add(np.arange(ROWS), vectors_RD)
    kept_R = np.ones(ROWS, np.bool_)
    model = cast(TrainedModel, SimpleNamespace(vectors=ArrayVectors({"track": vectors_RD})))
    ranker = IndexRanker(
        VectorIndex(lists, 2, kept_R, "1"),
        model,
        TableSpec("track", ROWS, DIM, 0.1),
        Score.of("cosine", 1.0),
        Candidates(kept_R),
    )
    # The more exclusions, the more lists are scanned.
    excluded = [np.sort(random.choice(ROWS, size, replace=False)) for size in random.integers(0, 900, QUERIES)]
    starts_Q1 = np.concatenate([[0], np.cumsum([len(rows_N) for rows_N in excluded])])
    rows_QK, scores_QK = ranker.rank(query_QD, ItemLists(starts_Q1, np.concatenate(excluded)), DEPTH)
    for query in range(QUERIES):
        alone = ItemLists(np.array([0, len(excluded[query])]), excluded[query])
        [rows_K], [scores_K] = ranker.rank(query_QD[query : query + 1], alone, DEPTH)
        assert rows_K.tolist() == rows_QK[query].tolist()
        np.testing.assert_array_equal(scores_K, scores_QK[query])
