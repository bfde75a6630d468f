"""Batches: the weights of their examples."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_interactions

from crossfade.base.arrays import FloatArray
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.batches import Batch, FrequencyWeighting, make_batch

QUERIES = np.array([0, 2, 2, 3, 2, 2, 0, 2])
ITEMS = np.array([1, 1, 0, 1, 2, 1, 0, 0])
COUNTS = np.bincount(QUERIES, minlength=5)


def batch_of(weights: FloatArray) -> Batch:
    interactions = make_interactions(QUERIES, ITEMS, weights)
    return make_batch(BatchSlice(interactions, np.arange(len(QUERIES)), len(QUERIES)), interactions.item_N, 0, 0)


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_weight_is_query_count_to_the_power_and_one_on_average(power: float) -> None:
    found_B = FrequencyWeighting(-power, COUNTS, 0.0, None).apply(batch_of(np.ones(len(QUERIES)))).weight_B
    expected_B = COUNTS[QUERIES] ** -power
    assert found_B.dtype == np.float32
    np.testing.assert_allclose(found_B, expected_B / expected_B.mean(), rtol=1e-6)


@pytest.mark.parametrize("power", [-0.5, 0.5])
def test_item_weights_multiply_query_weights(power: float) -> None:
    counts = np.bincount(ITEMS)
    batch = batch_of(np.ones(len(QUERIES)))
    items_B, both_B, queries_B = (
        FrequencyWeighting(query, COUNTS, item, counts).apply(batch).weight_B
        for query, item in ((0.0, power), (-1.0, power), (-1.0, 0.0))
    )
    expected_B = counts[ITEMS].astype(float) ** power
    np.testing.assert_allclose(items_B, expected_B / expected_B.mean(), rtol=1e-6)
    np.testing.assert_allclose(both_B, items_B * queries_B, rtol=1e-6)
