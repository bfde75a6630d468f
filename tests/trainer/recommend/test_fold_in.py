"""Vectors of new histories: the optimum of the stated objective, near what training gives the same history."""

from pathlib import Path

import numpy as np
import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded

from crossfade.base.arrays import FloatArray
from crossfade.trainer.recommend import fold_in
from crossfade.trainer.recommend.fold_in import FoldIn
from crossfade.trainer.recommend.history import Histories
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import RecommendOptions
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["cosine", "dot", "euclidean"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on planted data with each score."""
    score, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = {"dim": 8, "score": score, "temperature": 0.2 if score == "cosine" else 1.0, "init_std": 0.3}
    write_job(folder / "job.yaml", write_planted(folder / "data", held_out=False), model=model, train={"epochs": 20})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    return folder / "run"


def of_score(score: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("run", [score], indirect=True)


def vectors_of(model: TrainedModel) -> tuple[FloatArray, FloatArray]:
    tables = (model.spec.query, model.spec.item)
    query_QD, item_ID = (model.vectors.vectors(table.name, np.arange(table.rows)).astype(float) for table in tables)
    if model.score.normalized:
        query_QD /= np.linalg.norm(query_QD, axis=1, keepdims=True)
        item_ID /= np.linalg.norm(item_ID, axis=1, keepdims=True)
    return query_QD, item_ID


def histories_of(model: TrainedModel) -> Histories:
    return Model(model).histories(np.arange(model.spec.query.rows))


@pytest.mark.parametrize("sampled", [4096, 40])
def test_vector_minimizes_the_objective(run: Path, sampled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_in, "_SAMPLED_ITEMS", sampled)

    def check(model: TrainedModel) -> None:
        query_QD, item_ID = vectors_of(model)
        histories, folding = histories_of(model), FoldIn(model)
        found_QD, items = folding.vectors(histories), len(item_ID)
        is_sampled_I = np.isin(np.arange(items), folding._row_I)
        log_share = np.log(items / min(sampled, items))
        covariance_DD = np.cov(query_QD, rowvar=False)
        covariance_DD += fold_in._RIDGE * np.trace(covariance_DD) / 8 * np.eye(8)
        precision_DD, temperature = np.linalg.inv(covariance_DD), model.job.model.temperature

        def objective(query_D: FloatArray, items_N: FloatArray) -> float:
            logits_I = model.score.dot_scale * item_ID @ query_D - model.score.norm_scale * (item_ID**2).sum(axis=1)
            logits_I /= temperature
            own_I = np.isin(np.arange(items), items_N)
            sum_I = np.where(own_I, 0, np.where(is_sampled_I, log_share, -np.inf))
            difference_D = query_D - query_QD.mean(axis=0)
            nll = len(items_N) * np.log(np.exp(logits_I + sum_I).sum()) - logits_I[items_N].sum()
            return float(nll + difference_D @ precision_DD @ difference_D / 2)

        generator = np.random.default_rng(1)
        for query in range(0, 300, 29):
            items_N = histories.lists.values_N[slice(*histories.lists.starts_L1[query : query + 2])]
            least = objective(found_QD[query], items_N)
            for size in (0.01, 0.1, 1.0):
                other_D = found_QD[query] + size * generator.standard_normal(8)
                assert objective(other_D, items_N) > least

    with_trained_model(ModelSource(source=str(run)), print, check)


def test_history_of_a_trained_customer_gets_nearly_its_recommendations(run: Path) -> None:
    def check(model: TrainedModel) -> None:
        answering, rows_Q, options = Model(model), np.arange(0, 300, 3), RecommendOptions(k=20)
        trained = answering.recommend(rows_Q, options)
        folded = answering.recommend_to_histories(answering.histories(rows_Q), options)
        common = [len(set(one) & set(other)) for one, other in zip(trained.rows_QK, folded.rows_QK, strict=True)]
        assert np.mean(common) > 14

    with_trained_model(ModelSource(source=str(run)), print, check)


@of_score("cosine")
def test_history_without_liked_items_gets_the_mean_of_queries(run: Path) -> None:
    def check(model: TrainedModel) -> None:
        query_QD, _ = vectors_of(model)
        histories = histories_of(model)
        disliked = Histories(histories.lists, -histories.weight_N)
        mean_D = query_QD.mean(axis=0)
        np.testing.assert_allclose(FoldIn(model).vectors(disliked), np.tile(mean_D, (300, 1)), atol=1e-6)

    with_trained_model(ModelSource(source=str(run)), print, check)
