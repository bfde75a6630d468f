"""Read the map that ``crossfade map RUN`` has drawn, for a page that draws it again.

    points = read_points(Path("runs/lastfm"))       # {"ids": [...], "names": [...], "x": [...], "y": [...], ...}

Shapes: N points.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.kvstore.errors import InputError
from crossfade.trainer.maps.picture import PALETTE

MAX_POINTS = 50_000
FULL_SCALE = 10_000
"""The larger side of the map, in the units of the places."""


def read_points(run: Path) -> dict[str, Any] | None:
    """Return the most frequent items of the map of ``run``, with places and labels; None if it has no map.

    Raises:
        InputError: the map cannot be read.
    """
    path = run / "map" / "map.parquet"
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = {"id", "name", "x", "y"} - set(file.schema_arrow.names)
            if missing:
                raise InputError(f"has no column '{min(missing)}'")
            table = file.read().slice(0, MAX_POINTS)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, InputError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read: {reason}; draw it again with 'crossfade map {run}'") from error
    place_N2 = np.stack([table.column(axis).to_numpy() for axis in ("x", "y")], axis=1).astype(np.float64)
    place_N2 -= place_N2.min(axis=0, initial=0.0 if not len(place_N2) else np.inf)
    place_N2 *= FULL_SCALE / max(float(place_N2.max(initial=0.0)), 1e-9)
    x_N, y_N = np.round(place_N2).astype(np.int64).T
    return {
        "ids": [str(id) for id in table.column("id").to_pylist()],
        "names": table.column("name").to_pylist(),
        "x": x_N.tolist(),
        "y": y_N.tolist(),
        **_labels(table),
    }


def _labels(table: pa.Table) -> dict[str, Any]:
    """Return the labels with their colors, the most frequent first, and the number of each point's label or -1."""
    labels = table.column("label").to_pylist() if "label" in table.column_names else [None] * table.num_rows
    names = [name for name, _ in Counter(name for name in labels if name is not None).most_common()]
    numbers = {name: number for number, name in enumerate(names)}
    colored = [{"name": name, "color": PALETTE[number % len(PALETTE)]} for name, number in numbers.items()]
    return {"labels": colored, "label": [numbers.get(name, -1) for name in labels]}
