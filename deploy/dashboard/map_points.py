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

from crossfade.base.errors import InputError

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
            found = set(file.schema_arrow.names)
            missing = {"id", "name", "x", "y", *(["color"] if "label" in found else [])} - found
            if missing:
                raise InputError(f"has no column '{min(missing)}'")
            table = file.read().slice(0, MAX_POINTS)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, InputError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read: {reason}; draw it again with 'crossfade map {run} --overwrite'"
        ) from error
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
    if "label" not in table.column_names:
        return {"labels": [], "label": [-1] * table.num_rows}
    labels = table.column("label").to_pylist()
    colors = dict(zip(labels, table.column("color").to_pylist(), strict=True))
    names = [name for name, _ in Counter(name for name in labels if name is not None).most_common()]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "labels": [{"name": name, "color": colors[name]} for name in names],
        "label": [numbers.get(name, -1) for name in labels],
    }
