"""Rankings by an index: a query's ranking is its own, whatever the others exclude."""

import numpy as np
import pytest
from written_runs import ArrayVectors

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.faiss_lists import VectorLists
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.vector_index import IndexRanker, VectorIndex

pytestmark = pytest.mark.slow

ROWS, QUERIES, DIM, DEPTH = 4000, 60, 8, 20


def test_ranking_of_a_query_does_not_depend_on_other_queries() -> None:
    random = np.random.default_rng(1)
    vectors_RD, query_QD = (random.standard_normal((rows, DIM), np.float32) for rows in (ROWS, QUERIES))
    lists = VectorLists.train(vectors_RD, ROWS, "cosine", 1.0)
    lists.add(np.arange(ROWS), vectors_RD)
    kept_R = np.ones(ROWS, np.bool_)
    ranker = IndexRanker(
        VectorIndex(lists, 2, kept_R),
        ArrayVectors({"track": vectors_RD}),
        TableSpec("track", ROWS, DIM, 0.1),
        Score.of("cosine", 1.0),
        Candidates(kept_R),
    )
    # The more exclusions, the more lists are scanned.
    excluded = [np.sort(random.choice(ROWS, size, replace=False)) for size in random.integers(0, 900, QUERIES)]
    rows_QK, scores_QK = ranker.rank(query_QD, JaggedArray.of(excluded), DEPTH)
    for query in range(QUERIES):
        [rows_K], [scores_K] = ranker.rank(query_QD[query : query + 1], JaggedArray.of([excluded[query]]), DEPTH)
        assert rows_K.tolist() == rows_QK[query].tolist()
        np.testing.assert_array_equal(scores_K, scores_QK[query])


class EmbeddingFileVectors(ArrayVectors):
    """As embeddings in files: without a column if no row is asked for."""

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``."""
        return super().vectors(entity, rows_N) if len(rows_N) else np.empty((0, 0), np.float32)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_candidates_of_lists_that_are_not_scanned_first_are_found(metric: ScoreKind) -> None:
    random = np.random.default_rng(2)
    vectors_RD, query_QD = (random.standard_normal((rows, DIM), np.float32) for rows in (ROWS, QUERIES))
    longest = float(np.linalg.norm(vectors_RD, axis=1).max())
    lists = VectorLists.train(vectors_RD, ROWS, metric, longest)
    lists.add(np.arange(ROWS), vectors_RD)
    kept_R = np.zeros(ROWS, np.bool_)
    kept_R[random.choice(ROWS, 30, replace=False)] = True
    table, score = TableSpec("track", ROWS, DIM, 0.1), Score.of(metric, 1.0)
    source = EmbeddingFileVectors({"track": vectors_RD})
    index = VectorIndex(lists, 1, np.ones(ROWS, np.bool_))
    nothing = JaggedArray.empty(QUERIES)
    rows_QK, scores_QK = IndexRanker(index, source, table, score, Candidates(kept_R)).rank(query_QD, nothing, 30)
    exact_QK, exact_scores_QK = Ranker(source, table, score, Candidates(kept_R)).rank(query_QD, nothing, 30)
    assert rows_QK.tolist() == exact_QK.tolist()
    np.testing.assert_allclose(scores_QK, exact_scores_QK, rtol=1e-5, atol=1e-5)
