"""Towers of customers in context, the hour and the device, with their country as a feature or without.

model, towers = make_towers(with_country=True)
expected_vector(tables(), (2, 1, 0), with_country=True)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.features import JaggedFeature
from crossfade.trainer.model.spec import ModelSpec, Score, TowerSpec
from crossfade.trainer.model.towers import TowerFeatures, Towers

DIM = 3
ROWS = {"customer": 5, "track": 6, "country": 2, "hour": 4, "device": 3}
TABLES = {name: TableSpec(name, rows, DIM, 0.1) for name, rows in ROWS.items()}
COUNTRY_OF = [0, 1, 1, 0, 1]
CONTEXT = (TABLES["hour"], TABLES["device"])
QUERY_N = np.array([2, 0, 2, 2, 4, 0, 2])
CONTEXT_NK = np.array([[1, 0], [3, -1], [1, 0], [1, 2], [-1, -1], [3, -1], [0, 0]])
COMBINATIONS = [(0, 3, -1), (2, 0, 0), (2, 1, 0), (2, 1, 2), (4, -1, -1)]


def make_towers(*, with_country: bool) -> tuple[ModelSpec, Towers]:
    """Build the towers of customers in context, who have their country as a feature or none."""
    towers: tuple[TowerSpec, ...] = ()
    features = []
    if with_country:
        tower = TowerSpec(TABLES["customer"], TABLES["customer"], (TABLES["country"],))
        lists = {"country": JaggedFeature(np.arange(6, dtype=np.int32), np.array(COUNTRY_OF, np.int32))}
        towers, features = (tower,), [TowerFeatures(tower, lists, np.array([True] * 5))]
    model = ModelSpec(TABLES["customer"], TABLES["track"], Score.of("dot", 1.0), towers, context=CONTEXT)
    return model, Towers(model, features, id_dropout=0.0)


def tables() -> dict[str, FloatArray]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal((rows, DIM)) for name, rows in ROWS.items()}


def expected_vector(tables: Mapping[str, Any], combination: Sequence[int], *, with_country: bool) -> Any:
    """Compute the vector of a combination, a customer and its context, from tables of numpy or PyTorch."""
    customer, *context = combination
    vector = tables["customer"][customer]
    if with_country:
        vector = vector + tables["country"][COUNTRY_OF[customer]]
    for table, row in zip(CONTEXT, context, strict=True):
        if row >= 0:
            vector = vector + tables[table.name][row]
    return vector
