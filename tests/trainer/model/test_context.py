"""Context: the vectors of combinations of a query and its context, and the gradients of each table."""

from typing import Any

import numpy as np
import pytest
from context_towers import (
    COMBINATIONS,
    ROWS,
    expected_vector,
    make_towers,
    tables,
)
from resolved_jobs import job_with

from crossfade.base.errors import InputError
from crossfade.trainer.data.manifest import DatasetManifest, Entity, Feature, Split
from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.model.spec import make_model
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
