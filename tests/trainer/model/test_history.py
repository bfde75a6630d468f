"""History: the vectors of queries with the mean of the items in their history, and the gradients of each table."""

import numpy as np
import pytest
from towers import (
    CONTEXT,
    CONTEXT_NK,
    HISTORIES,
    LATEST,
    QUERY_N,
    Parts,
    expected_query,
    make_towers,
    tables,
    windows_of,
)

from crossfade.trainer.config.auto_values import DatasetSize, resolve
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.query_history import MomentHistories
from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.model.towers import TowerVectors

PLAIN, ALONE = Parts(history=True), Parts(customer=(), history=True)


@pytest.mark.parametrize("parts", [PLAIN, ALONE])
def test_vectors_outside_training_have_the_latest_history(parts: Parts) -> None:
    _, towers = make_towers(parts)
    values = tables()
    source = TowerVectors(towers, lambda rows: {name: values[name][rows_A] for name, rows_A in rows.items()})
    expected = [expected_query(parts, values, row, history=LATEST[row]) for row in (0, 1, 3)]
    np.testing.assert_allclose(source.vectors("customer", np.array([0, 1, 3])), expected, atol=1e-12)
    np.testing.assert_array_equal(source.vectors("track", np.array([2, 5])), values["track"][[2, 5]])


@pytest.mark.parametrize("parts", [PLAIN, ALONE, Parts(context=CONTEXT, history=True)])
def test_vectors_at_a_moment_are_those_of_training(parts: Parts) -> None:
    model, towers = make_towers(parts)
    values = tables()
    source = TowerVectors(towers, lambda rows: {name: values[name][rows_A] for name, rows_A in rows.items()})
    assert towers.latest is not None
    order_Q = np.argsort(QUERY_N, kind="stable")
    histories = MomentHistories(windows_of(HISTORIES).take(order_Q), towers.latest.gather(QUERY_N[order_Q]))
    context_QK = CONTEXT_NK[order_Q][:, : len(parts.context)]
    context = dict(zip(parts.context, context_QK.T, strict=True))
    found = query_vectors(source, model, QUERY_N[order_Q], context, histories)
    examples = zip(order_Q, context_QK, strict=True)
    expected = [expected_query(parts, values, QUERY_N[n], context_K, HISTORIES[n]) for n, context_K in examples]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_examples_are_read_in_random_order_where_each_has_a_history() -> None:
    size = DatasetSize(queries=1_000, items=100_000, interactions=1_000_000, is_grouped=True)
    plain, with_history = (
        resolve(
            JobConfig.model_validate({"name": "j", "data": {"path": "d"}, "model": {"query_features": names}}), size
        )
        for names in ([], ["history"])
    )
    assert (plain.negatives.kind, plain.data.group) == ("all", "all")
    assert (with_history.negatives.kind, with_history.data.group) == ("in_batch", 1)
