"""Tuned baselines: their scores, how settings are chosen and kept, and when a run is said to be below a baseline."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from plain_rankings import by_query, make_job, write_pairs
from scipy.sparse import csr_matrix

from crossfade.base.arrays import FloatArray
from crossfade.trainer.data.manifest import BASELINES_FILE
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.evaluation import baselines
from crossfade.trainer.evaluation.baselines import load_baselines
from crossfade.trainer.evaluation.paired_gain import GROUPS
from crossfade.trainer.evaluation.shortfall import compare_with_baselines
from crossfade.trainer.evaluation.tuned_baselines import Ease
from crossfade.trainer.recommend.options import RerankingOptions


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "data")
    return tmp_path / "data"


def pairs_of(queries: int, items: int) -> FloatArray:
    draw = np.random.default_rng(7)
    return (draw.random((queries, items)) < 0.2).astype(np.float32)


def plain_ease(train_RI: FloatArray, penalty: float) -> FloatArray:
    """Return the scores as Steck defines them, by the inverse of the items' side."""
    P = np.linalg.inv(train_RI.T.astype(float) @ train_RI + penalty * np.eye(train_RI.shape[1]))
    B = P / -np.diag(P)
    np.fill_diagonal(B, 0.0)
    return np.asarray(train_RI @ B)


@pytest.mark.parametrize(("queries", "items"), [(40, 15), (15, 40)])
def test_ease_is_its_closed_form_by_the_smaller_side(queries: int, items: int) -> None:
    train_RI = pairs_of(queries, items)
    queries_Q = np.array([3, 0, 7])
    found_QI = Ease(csr_matrix(train_RI)).fit(regularization=5.0)(queries_Q)
    np.testing.assert_allclose(found_QI, plain_ease(train_RI, 5.0)[queries_Q], atol=1e-9)


def test_tuned_baselines_are_kept_and_shown_without_being_asked_for(data: Path) -> None:
    pytest.importorskip("implicit")
    job = make_job(data)
    assert list(load_baselines(job, ["test"])["metrics"]["test"]) == ["popularity", "item_cosine"]
    first = load_baselines(job, ["test"], tuned=NullReporter())
    assert list(first["metrics"]["test"]) == ["popularity", "item_cosine", "als", "ease"]
    kept = json.loads((data / BASELINES_FILE).read_text())
    assert load_baselines(job, ["test"]) == first
    # Settings that were measured before an interruption are not measured again.
    for values in kept["tried"].values():
        values.update(dict.fromkeys(values, 0.0) | {list(values)[-1]: 9.0})
    kept["results"] = {}
    (data / BASELINES_FILE).write_text(json.dumps(kept))
    notes = load_baselines(job, ["test"], tuned=NullReporter())["notes"]
    assert "ease: regularization 3000, chosen on valid by ndcg@4" in notes
    evaluate = job.evaluate.model_copy(update={"k": [4, 7]})
    assert set(
        load_baselines(job.model_copy(update={"evaluate": evaluate}), ["test"], tuned=NullReporter())["notes"]
    ) == set(notes)
    (of_als,) = (note for note in notes if note.startswith("als"))
    assert re.fullmatch(r"als: factors \d+, regularization [\d.]+, alpha [\d.]+, chosen on valid by ndcg@4", of_als)


def test_note_says_how_to_install_implicit_and_what_is_too_large(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    monkeypatch.setattr(baselines, "MAX_SIDE", 20)
    found = load_baselines(make_job(data), ["test"], tuned=NullReporter())
    assert list(found["metrics"]["test"]) == ["popularity", "item_cosine"]
    assert sorted(found["notes"], reverse=True) == [
        "the baseline als needs the package 'implicit', which is not installed here: pip install "
        "'crossfade[baselines]'",
        "ease is not computed: 25 rows of customer, of 20 at most",
    ]
    assert load_baselines(make_job(data), ["test"])["notes"] == []


def test_run_is_below_a_baseline_by_more_than_the_paired_error(data: Path) -> None:
    """The same gap is above the error of paired differences, and below that of two means."""
    job = make_job(data)
    found = load_baselines(job, ["test"])
    baseline, sums = found["metrics"]["test"]["popularity"], np.array(found["sums"]["test"]["popularity"])
    known = by_query("train", "valid")
    queries = sum(bool(items - known.get(query, set())) for query, items in by_query("test").items())
    assert sums.sum() / queries == pytest.approx(baseline["ndcg@4"])
    lost = np.where(np.arange(GROUPS) % 2 == 0, 0.3 * sums, 0.0)
    metrics = {**baseline, "ndcg@4": (sums - lost).sum() / queries, "queries": queries}
    error = math.sqrt(GROUPS * lost.var(ddof=1)) / queries
    gap = lost.sum() / queries
    assert error < gap < baseline["ndcg@4_se"]
    paired = compare_with_baselines(job, {"test": metrics}, {"test": sums - lost})
    figures = f"{baseline['ndcg@4']:.4f}, by {gap:.4f} ± {error:.4f}"
    expected = f"ndcg@4 on test is {metrics['ndcg@4']:.4f}, below popularity ({figures})"
    assert paired["shortfall"].startswith(expected)
    assert "model.dim=128" in paired["shortfall"]
    damped = RerankingOptions.of(popularity_damping=0.5, diversity=0.1)
    reranked = compare_with_baselines(job, {"test": metrics}, {"test": sums - lost}, reranking=damped)
    assert reranked["shortfall"].startswith(expected)
    advice = ": the lists are re-ranked (popularity damping, diversity); compare without re-ranking first"
    assert reranked["shortfall"].endswith(advice)
    unchanged = compare_with_baselines(job, {"test": metrics}, {"test": sums - lost}, reranking=RerankingOptions.of())
    assert unchanged["shortfall"] == paired["shortfall"]
    for value in (metrics["ndcg@4"], baseline["ndcg@4"]):
        level = compare_with_baselines(job, {"test": {**metrics, "ndcg@4": value}})["shortfall"]
        difference = f"{value - baseline['ndcg@4']:+.4f}"
        assert f"not clearly above popularity ({baseline['ndcg@4']:.4f}, {difference} ± " in level
    assert compare_with_baselines(job, {"test": {**metrics, "ndcg@4": 1.0}})["shortfall"] is None
