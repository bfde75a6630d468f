"""Negative sampling: independent of workers, with the configured distribution and logQ correction."""

import numpy as np
import pytest
from builders import make_interactions

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.negatives import NegativeSampler

COUNTS = np.array([0, 1000, 400, 0, 50, 1, 9, 200, 30, 5])
ITEMS = len(COUNTS)


def sampler(seed: int = 1, counts_N: IntArray = COUNTS, **spec: object) -> NegativeSampler:
    return NegativeSampler(NegativesConfig(**spec), len(counts_N), counts_N, seed)


def slice_of(positions_B: IntArray, global_size: int | None = None, partitions: int = 1) -> BatchSlice:
    zeros = np.zeros(len(positions_B), np.int64)
    return BatchSlice(
        make_interactions(zeros, zeros), positions_B, global_size or len(positions_B), partitions=partitions
    )


def assert_frequencies(rows_N: IntArray, probability_N: FloatArray) -> None:
    """Check the counts of ``rows_N`` by a chi-square test, five standard deviations wide."""
    expected_N = probability_N / probability_N.sum() * len(rows_N)
    found_N = np.bincount(rows_N, minlength=len(expected_N))
    degrees = len(expected_N) - 1
    assert ((found_N - expected_N) ** 2 / expected_N).sum() < degrees + 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("kind", ["shared", "per_example"])
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
@pytest.mark.parametrize("workers", [2, 3])
def test_negatives_do_not_depend_on_the_worker(kind: str, sampling: str, workers: int) -> None:
    draw = sampler(kind=kind, count=5, sampling=sampling).draw
    positions_B = np.random.default_rng(0).permutation(24)
    complete_N = draw(slice_of(positions_B), epoch=1, step=2)
    for worker in range(workers):
        part_N = draw(slice_of(positions_B[worker::workers], 24), epoch=1, step=2)
        expected_N = complete_N if kind == "shared" else complete_N.reshape(24, 5)[worker::workers].ravel()
        np.testing.assert_array_equal(part_N, expected_N)


@pytest.mark.parametrize("kind", ["shared", "per_example"])
def test_draws_repeat_and_differ_by_seed_epoch_and_step(kind: str) -> None:
    def draw(seed: int = 1, epoch: int = 1, step: int = 1) -> IntArray:
        many = sampler(seed, np.ones(10**6), kind=kind, count=100)
        return many.draw(slice_of(np.arange(4)), epoch, step)

    np.testing.assert_array_equal(draw(), draw())
    for other_N in (draw(seed=2), draw(epoch=2), draw(step=2)):
        assert (draw() == other_N).sum() < 5


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("kind", ["shared", "per_example"])
def test_popularity_sampling_follows_count_power_and_includes_unseen_items(kind: str, power: float) -> None:
    draw = sampler(kind=kind, count=50_000, sampling="popularity", power=power).draw
    rows_N = draw(slice_of(np.arange(2)), 0, 0)
    assert_frequencies(rows_N, np.maximum(COUNTS, 1) ** power)
    assert {0, 3} <= set(rows_N), "items that were never seen are drawn"


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_warm_only_excludes_cold_items(sampling: str) -> None:
    counts_N = np.append(COUNTS, 0)
    spec = NegativesConfig(kind="shared", count=50_000, sampling=sampling, power=0.5)
    rows_N = NegativeSampler(spec, len(counts_N), counts_N, seed=1, warm_only=True).draw(slice_of(np.arange(2)), 0, 0)
    mass_N = counts_N**0.5 if sampling == "popularity" else counts_N > 0
    assert set(rows_N) == set(np.flatnonzero(counts_N))
    assert_frequencies(np.searchsorted(np.flatnonzero(counts_N), rows_N), mass_N[counts_N > 0])


def test_in_batch_draws_nothing_and_mixed_draws_the_shared_pool() -> None:
    batch_slice = slice_of(np.arange(3))
    assert sampler(kind="in_batch").draw(batch_slice, 0, 0).shape == (0,)
    shared, mixed = (sampler(kind=kind, count=7).draw(batch_slice, 1, 2) for kind in ("shared", "mixed"))
    np.testing.assert_array_equal(shared, mixed)


def test_kind_all_draws_all_items_or_warm_items_only() -> None:
    spec, batch_slice = NegativesConfig(kind="all"), slice_of(np.arange(3))
    assert NegativeSampler(spec, ITEMS, None, 1).draw(batch_slice, 0, 0).tolist() == list(range(ITEMS))
    warm_rows_N = NegativeSampler(spec, ITEMS, COUNTS, 1, warm_only=True).draw(batch_slice, 0, 0)
    assert warm_rows_N.tolist() == np.flatnonzero(COUNTS).tolist()


@pytest.mark.parametrize("kind", ["shared", "per_example"])
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_log_q_matches_frequency_of_draws(kind: str, sampling: str) -> None:
    drawn_by = sampler(kind=kind, count=40_000, sampling=sampling, power=0.5, logq_correction=True)
    batch_slice = slice_of(np.arange(1))
    expected_N = np.exp(drawn_by.log_q(np.arange(ITEMS), batch_slice))
    assert expected_N.sum() == pytest.approx(40_000, rel=1e-5)
    assert_frequencies(drawn_by.draw(batch_slice, 0, 0), expected_N)


def test_in_batch_log_q_follows_counts_and_partition_size() -> None:
    rows_N, batch_slice = np.arange(ITEMS), slice_of(np.arange(6), global_size=80, partitions=4)
    alone_N, mixed_N = (
        np.exp(sampler(kind=kind, count=30, logq_correction=True).log_q(rows_N, batch_slice))
        for kind in ("in_batch", "mixed")
    )
    np.testing.assert_allclose(alone_N, 20 * np.maximum(COUNTS, 1) / COUNTS.sum(), rtol=1e-5)
    np.testing.assert_allclose(mixed_N, alone_N + 30 / ITEMS, rtol=1e-5)
