"""Context: the vectors of combinations of a query and its context, and the gradients of each table."""

from typing import Any

import numpy as np
import pytest
from context_towers import (
    COMBINATIONS,
    CONTEXT_NK,
    DIM,
    QUERY_N,
    ROWS,
    expected_vector,
    make_towers,
    tables,
)
from finite_differences import numeric_gradient
from resolved_jobs import job_with

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.data.manifest import DatasetManifest, Entity, Feature, Split
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.spec import make_model
from crossfade.trainer.model.towers import TowerVectors


def batch_of(query_N: IntArray, context_NK: IntArray | None, *, per_example: bool = False) -> Batch:
    """Build a batch whose item of example n is n modulo the tracks, with one negative each."""
    item_N = np.arange(len(query_N)) % ROWS["track"]
    examples = Interactions(query_N, item_N, np.arange(len(query_N), dtype=np.float32), context_NK)
    uses_N = np.concatenate([item_N, (item_N + 1) % ROWS["track"]])
    batch_slice = BatchSlice(examples, np.arange(len(query_N)), len(query_N))
    return make_batch(batch_slice, uses_N, epoch=0, step=0, per_example=per_example)


@pytest.mark.parametrize("with_country", [False, True])
def test_vector_of_combination_is_sum_and_evaluates_the_same(with_country: bool) -> None:
    model, towers = make_towers(with_country=with_country)
    batch = towers.add_tower_inputs(batch_of(QUERY_N, CONTEXT_NK))
    values = tables()
    active = towers.active(batch)
    assert {name: active[name].tolist() for name in ("customer", "hour", "device")} == {
        "customer": [0, 2, 4],
        "hour": [0, 1, 3],
        "device": [0, 2],
    }
    vectors, _ = towers.forward(batch, {name: values[name][rows] for name, rows in active.items()})
    expected = [expected_vector(values, combination, with_country=with_country) for combination in COMBINATIONS]
    np.testing.assert_allclose(vectors["customer"], expected, atol=1e-12)
    np.testing.assert_array_equal(batch.query.rows_A[batch.query.index_N], QUERY_N)
    source = TowerVectors(towers, lambda rows: {name: values[name][rows_A] for name, rows_A in rows.items()})
    rows_QK = np.array(COMBINATIONS)
    context = {"hour": rows_QK[:, 1], "device": rows_QK[:, 2]}
    np.testing.assert_allclose(query_vectors(source, model, rows_QK[:, 0], context), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("with_country", [False, True])
def test_gradients_match_finite_differences(with_country: bool) -> None:
    _, towers = make_towers(with_country=with_country)
    batch = towers.add_tower_inputs(batch_of(QUERY_N, CONTEXT_NK))
    values = tables()
    block = {name: values[name][rows] for name, rows in towers.active(batch).items()}
    assert set(block) == {"customer", "track", "hour", "device", *(["country"] if with_country else [])}
    weight_AD = np.random.default_rng(1).standard_normal((len(COMBINATIONS), DIM))

    def loss() -> float:
        return float((weight_AD * np.tanh(towers.forward(batch, block)[0]["customer"])).sum())

    vectors, tape = towers.forward(batch, block)
    by_vectors = {"customer": weight_AD / np.cosh(vectors["customer"]) ** 2, "track": np.zeros_like(block["track"])}
    gradients = towers.backward(batch, tape, by_vectors).tables
    assert set(gradients) == set(block)
    for name, array in block.items():
        np.testing.assert_allclose(gradients[name], numeric_gradient(loss, array), atol=1e-8, err_msg=name)


def test_ordered_batch_keeps_each_example_with_its_context() -> None:
    batch = batch_of(QUERY_N, CONTEXT_NK, per_example=True)
    assert batch.context_AK is not None
    assert batch.is_ordered
    rows_AK = np.column_stack([batch.query.rows_A, batch.context_AK])
    assert [tuple(row) for row in rows_AK.tolist()] == COMBINATIONS
    numbers = batch.weight_B.astype(int)  # the weight of an example is its number
    np.testing.assert_array_equal(rows_AK[batch.query.index_N], np.column_stack([QUERY_N, CONTEXT_NK])[numbers])
    np.testing.assert_array_equal(batch.item.uses_N[: len(numbers)], numbers % ROWS["track"])


def manifest() -> DatasetManifest:
    return DatasetManifest(
        query="customer",
        item="track",
        entities={name: Entity(rows=rows, id_type="int64", files=[]) for name, rows in ROWS.items()},
        features={"customer": {"country": Feature(files=[])}},
        context=["hour", "device"],
        splits={"train": Split(files=[])},
    )


@pytest.mark.parametrize(
    ("model", "fragment"),
    [
        ({"query_features": ["hour", "device"]}, "names 'hour', which is context, but no entity that has it"),
        ({"query_features": ["customer", "hour", "hour"]}, "once"),
        ({"query_features": ["customer", "hour"], "dense": {"query": [4]}}, "leave out model.dense.query"),
        ({"query_features": ["customer", "minute"]}, "and context (hour, device), which context adds"),
        ({"item_features": ["track", "hour"]}, "model.item_features names 'hour'"),
    ],
)
def test_model_that_context_cannot_be_added_to_is_rejected(model: dict[str, Any], fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        make_model(job_with(**model), manifest())
    assert fragment in str(caught.value)
