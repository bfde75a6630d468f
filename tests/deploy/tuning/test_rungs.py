"""Successive halving costs at most ten trainings, and its short trainings are small copies of whole ones."""

from pathlib import Path

import numpy as np
import pytest
from cluster_data import write_job
from resolved_jobs import SIZE

from crossfade.deploy.tuning.rungs import BUDGET, plan_rungs
from crossfade.deploy.tuning.search_space import check_parameters, quick_parameters
from crossfade.trainer.config.auto_values import resolve
from crossfade.trainer.config.loading import change_job, load_job
from crossfade.trainer.config.lr_schedule import lr_factor
from crossfade.trainer.config.schema import JobConfig

ROOT = Path(__file__).resolve().parents[3]


def job_with(folder: Path, *overrides: str) -> JobConfig:
    """Return a job of any data with ``overrides``, and without ``auto``."""
    return resolve(load_job(write_job(folder / "job.yaml", "data"), overrides), SIZE)


def steps(job: JobConfig, steps_per_epoch: int) -> int:
    """Return the steps of a training of ``job``, as the training loop counts them."""
    taken = job.train.epochs * steps_per_epoch
    return min(taken, job.train.max_steps or taken)


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", ["null", 1, 8, 9, 10, 27, 100, 777])
def test_budget_is_ten_trainings_for_any_length(tmp_path: Path, max_steps: str | int) -> None:
    for epochs in (*range(1, 13), 17, 26, 27, 28, 40, 119):
        job = job_with(tmp_path, f"train.epochs={epochs}", f"train.max_steps={max_steps}")
        rungs = plan_rungs(job)
        assert (rungs[-1].epochs, rungs[-1].max_steps) == (job.train.epochs, job.train.max_steps)
        trials = [rung.trials for rung in rungs]
        assert trials == sorted(trials, reverse=True)
        assert trials[-1] >= 4
        trained = {
            rung: change_job(load_job(tmp_path / "job.yaml"), rung.changes(job, {}), "the job") for rung in rungs
        }
        trained[rungs[-1]] = job
        for steps_per_epoch in (1, 7, 1000):
            whole = steps(job, steps_per_epoch)
            spent = sum(rung.trials * steps(trained[rung], steps_per_epoch) for rung in rungs)
            assert 0.6 * BUDGET * whole <= spent <= BUDGET * whole, (epochs, max_steps, steps_per_epoch)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (40, [(30, 4), (9, 13), (4, 40)]),
        (16, [(48, 1), (9, 5), (4, 16)]),
        (9, [(27, 1), (9, 3), (4, 9)]),
        (5, [(30, 1), (4, 5)]),
        (2, [(10, 2)]),
    ],
)
def test_rungs_of_a_job_are_as_documented(tmp_path: Path, epochs: int, expected: list[tuple[int, int]]) -> None:
    rungs = plan_rungs(job_with(tmp_path, f"train.epochs={epochs}"))
    assert [(rung.trials, rung.epochs) for rung in rungs] == expected


@pytest.mark.parametrize(("kind", "power"), [("adam", 1.0), ("sgd", 1.0), ("adagrad", 0.5), ("rowwise_adagrad", 0.5)])
def test_short_training_moves_rows_as_far_as_a_whole_one(tmp_path: Path, kind: str, power: float) -> None:
    settings = ["train.epochs=36", f"optimizer.kind={kind}", "optimizer.schedule=cosine", "optimizer.warmup_steps=90"]
    settings.append("model.initialization=random")
    job = job_with(tmp_path, *settings)
    trial = {"optimizer.learning_rate": 0.02, "model.temperature": 0.3}
    whole = None
    for rung in reversed(plan_rungs(job)):
        trained = change_job(load_job(tmp_path / "job.yaml", settings), rung.changes(job, trial), "the job")
        taken = steps(trained, 50)
        factors = [lr_factor(trained.optimizer, step, taken) for step in range(taken)]
        # The schedule of each rung ends, and with it the rung is evaluated.
        assert factors[-1] < 0.01
        assert trained.train.epochs % trained.train.eval_every_epochs == 0
        assert trained.model.temperature == 0.3
        distance = trained.optimizer.learning_rate * np.mean(factors) * taken**power
        whole = whole or distance
        assert distance == pytest.approx(whole, rel=0.02)
        is_last = rung.epochs == job.train.epochs
        assert (trained.train.eval_every_epochs == job.train.eval_every_epochs) == is_last
        assert (trained.optimizer.learning_rate == 0.02) == is_last


def test_short_training_from_singular_vectors_has_the_learning_rate_of_a_whole_one(tmp_path: Path) -> None:
    job = job_with(tmp_path, "optimizer.kind=adam", "optimizer.learning_rate=0.1", "model.initialization=spectral")
    short = plan_rungs(job.model_copy(update={"train": job.train.model_copy(update={"epochs": 16})}))[0]
    assert short.epochs == 1
    assert short.changes(job, {})["optimizer.learning_rate"] == 0.1


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_six_settings_are_searched_around_those_of_a_job(path: Path) -> None:
    job = resolve(load_job(path), SIZE)
    numbers = quick_parameters(job)
    check_parameters(path, [], numbers)
    if not job.starting_points():  # given rows have the dimension of the job
        assert numbers.pop().choices == (job.model.dim // 2, job.model.dim, 2 * job.model.dim)
    assert len(numbers) == 5
    for each in numbers:
        own = each.own_value(job)
        assert own == 0 or each.low <= own <= each.high
        assert each.low < each.high
