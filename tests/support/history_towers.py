"""Towers of customers with histories: alone, with context, and with artists of tracks.

model, towers = make_towers("context")
expected_vector("context", tables(), example=3)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.features import JaggedFeature
from crossfade.trainer.data.query_history import HistoryWindows, LatestHistories
from crossfade.trainer.model.spec import HistorySpec, ModelSpec, Score, TowerSpec
from crossfade.trainer.model.towers import TowerFeatures, Towers

DIM = 3
ROWS = {"customer": 5, "track": 7, "artist": 3, "hour": 4}
TABLES = {name: TableSpec(name, rows, DIM, 0.1) for name, rows in ROWS.items()}
ARTIST_OF = [0, 1, 2, 1, 0, 2, 1]
COLD_TRACK = 1
QUERY_N = np.array([2, 0, 2, 4, 0, 2])
ITEM_N = np.array([1, 3, 0, 2, 3, 1])
CONTEXT_NK = np.array([[1], [3], [1], [-1], [3], [0]])
HISTORIES = [[5, 6], [4], [5, 6, 1], [], [4, 0], [6, 1, 0]]
LATEST = [[4, 0, 3], [], [1, 0], [2, 2], [6]]
HALF_LIFE = 2.0
SHAPES = ["plain", "histories alone", "context", "item features"]


def windows_of(histories: list[list[int]]) -> HistoryWindows:
    counts = np.array([len(history) for history in histories])
    return HistoryWindows(
        np.array([row for history in histories for row in history]), np.cumsum(counts) - counts, counts
    )


def make_towers(shape: str) -> tuple[ModelSpec, Towers]:
    """Build a model with histories: with customers or without, with context, or with artists of tracks."""
    towers: tuple[TowerSpec, ...] = ()
    features = []
    if shape == "item features":
        tower = TowerSpec(TABLES["track"], TABLES["track"], (TABLES["artist"],))
        lists = {"artist": JaggedFeature(np.arange(8, dtype=np.int32), np.array(ARTIST_OF, np.int32))}
        # The ID embedding of a cold track enters no vector of a track.
        towers, features = (tower,), [TowerFeatures(tower, lists, np.arange(7) != COLD_TRACK)]
    model = ModelSpec(
        TABLES["customer"],
        TABLES["track"],
        Score.of("dot", 1.0),
        towers,
        context=(TABLES["hour"],) if shape == "context" else (),
        history=HistorySpec(TABLES["track"], 3, HALF_LIFE),
        has_query_vectors=shape != "histories alone",
    )
    latest = LatestHistories(windows_of(LATEST).items_S, np.cumsum([0, *map(len, LATEST)]), 3)
    return model, Towers(model, features, latest=latest)


def tables() -> dict[str, FloatArray]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal((rows, DIM)) for name, rows in ROWS.items()}


def mean_of(rows_RD: Any, history: list[int]) -> Any:
    """Compute the mean of a history, of which each item counts for more than the one before it."""
    weights = [0.5 ** (newer / HALF_LIFE) for newer in reversed(range(len(history)))]
    total = sum(weight * rows_RD[row] for weight, row in zip(weights, history, strict=True))
    return total / sum(weights) if history else 0 * rows_RD[0]


def expected_vector(shape: str, tables: Mapping[str, Any], example: int) -> Any:
    """Compute the vector of the query of ``example`` from tables of numpy or PyTorch."""
    vector_D = mean_of(tables["track"], HISTORIES[example])
    if shape != "histories alone":
        vector_D = vector_D + tables["customer"][QUERY_N[example]]
    if shape == "context" and CONTEXT_NK[example, 0] >= 0:
        vector_D = vector_D + tables["hour"][CONTEXT_NK[example, 0]]
    return vector_D


def expected_item_vector(shape: str, tables: Mapping[str, Any], track: int) -> Any:
    """Compute the vector of ``track``, which has no ID embedding if it is cold and has an artist."""
    if shape != "item features":
        return tables["track"][track]
    artist_D = tables["artist"][ARTIST_OF[track]]
    return artist_D if track == COLD_TRACK else tables["track"][track] + artist_D
