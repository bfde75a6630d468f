"""Re-ranked lists against a plain implementation that compares every candidate with every item listed."""

import numpy as np
import pytest
from builders import ITEM, QUERY, random_rows
from written_runs import ArrayVectors

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.evaluation.held_out import HeldOut
from crossfade.trainer.evaluation.ranking import evaluate
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.recommend import reranking
from crossfade.trainer.recommend.options import RerankingOptions
from crossfade.trainer.recommend.reranking import Reranking

QUERIES, ITEMS, CANDIDATES, DIM, TEMPERATURE = 40, 90, 50, 20, 0.2
COUNTS_R = np.arange(ITEMS) ** 2 % 70
TABLE = TableSpec(ITEM, ITEMS, DIM, 0.1)


TABLES = {QUERY: random_rows(QUERIES, DIM, 1), ITEM: random_rows(ITEMS, DIM, 2)}
SOURCE = ArrayVectors(TABLES)
UNIT_ID = TABLES[ITEM] / np.linalg.norm(TABLES[ITEM], axis=1, keepdims=True)


def reranked(**options: float) -> Reranking:
    return Reranking(RerankingOptions.of(**options), TEMPERATURE)


def best() -> tuple[IntArray, FloatArray]:
    """Return the candidates of each query; the last has three, and the others as many as there are."""
    scores_QI = TABLES[QUERY] @ TABLES[ITEM].T
    rows_QC = np.argsort(-scores_QI, axis=1, kind="stable")[:, :CANDIDATES]
    scores_QC = np.take_along_axis(scores_QI, rows_QC, axis=1).astype(np.float32)
    rows_QC[-1, 3:], scores_QC[-1, 3:] = -1, -np.inf
    return rows_QC, scores_QC


def choose(reranking: Reranking) -> tuple[IntArray, FloatArray]:
    return reranking.choose(*best(), 10, SOURCE, TABLE)


def plain_list(scores: dict[int, float], diversity: float, count: int) -> list[int]:
    """List by maximal marginal relevance; ``scores`` of candidates are in their order."""
    listed: list[int] = []
    while len(listed) < min(count, len(scores)):
        values = {
            item: (1 - diversity) * score / TEMPERATURE
            - diversity * max((float(UNIT_ID[item] @ UNIT_ID[other]) for other in listed), default=0.0)
            for item, score in scores.items()
            if item not in listed
        }
        listed.append(max(values, key=lambda item: values[item]))
    return listed


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.8, 1.0])
def test_lists_are_those_of_maximal_marginal_relevance(diversity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the same whatever the number of vectors in memory."""
    (rows_QC, scores_QC), change = best(), reranked(diversity=diversity)
    rows_QK, scores_QK = choose(change)
    for query in range(QUERIES):
        known = rows_QC[query][rows_QC[query] >= 0]
        scores = {int(row): float(score) for row, score in zip(known, scores_QC[query], strict=False)}
        expected = plain_list(scores, diversity, 10)
        assert rows_QK[query].tolist() == expected + [-1] * (10 - len(expected))
        np.testing.assert_allclose(scores_QK[query, : len(expected)], [scores[item] for item in expected], rtol=1e-5)
    assert np.isneginf(scores_QK[-1, 3:]).all()
    monkeypatch.setattr(reranking, "_MAX_VALUES", 1)
    np.testing.assert_array_equal(choose(change)[0], rows_QK)


def test_metrics_are_of_re_ranked_lists_without_vacant_items() -> None:
    vacant = [3, 17]
    model = ModelSpec(TableSpec(QUERY, QUERIES, DIM, 0.1), TABLE, Score.of("dot", 1.0))
    scores_QI = TABLES[QUERY].astype(float) @ TABLES[ITEM].T.astype(float)
    scores_QI -= 0.4 * TEMPERATURE * np.log(1 + COUNTS_R)
    scores_QI[:, vacant] = -np.inf
    items = [[int(item) for item in np.argsort(-scores_I, kind="stable")[: ITEMS - 2]] for scores_I in scores_QI]
    lists = [
        plain_list({item: float(scores_I[item]) for item in of_query}, 0.6, 5)
        for scores_I, of_query in zip(scores_QI, items, strict=True)
    ]
    nothing = JaggedArray.empty(QUERIES)
    truth = JaggedArray(np.arange(QUERIES + 1), np.array([of_query[2] for of_query in lists]))
    held_out = HeldOut(np.arange(QUERIES), truth, nothing, item_I=np.delete(np.arange(ITEMS), vacant))
    spec, change = EvaluateConfig(k=[2, 3, 5], best_metric="ndcg@3"), reranked(popularity_damping=0.4, diversity=0.6)
    metrics = evaluate(SOURCE, model, held_out, spec, COUNTS_R, np.asarray, reranking=change)
    assert [metrics[f"recall@{k}"] for k in spec.k] == [0.0, 1.0, 1.0]
    assert metrics["coverage@5"] == len({item for of_query in lists for item in of_query}) / (ITEMS - 2)
