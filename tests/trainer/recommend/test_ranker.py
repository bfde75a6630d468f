"""Rankings of candidates against a plain sort of all scores."""

import numpy as np
import pytest
from written_runs import ArrayVectors

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.ranker import Ranker

QUERIES, ITEMS, DIM = 30, 200, 4


class Case:
    """Random vectors, exclusions, candidates, damping and groups."""

    def __init__(self, kind: ScoreKind) -> None:
        generator = np.random.default_rng(3)
        self.score = Score.of(kind, 1.0)
        self.kind = kind
        self.query_QD = generator.standard_normal((QUERIES, DIM)).astype(np.float32)
        self.item_ID = generator.standard_normal((ITEMS, DIM)).astype(np.float32)
        self.kept_R = generator.random(ITEMS) < 0.6
        self.damping_R = generator.random(ITEMS).astype(np.float32)
        self.excluded = [np.sort(generator.choice(ITEMS, 20, replace=False)) for _ in range(QUERIES)]
        self.groups = [np.unique(generator.integers(0, 5, generator.integers(0, 3))) for _ in range(ITEMS)]

    def ranker(self, max_per_group: int = 0) -> Ranker:
        groups = JaggedArray.of(self.groups) if max_per_group else None
        candidates = Candidates(self.kept_R, groups, max_per_group)
        source, table = ArrayVectors({"track": self.item_ID}), TableSpec("track", ITEMS, DIM, 0.1)
        return Ranker(source, table, self.score, candidates, self.damping_R)

    @property
    def lists(self) -> JaggedArray:
        return JaggedArray.of(self.excluded)

    def scores(self, query: int) -> FloatArray:
        query_D, item_ID = self.query_QD[query], self.item_ID
        if self.kind == "euclidean":
            return -np.square(item_ID - query_D).sum(axis=1) - self.damping_R
        if self.kind == "cosine":
            query_D, item_ID = query_D / np.linalg.norm(query_D), item_ID / np.linalg.norm(item_ID, axis=1)[:, None]
        scores_I: FloatArray = item_ID @ query_D - self.damping_R
        return scores_I

    def expected(self, query: int, count: int, max_per_group: int) -> list[int]:
        chosen: list[int] = []
        members = dict.fromkeys(range(5), 0)
        for item in np.argsort(-self.scores(query), kind="stable"):
            fits = not max_per_group or all(members[group] < max_per_group for group in self.groups[item])
            if self.kept_R[item] and item not in self.excluded[query] and fits and len(chosen) < count:
                chosen.append(int(item))
                for group in self.groups[item]:
                    members[group] += 1
        return chosen


@pytest.mark.parametrize("kind", ["dot", "cosine", "euclidean"])
@pytest.mark.parametrize(("count", "max_per_group"), [(10, 0), (10, 1), (25, 3), (150, 0), (150, 2), (10**12, 0)])
def test_ranking_equals_a_sort_of_all_scores(kind: ScoreKind, count: int, max_per_group: int) -> None:
    case = Case(kind)
    rows_QK, scores_QK = case.ranker(max_per_group).rank(case.query_QD, case.lists, count)
    assert rows_QK.shape == scores_QK.shape == (QUERIES, min(count, int(case.kept_R.sum())))
    for query in range(QUERIES):
        expected = case.expected(query, count, max_per_group)
        assert rows_QK[query, : len(expected)].tolist() == expected
        assert (rows_QK[query, len(expected) :] == -1).all()
        np.testing.assert_allclose(
            scores_QK[query, : len(expected)], case.scores(query)[expected], rtol=1e-5, atol=1e-5
        )
        assert np.isneginf(scores_QK[query, len(expected) :]).all()
