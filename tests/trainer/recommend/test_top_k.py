"""Exact top-k rankings against a stable sort of all scores, and the same for any tiles, threads, and processor."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_runs import ArrayVectors

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.recommend import top_k
from crossfade.trainer.recommend.top_k import rank_items, rank_vectors

DRIVER = Path(__file__).parents[2] / "support" / "drive_rankings.py"


def integers(rows: int, dim: int, seed: int) -> FloatArray:
    """Return vectors of small integers: scores are exact in any order of summation, and often equal."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, dim)).astype(np.float32)


def lists_of(excluded_QI: BoolArray) -> JaggedArray:
    return JaggedArray.of([np.flatnonzero(excluded_I) for excluded_I in excluded_QI])


def rank(
    query_QD: FloatArray, item_ID: FloatArray, excluded_QI: BoolArray, depth: int, score: Score
) -> tuple[IntArray, FloatArray]:
    return rank_vectors(
        query_QD,
        score,
        len(item_ID),
        lambda row_E: item_ID[row_E],
        lists_of(excluded_QI),
        depth,
    )


def assert_same(found: tuple[IntArray, FloatArray], expected: tuple[IntArray, FloatArray]) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_scores_of_both_zeros_are_ties() -> None:
    item_ID = np.array([[-0.0], [0.0], [-0.0], [1.0], [-1.0]], np.float32)
    items_QK, _ = rank(np.ones((1, 1), np.float32), item_ID, np.zeros((1, 5), bool), 5, Score.of("dot", 1.0))
    assert items_QK.tolist() == [[3, 0, 1, 2, 4]]


def test_infinite_and_undefined_scores() -> None:
    item_ID = np.array([[np.nan], [1.0], [np.inf], [-np.inf], [-1e38]], np.float32)
    items_QK, scores_QK = rank(np.ones((1, 1), np.float32), item_ID, np.zeros((1, 5), bool), 4, Score.of("dot", 1.0))
    assert items_QK.tolist() == [[2, 1, 4, -1]]
    assert scores_QK.tolist() == [[np.inf, 1.0, np.float32(-1e38), -np.inf]]


def test_ranking_of_no_items_and_of_no_queries() -> None:
    none = rank(integers(2, 3, 1), integers(0, 3, 2), np.zeros((2, 0), bool), 3, Score.of("dot", 1.0))
    assert none[0].tolist() == [[-1] * 3] * 2
    assert none[1].tolist() == [[-np.inf] * 3] * 2
    assert rank(integers(0, 3, 1), integers(5, 3, 2), np.zeros((0, 5), bool), 3, Score.of("dot", 1.0))[0].shape == (
        0,
        3,
    )


def test_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    query_QD, item_ID = (rng.normal(size=(rows, 64)).astype(np.float32) for rows in (600, 1500))
    arguments = query_QD, item_ID, rng.random((600, 1500)) < 0.05, 30, Score.of("cosine", 0.2)
    expected = rank(*arguments)
    for threads in (1, 3, 8):
        monkeypatch.setattr(top_k, "get_num_threads", lambda threads=threads: threads)
        assert_same(rank(*arguments), expected)


def near_ties(rows: int, dim: int, rng: np.random.Generator) -> FloatArray:
    """Return vectors of which many are equal, and others differ in their last bits: products order them by chance."""
    base_ND = rng.normal(size=(max(1, rows // 20), dim))[rng.integers(0, max(1, rows // 20), rows)]
    moved_N1 = rng.random((rows, 1)) < 0.5
    vectors_ND: FloatArray = (base_ND * (1 + moved_N1 * rng.normal(size=(rows, dim)) * 1e-7)).astype(np.float32)
    return vectors_ND


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["dot", "cosine", "euclidean"]),
    dim=st.sampled_from([1, 3, 16, 50]),
    depth=st.sampled_from([1, 7, 30, 400]),
    items=st.integers(1, 300),
    temperature=st.sampled_from([1.0, 0.07]),
    is_damped=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
def test_ranking_does_not_depend_on_blocks_or_other_queries(
    kind: ScoreKind, dim: int, depth: int, items: int, temperature: float, is_damped: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    query_QD, item_ID = near_ties(70, dim, rng), near_ties(items, dim, rng)
    query_QD[3] = 0
    excluded_QI = rng.random((70, items)) < 0.1
    penalty_I = rng.random(items).astype(np.float32) if is_damped else None
    if penalty_I is not None:
        penalty_I[rng.random(items) < 0.2] = np.inf
    score = Score.of(kind, temperature)

    def ranked(first: int, end: int) -> tuple[IntArray, FloatArray]:
        excluded = lists_of(excluded_QI[first:end])
        return rank_vectors(query_QD[first:end], score, items, lambda row_E: item_ID[row_E], excluded, depth, penalty_I)

    whole = ranked(0, 70)
    assert_sorted_by_exact_scores(query_QD, item_ID, excluded_QI, depth, score, penalty_I, whole)
    for size in (1, 7, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(top_k, "QUERY_BLOCK", size)
            patch.setattr(top_k, "_TILE_SCORES", 3 * size)
            patch.setattr(top_k, "_ITEM_BLOCK", 5 * size)
            assert_same(ranked(0, 70), whole)
        parts = [ranked(first, min(first + size, 70)) for first in range(0, 70, size)]
        assert_same((np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])), whole)


def assert_sorted_by_exact_scores(
    query_QD: FloatArray,
    item_ID: FloatArray,
    excluded_QI: BoolArray,
    depth: int,
    score: Score,
    penalty_I: FloatArray | None,
    found: tuple[IntArray, FloatArray],
) -> None:
    """Compare with a stable sort of scores in float64, rounded to float32."""
    if score.normalized:
        query_QD, item_ID = top_k.unit_rows(query_QD), top_k.unit_rows(item_ID)
    item_ID = item_ID.astype(np.float64)
    for q, query_D in enumerate(query_QD.astype(np.float64)):
        score_I = score.dot_scale * (item_ID * query_D).sum(axis=1) - score.norm_scale * np.square(item_ID).sum(axis=1)
        score_I = (score_I if penalty_I is None else score_I - penalty_I).astype(np.float32)
        kept_I = np.flatnonzero(~excluded_QI[q] & (score_I > -np.inf))
        best_K = kept_I[np.argsort(-score_I[kept_I], kind="stable")[:depth]]
        assert found[0][q].tolist() == [*best_K, *[-1] * (depth - len(best_K))]
        np.testing.assert_array_equal(found[1][q][: len(best_K)], score_I[best_K])


@pytest.mark.parametrize("kind", ["dot", "cosine", "euclidean"])
def test_ranking_of_some_items_is_the_part_of_that_of_all(kind: ScoreKind) -> None:
    rng = np.random.default_rng(5)
    tables = {name: rng.normal(size=(rows, 8)).astype(np.float32) for name, rows in (("customer", 40), ("track", 90))}
    item_I, queries_Q = np.flatnonzero(rng.random(90) < 0.4), np.arange(40)
    score = replace(Score.of(kind, 0.3), offset_I=rng.normal(size=90) if kind == "cosine" else None)
    model = ModelSpec(TableSpec("customer", 40, 8, 0.1), TableSpec("track", 90, 8, 0.1), score)
    excluded = lists_of(rng.random((40, 90)) < 0.1)
    source = ArrayVectors(tables)
    all_QK, score_QK = rank_items(source, model, queries_Q, excluded, 90)
    some_QK, some_score_QK = rank_items(source, model, queries_Q, excluded, 20, item_I=item_I)
    for q in queries_Q:
        chosen_K = np.isin(all_QK[q], item_I)
        expected_K = all_QK[q][chosen_K][:20]
        assert some_QK[q][: len(expected_K)].tolist() == expected_K.tolist()
        np.testing.assert_array_equal(some_score_QK[q][: len(expected_K)], score_QK[q][chosen_K][:20])


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are those of x86-64")
def test_ranking_is_the_same_with_the_kernels_of_any_processor() -> None:
    settings_by_name: dict[str, dict[str, str]] = {
        "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
        "Zen": {"OPENBLAS_CORETYPE": "Zen"},
        "Sandybridge": {"OPENBLAS_CORETYPE": "Sandybridge"},
        "Nehalem": {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"},
        "generic": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    }
    products, rankings = {}, {}
    for name, variables in settings_by_name.items():
        environment = {**os.environ, **variables}
        done = subprocess.run([sys.executable, DRIVER], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        products[name], rankings[name] = done.stdout.split()
    assert len(set(products.values())) > 1  # the kernels differ
    assert len(set(rankings.values())) == 1
