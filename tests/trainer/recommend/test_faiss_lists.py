"""The inverted file: scores and rankings of each metric and kind of codes, against those of exact search."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.faiss_lists import VectorLists
from crossfade.trainer.recommend.top_k import rank_vectors

ROWS, QUERIES, DIM = 4000, 50, 16
METRICS: tuple[ScoreKind, ...] = get_args(ScoreKind)


def clustered() -> tuple[FloatArray, FloatArray]:
    """Draw vectors in clusters, whose lengths differ by a factor of 20, and queries."""
    random = np.random.default_rng(3)
    center_CD = random.standard_normal((40, DIM), np.float32)
    vectors_ND = center_CD[random.integers(0, 40, ROWS)] + 0.5 * random.standard_normal((ROWS, DIM), np.float32)
    vectors_ND *= random.lognormal(0, 0.5, (ROWS, 1)).astype(np.float32)
    return vectors_ND, center_CD[random.integers(0, 40, QUERIES)] + random.standard_normal((QUERIES, DIM), np.float32)


def build(vectors_ND: FloatArray, metric: ScoreKind) -> VectorLists:
    """Index ``vectors_ND`` in three blocks, as the even rows."""
    longest = float(np.linalg.norm(vectors_ND, axis=1).max())
    lists = VectorLists.train(vectors_ND[::2], len(vectors_ND), metric, longest)
    for block_N in np.array_split(np.arange(len(vectors_ND)), 3):
        lists.add(2 * block_N, vectors_ND[block_N])
    return lists


def exact(metric: ScoreKind, vectors_ND: FloatArray, query_QD: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
    nothing = JaggedArray.empty(len(query_QD))
    score = Score.of(metric, 1.0)
    rows_QK, scores_QK = rank_vectors(
        query_QD, score, len(vectors_ND), lambda rows_E: vectors_ND[rows_E], nothing, depth
    )
    return rows_QK, scores_QK - score.norm_scale * np.square(query_QD).sum(axis=1, keepdims=True)


def recall(found_QK: IntArray, truth_QK: IntArray) -> float:
    return float(np.mean([np.isin(truth_K, found_K) for found_K, truth_K in zip(found_QK, truth_QK, strict=True)]))


@pytest.mark.parametrize("metric", METRICS)
def test_all_lists_of_flat_codes_rank_exactly(metric: ScoreKind) -> None:
    vectors_ND, query_QD = clustered()
    lists = build(vectors_ND, metric)
    truth_QK, truth_scores_QK = exact(metric, vectors_ND, query_QD, 20)
    rows_QK, scores_QK = lists.search(query_QD, 20, lists.lists)
    # Scores that round to the same number may be in another order.
    assert np.mean(rows_QK == 2 * truth_QK) > 0.99
    np.testing.assert_allclose(scores_QK, truth_scores_QK, rtol=2e-4, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_some_lists_find_most_neighbors(metric: ScoreKind) -> None:
    vectors_ND, query_QD = clustered()
    lists = build(vectors_ND, metric)
    truth_QK = 2 * exact(metric, vectors_ND, query_QD, 20)[0]
    found = [recall(lists.search(query_QD, 20, probes)[0], truth_QK) for probes in (1, 16, 64, lists.lists)]
    assert found[0] < 0.9 < found[2]
    assert found[0] < found[1] < found[3]
    # Without the further column, a search of 16 of 250 lists finds a fifth of the largest inner products.
    assert found[1] > 0.9 or metric != "dot"


def test_file_that_is_no_index_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="is no index that FAISS can read"):
        VectorLists.read(tmp_path / "index", "cosine")
