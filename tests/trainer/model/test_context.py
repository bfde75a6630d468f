"""Context: the vectors of combinations of a query and its context, and the gradients of each table."""

import numpy as np
import pytest
from context_towers import (
    COMBINATIONS,
    expected_vector,
    make_towers,
    tables,
)

from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.model.towers import TowerVectors


@pytest.mark.parametrize("with_country", [False, True])
def test_vector_outside_training_is_sum_of_query_and_context(with_country: bool) -> None:
    model, towers = make_towers(with_country=with_country)
    values = tables()
    source = TowerVectors(towers, lambda rows: {name: values[name][rows_A] for name, rows_A in rows.items()})
    rows_QK = np.array(COMBINATIONS)
    context = {"hour": rows_QK[:, 1], "device": rows_QK[:, 2]}
    expected = [expected_vector(values, combination, with_country=with_country) for combination in COMBINATIONS]
    np.testing.assert_allclose(query_vectors(source, model, rows_QK[:, 0], context), expected, atol=1e-12)
