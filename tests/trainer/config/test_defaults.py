"""Values of a job that follow from others and from the size of its dataset."""

from dataclasses import replace
from typing import Any

import pytest

from crossfade.base.errors import InputError
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.trainer.config.auto_values import DatasetSize, resolve
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.schema import JobConfig

SMALL = DatasetSize(queries=6_000, items=3_400, interactions=600_000, is_grouped=True)
MEDIUM = DatasetSize(queries=30_000, items=41_000, interactions=800_000, is_grouped=True)
LARGE = DatasetSize(queries=1_000_000, items=200_000, interactions=50_000_000, is_grouped=True)


def resolved_job(size: DatasetSize = SMALL, *overrides: str) -> JobConfig:
    return resolve(make_job("{name: small, data: {path: data/small}}", "a test", overrides), size)


def test_what_a_machine_is_used_for_and_valid_decides_is_left_to_resolve() -> None:
    for overrides in ([], ["model.score=dot"], ["loss=bpr"]):
        job = resolved_job(SMALL, *overrides)
        automatic = {key for key, value in job.values().items() if value == "auto"}
        assert automatic == {"train.engine", "train.device", "train.tables", "cluster.store", "model.popularity"}
        assert resolve(job, LARGE) == job


@pytest.mark.parametrize(
    ("size", "kind", "group", "corrects"),
    [
        (SMALL, "all", "all", False),
        (DatasetSize(6_000, 3_400, 600_000, is_grouped=False), "all", 1, False),
        (MEDIUM, "all", "all", False),
        (DatasetSize(30_000, 41_000, 800_000, is_grouped=False), "in_batch", 1, True),
        (DatasetSize(1_000_000, 41_000, 800_000, is_grouped=True), "in_batch", 1, True),
        (LARGE, "in_batch", 1, True),
    ],
)
def test_negatives_follow_from_what_all_items_cost(size: DatasetSize, kind: str, group: object, corrects: bool) -> None:
    job = resolved_job(size)
    assert (job.negatives.kind, job.data.group, job.negatives.logq_correction) == (kind, group, corrects)


@pytest.mark.parametrize(
    ("size", "overrides", "reason"),
    [
        (LARGE, (), "which takes long for 200,000 items and 50,000,000 interactions"),
        (SMALL, ("model.query_features=[user, history]",), "which auto does not choose with histories"),
    ],
)
def test_top_k_names_why_all_items_are_not_the_negatives(
    size: DatasetSize, overrides: tuple[str, ...], reason: str
) -> None:
    expected = f"^top_k needs all items as negatives, {reason}: set negatives.kind to all, or leave out top_k$"
    with pytest.raises(InputError, match=expected):
        resolved_job(size, "top_k=20", *overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["loss=bpr"], {"negatives.kind": "shared", "data.group": 1, "negatives.logq_correction": False}),
        (["negatives.kind=in_batch"], {"negatives.kind": "in_batch", "negatives.logq_correction": False}),
        (["negatives.kind=all", "data.group=8"], {"negatives.kind": "all", "data.group": 8}),
        (["negatives.count=7"], {"negatives.kind": "all", "negatives.count": 7}),
    ],
)
def test_given_values_are_kept(overrides: list[str], expected: dict[str, Any]) -> None:
    assert expected.items() <= resolved_job(SMALL, *overrides).values().items()


@pytest.mark.parametrize(
    ("overrides", "expected"), [([], 0.1), (["model.score=dot"], 0.0075), (["optimizer.learning_rate=0.3"], 0.3)]
)
def test_learning_rate_of_a_warm_start_is_half(overrides: list[str], expected: float) -> None:
    job = resolved_job(SMALL, *overrides, "checkpoint.warm_start_from=runs/before/checkpoints")
    assert job.optimizer.learning_rate == expected


@pytest.mark.parametrize(
    ("customers", "items", "interactions", "expected"),
    [
        (1_000_000, 500_000, 18_000_000, 10_800),
        (1_000_000, 100_000, 3_200_000, 9_600),
        (1_000_000, 1_000_000, 1_000_000, 2_000),
        (1, 1, 0, 2_000),
        (40_000, 5_000, 4_000_000, 12_000),
        (30_000, 100_000, 3_200_000, 9_000),
    ],
)
def test_evaluation_takes_a_tenth_of_an_epoch(customers: int, items: int, interactions: int, expected: int) -> None:
    """A ranking takes a score of each item; an epoch 3,000 an interaction or, of a few items, three of each."""
    size = DatasetSize(customers, items, interactions, is_grouped=True)
    spec = resolved_job(size).evaluate
    assert (spec.max_queries, spec.final) == (expected, 10 * expected)
    assert spec.queries_of("valid", in_training=True) == expected
    assert {spec.queries_of("valid"), spec.queries_of("test", in_training=True)} == {10 * expected}
    given = resolved_job(size, "evaluate.max_queries=7", "evaluate.final=all").evaluate
    assert (given.queries_of("valid", in_training=True), given.queries_of("test")) == (7, None)


@pytest.mark.parametrize(("given", "final"), [(7, 20_000), (20_000, 20_000), (20_001, 20_001), ("all", "all")])
def test_final_evaluation_has_no_fewer_queries_than_one_during_training(given: object, final: object) -> None:
    size = DatasetSize(10, 1_000_000, 1_000_000, is_grouped=True)
    spec = resolved_job(size, f"evaluate.max_queries={given}").evaluate
    assert (spec.max_queries, spec.final) == (given, final)


@pytest.mark.parametrize(
    ("lift", "items_per_query", "temperature"),
    [(2.32, 34.1, 0.17), (1.18, 97.8, 0.17), (8.58, 23.9, 0.1), (1.75, 13.6, 0.24), (900.0, 99.0, 0.05), (0.1, 1, 0.4)],
)
def test_temperature_is_lower_the_more_items_say(lift: float, items_per_query: float, temperature: float) -> None:
    """As of Last.fm, MovieLens-1M, Gowalla, and Amazon Electronics in published splits; and the bounds."""
    size = replace(SMALL, lift=lift, items_per_query=items_per_query)
    assert resolved_job(size).model.temperature == temperature
    assert resolved_job(size, "model.temperature=0.3").model.temperature == 0.3
    assert resolved_job(size, "model.score=dot").model.temperature == 0.17


def test_temperature_of_a_dataset_without_a_lift_follows_from_its_size() -> None:
    sizes = (DatasetSize(600, 3_000, 57_000, is_grouped=True), SMALL, MEDIUM, LARGE)
    assert [resolved_job(size).model.temperature for size in sizes] == [0.2, 0.17, 0.12, 0.067]
    huge = DatasetSize(10**8, 10**8, 10**10, is_grouped=True)
    assert resolved_job(huge).model.temperature == 0.05


def test_optimizer_follows_from_the_score() -> None:
    adam = OptimizerSpec("adam", 0.2, weight_decay=0.0, max_norm=1.0)
    assert resolved_job(SMALL, "model.initialization=random").optimizer_spec == adam
    assert resolved_job(SMALL, "model.score=dot").optimizer_spec == OptimizerSpec("adam", 0.015, weight_decay=1e-5)
    assert resolved_job(SMALL, "optimizer.max_norm=null").optimizer_spec.max_norm is None
    assert resolved_job(SMALL, "optimizer.weight_decay=1e-3").optimizer_spec.weight_decay == 1e-3


@pytest.mark.parametrize(
    ("items", "interactions", "overrides", "initialization", "epochs"),
    [
        (3_400, 600_000, (), "spectral", 16),
        (3_400, 60_000, (), "spectral", 20),
        (3_400, 1_000, (), "spectral", 40),
        (3_400, 60_000, ("train.batch_size=4096",), "spectral", 16),
        (2_000_000, 100_000_000, (), "spectral", 16),
        (2_000_001, 100_000_000, (), "random", 40),
        (2_000_000, 100_000_001, (), "random", 40),
        (3_400, 600_000, ("model.initialization=random",), "random", 40),
        (2_000_001, 100_000_001, ("model.initialization=spectral",), "spectral", 16),
        (3_400, 600_000, ("model.score=dot",), "random", 40),
        (3_400, 600_000, ("loss=bpr",), "random", 40),
        (3_400, 600_000, ("optimizer.kind=adagrad",), "random", 40),
        (3_400, 600_000, ("model.dense.item=[64]",), "random", 40),
        (3_400, 600_000, ("model.query_features=[user, history]",), "random", 40),
        (3_400, 600_000, ("checkpoint.warm_start_from=runs/before/checkpoints",), "random", 40),
    ],
)
def test_ids_with_cosine_scores_begin_spectral_with_fewer_epochs(
    items: int, interactions: int, overrides: tuple[str, ...], initialization: str, epochs: int
) -> None:
    """Fewer epochs are no fewer than 80 steps, of 16,384 interactions by default."""
    job = resolved_job(DatasetSize(6_000, items, interactions, is_grouped=True), *overrides)
    assert (job.model.initialization, job.train.epochs) == (initialization, epochs)
    is_spectral = initialization == "spectral"
    assert (job.optimizer.warmup_steps, job.optimizer.beta1) == ((20, 0.7) if is_spectral else (0, 0.9))
    assert resolved_job(SMALL, *overrides, "train.epochs=3").train.epochs == 3


@pytest.mark.parametrize(("lift", "initialization"), [(1.2, "spectral"), (4.0, "spectral"), (4.1, "random")])
def test_items_that_say_much_about_each_other_begin_random(lift: float, initialization: str) -> None:
    size = DatasetSize(30_000, 41_000, 720_000, is_grouped=True, lift=lift, items_per_query=24.0)
    assert resolved_job(size).model.initialization == initialization


def test_learning_rate_of_a_spectral_start_is_half() -> None:
    assert resolved_job().optimizer.learning_rate == 0.1
    assert resolved_job(SMALL, "model.initialization=random").optimizer.learning_rate == 0.2
