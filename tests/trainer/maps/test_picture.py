"""The picture of a map, whose names come from data."""

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa

from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.map_labels import Labels
from crossfade.trainer.maps.picture import write_picture

NAMES = ("$\\z$", "\x1b[2J\x07\t\r", "A$AP", "$x_{$")
"""Formulas that matplotlib cannot parse, and controls of a terminal, which it would print with a warning."""


def test_any_name_is_drawn_as_text(tmp_path: Path) -> None:
    place_N2 = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)
    neighbor_NK = np.array([[1], [2], [3], [0]], np.int32)
    labels = Labels(NAMES, np.arange(4))
    drawn = ItemsMap(NAMES[1], np.arange(4), pa.array(range(4)), list(NAMES), place_N2, labels, neighbor_NK, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_picture(drawn, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
