"""Towers of tracks with the features artist and tag, and with content; track 3 has no feature, and three are cold.

towers = make_towers(("track", "artist", "tag"))
expected_vector(tables(), 4, ("track", "artist", "tag"))
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.features import ContentMatrix, JaggedFeature
from crossfade.trainer.model.dense import DenseLayers
from crossfade.trainer.model.spec import LayerSpec, ModelSpec, Score, TowerSpec
from crossfade.trainer.model.towers import TowerFeatures, Towers

CUSTOMERS, TRACKS, ARTISTS, TAGS, DIM = 9, 6, 4, 5, 3
ARTIST_OF = [[0], [1], [1], [], [3], [0]]
TAGS_OF = [[0, 2], [], [0, 1, 4], [], [2], [1, 2]]
WARM = [True, True, False, False, True, False]
"""Which tracks have positive interactions in train: not 2, 3 and 5; of these, 3 has no feature."""
USES_ID = [True, True, False, True, True, False]

TABLES = {
    name: TableSpec(name, rows, DIM, 0.1) for name, rows in (("track", TRACKS), ("artist", ARTISTS), ("tag", TAGS))
}
CUSTOMER = TableSpec("customer", CUSTOMERS, DIM, 0.1)


def feature_lists(values: list[list[int]]) -> JaggedFeature:
    starts = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return JaggedFeature(starts, np.array([value for some in values for value in some], np.int32))


def make_towers(names: tuple[str, ...] = ("track", "artist", "tag"), id_dropout: float = 0) -> tuple[ModelSpec, Towers]:
    """Build towers of the tables ``names``."""
    lists = {"artist": feature_lists(ARTIST_OF), "tag": feature_lists(TAGS_OF)}
    own, features = ("track" in names), [name for name in names if name != "track"]
    tower = TowerSpec(TABLES["track"], TABLES["track"] if own else None, tuple(TABLES[name] for name in features))
    model = ModelSpec(CUSTOMER, TABLES["track"], Score.of("dot", 1.0), (tower,))
    data = TowerFeatures(tower, {name: lists[name] for name in features}, np.array(WARM))
    return model, Towers(model, [data], seed=3, id_dropout=id_dropout)


def tables(seed: int = 0, dtype: type = np.float64) -> dict[str, FloatArray]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal((table.rows, DIM)).astype(dtype) for name, table in TABLES.items()}


def expected_vector(
    tables: Mapping[str, Any], track: int, names: tuple[str, ...], uses_id: Sequence[bool] = USES_ID
) -> Any:
    """Compute the vector of ``track`` from tables of numpy or PyTorch; ``uses_id`` is whether ID embeddings count."""
    parts = [tables["track"][track]] if "track" in names and uses_id[track] else []
    for name, values in (("artist", ARTIST_OF[track]), ("tag", TAGS_OF[track])):
        if name in names and values:
            parts.append(tables[name][values].mean(axis=0))
    return sum(parts) if parts else 0 * tables["tag"][0]


AUDIO = ContentMatrix(
    np.array([[0.5, -1, 0], [2, 0.3, 0], [0, 0, 1], [0, 0, 1], [-1, 1.5, 0], [0.2, 0.1, 0]], np.float32),
    np.array([True, True, False, False, True, True]),
)
"""Content of tracks: two numbers and the mask."""


def make_content_towers(id_dropout: float = 0.0, dtype: type = np.float64) -> tuple[ModelSpec, Towers]:
    """Build towers of IDs, artists, and content, with a dense layer behind them, all of ``dtype``."""
    tower = TowerSpec(TABLES["track"], TABLES["track"], (TABLES["artist"],), content=("audio",))
    layers = (
        LayerSpec("track/content", (3, DIM), init_std=0.1),
        LayerSpec("track", (DIM, 4, DIM)),
    )
    model = ModelSpec(CUSTOMER, TABLES["track"], Score.of("dot", 1.0), (tower,), layers)
    content = ContentMatrix(AUDIO.values_RF.astype(dtype), AUDIO.filled_R)
    features = TowerFeatures(tower, {"artist": feature_lists(ARTIST_OF)}, np.array(WARM), content)
    dense = DenseLayers(layers, OptimizerSpec(), seed=4)
    draw = np.random.default_rng(8)
    dense.parameters = {
        name: draw.standard_normal(values.shape).astype(dtype) for name, values in dense.parameters.items()
    }
    return model, Towers(model, [features], 3, id_dropout, dense)


def expected_content_vector(
    tables: Mapping[str, Any], parameters: Mapping[str, Any], track: int, *, uses_id: bool
) -> Any:
    """Compute the vector of ``track`` before the dense layer, from arrays of numpy or PyTorch."""
    parts = [tables["track"][track]] if uses_id else []
    parts += [tables["artist"][artist] for artist in ARTIST_OF[track]]
    weights = parameters["track/content/0/weights"]
    outputs = sum(weights[:, place] * float(value) for place, value in enumerate(AUDIO.values_RF[track]))
    return sum(parts) + outputs + parameters["track/content/0/bias"][0]
