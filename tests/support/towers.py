"""Towers of customers and tracks with parts of any kind, and the vectors that they must give, by formulas.

parts = Parts(track=("track", "artist"), history=True)
model, towers = make_towers(parts)
expected_item(parts, tables(), track=4)
expected_query(parts, tables(), customer=2, history=[5, 6])

Track 3 has neither artists nor tags, and three tracks are cold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.features import ContentMatrix
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.query_history import HistoryWindows, LatestHistories
from crossfade.trainer.model.dense import DenseLayers
from crossfade.trainer.model.spec import HistorySpec, LayerSpec, ModelSpec, Score, TowerSpec
from crossfade.trainer.model.tower_inputs import TowerFeatures
from crossfade.trainer.model.towers import Towers

DIM = 3
ROWS = {"customer": 9, "track": 7, "artist": 4, "tag": 5, "country": 2, "hour": 4, "device": 3}
TABLES = {name: TableSpec(name, rows, DIM, 0.1) for name, rows in ROWS.items()}
FEATURES = {
    "artist": [[0], [1], [1], [], [3], [0], [2]],
    "tag": [[0, 2], [], [0, 1, 4], [], [2], [1, 2], []],
    "country": [[0], [1], [1], [0], [1], [0], [0], [1], [0]],
}
WARM = {"customer": [True] * 9, "track": [True, True, False, False, True, False, True]}
"""Which rows have positive interactions in train: not tracks 2, 3 and 5; of these, 3 has no feature."""
USES_ID = [True, True, False, True, True, False, True]
CONTEXT = ("hour", "device")
HALF_LIFE = 2.0

QUERY_N = np.array([2, 0, 2, 2, 4, 0])
CONTEXT_NK = np.array([[1, 0], [3, -1], [1, 0], [1, 2], [-1, -1], [3, -1]])
HISTORIES = [[5, 6], [4], [5, 6, 1], [], [4, 0], [6, 1, 0]]
"""Customers of examples, their context, and their histories."""
LATEST = [[4, 0, 3], [], [1, 0], [2, 2], [6], [], [], [], []]
"""The history of each customer after train."""


@dataclass(frozen=True)
class Parts:
    """The tables whose vectors are added up for customers and for tracks, and whether there are histories."""

    track: tuple[str, ...] = ("track",)
    customer: tuple[str, ...] = ("customer",)
    context: tuple[str, ...] = ()
    history: bool = False


def feature_lists(name: str) -> JaggedArray:
    lists = JaggedArray.of(FEATURES[name])
    return JaggedArray(lists.starts_L1.astype(np.int32), lists.values_N.astype(np.int32))  # as load_feature packs them


def windows_of(histories: list[list[int]]) -> HistoryWindows:
    counts = np.array([len(history) for history in histories])
    rows = np.array([row for history in histories for row in history])
    return HistoryWindows(rows, np.cumsum(counts) - counts, counts)


def make_towers(parts: Parts, id_dropout: float = 0.0) -> tuple[ModelSpec, Towers]:
    """Build a model whose vectors are made of ``parts``."""
    features = []
    for entity, names in (("customer", parts.customer), ("track", parts.track)):
        used = [name for name in names if name in FEATURES]
        if used:
            own = TABLES[entity] if entity in names else None
            tower = TowerSpec(TABLES[entity], own, tuple(TABLES[name] for name in used))
            features.append(TowerFeatures(tower, {name: feature_lists(name) for name in used}, np.array(WARM[entity])))
    model = ModelSpec(
        TABLES["customer"],
        TABLES["track"],
        Score.of("dot", 1.0),
        tuple(of.tower for of in features),
        context=tuple(TABLES[name] for name in parts.context),
        history=HistorySpec(TABLES["track"], 3, HALF_LIFE) if parts.history else None,
        has_query_vectors="customer" in parts.customer,
    )
    latest = LatestHistories(windows_of(LATEST).items_S, np.cumsum([0, *map(len, LATEST)]), 3)
    return model, Towers(model, features, 3, id_dropout, latest=latest if parts.history else None)


def tables() -> dict[str, FloatArray]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal((rows, DIM)) for name, rows in ROWS.items()}


def _of_features(tables: Mapping[str, Any], names: Sequence[str], row: int) -> list[Any]:
    return [
        tables[name][FEATURES[name][row]].mean(axis=0) for name in names if name in FEATURES and FEATURES[name][row]
    ]


def expected_item(parts: Parts, tables: Mapping[str, Any], track: int, uses_id: Sequence[bool] = USES_ID) -> Any:
    """Compute the vector of ``track`` from tables of numpy or PyTorch; ``uses_id`` is whether ID embeddings count."""
    has_id = "track" in parts.track and (uses_id[track] or parts.track == ("track",))
    vectors = [tables["track"][track]] if has_id else []
    vectors += _of_features(tables, parts.track, track)
    return sum(vectors) if vectors else 0 * tables[parts.track[-1]][0]


def mean_of(rows_RD: Any, history: Sequence[int]) -> Any:
    """Compute the mean of a history, of which each item counts for more than the one before it."""
    weights = [0.5 ** (newer / HALF_LIFE) for newer in reversed(range(len(history)))]
    total = sum(weight * rows_RD[row] for weight, row in zip(weights, history, strict=True))
    return total / sum(weights) if history else 0 * rows_RD[0]


def expected_query(
    parts: Parts, tables: Mapping[str, Any], customer: int, context: Sequence[int] = (), history: Sequence[int] = ()
) -> Any:
    """Compute the vector of a customer with its context and history, from tables of numpy or PyTorch."""
    vectors = [tables["customer"][customer]] if "customer" in parts.customer else []
    vectors += _of_features(tables, parts.customer, customer)
    vectors += [tables[name][row] for name, row in zip(parts.context, context, strict=True) if row >= 0]
    vectors += [mean_of(tables["track"], history)] if parts.history else []
    return sum(vectors)


AUDIO = ContentMatrix(
    np.array([[0.5, -1, 0], [2, 0.3, 0], [0, 0, 1], [0, 0, 1], [-1, 1.5, 0], [0.2, 0.1, 0], [0.4, 2, 0]], np.float32),
    np.array([True, True, False, False, True, True, True]),
)
"""Content of tracks: two numbers and the mask."""


def make_content_towers(id_dropout: float = 0.0) -> tuple[ModelSpec, Towers]:
    """Build towers of IDs, artists, and content, with a dense layer behind them."""
    tower = TowerSpec(TABLES["track"], TABLES["track"], (TABLES["artist"],), content=("audio",))
    layers = (
        LayerSpec("track/content", (3, DIM), init_std=0.1),
        LayerSpec("track", (DIM, 4, DIM)),
    )
    model = ModelSpec(TABLES["customer"], TABLES["track"], Score.of("dot", 1.0), (tower,), layers)
    features = TowerFeatures(tower, {"artist": feature_lists("artist")}, np.array(WARM["track"]), AUDIO)
    dense = DenseLayers(layers, OptimizerSpec(), seed=4)
    draw = np.random.default_rng(8)
    dense.parameters = {
        name: draw.standard_normal(values.shape).astype(np.float32) for name, values in dense.parameters.items()
    }
    return model, Towers(model, [features], 3, id_dropout, dense)


def expected_content_vector(tables: Mapping[str, Any], track: int, *, uses_id: bool) -> Any:
    """Compute the vector of ``track`` before the dense layer, from tables and parameters of numpy or PyTorch."""
    vectors = [tables["track"][track]] if uses_id else []
    vectors += _of_features(tables, ["artist"], track)
    weights = tables["track/content/0/weights"]
    outputs = sum(weights[:, place] * float(value) for place, value in enumerate(AUDIO.values_RF[track]))
    return sum(vectors) + outputs + tables["track/content/0/bias"][0]
