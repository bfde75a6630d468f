"""Context: the vectors of combinations of a query and its context, and the gradients of each table."""

import numpy as np
import pytest
from towers import CONTEXT, Parts, expected_query, make_towers, tables

from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.model.towers import TowerVectors

COMBINATIONS = [(0, 3, -1), (2, 0, 0), (2, 1, 0), (2, 1, 2), (4, -1, -1)]


@pytest.mark.parametrize("customer", [("customer",), ("customer", "country")])
def test_vector_outside_training_is_sum_of_query_and_context(customer: tuple[str, ...]) -> None:
    model, towers = make_towers(parts := Parts(customer=customer, context=CONTEXT))
    values = tables()
    source = TowerVectors(towers, lambda rows: {name: values[name][rows_A] for name, rows_A in rows.items()})
    rows_QK = np.array(COMBINATIONS)
    context = {"hour": rows_QK[:, 1], "device": rows_QK[:, 2]}
    expected = [expected_query(parts, values, row, context) for row, *context in COMBINATIONS]
    np.testing.assert_allclose(query_vectors(source, model, rows_QK[:, 0], context), expected, atol=1e-12)
