"""Write a map as one HTML page that needs nothing else: hover, zoom, a legend that switches labels, and search.

write_page(items_map, Path("maps/map.html"))

The page's code is in ``assets/``; data are embedded as base64 of little-endian arrays: places as uint16 pairs over the
larger side of the map, labels as uint8 (255: none), and neighbors as int32.

Shapes: N items, K neighbors.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.map_labels import place_names

_ASSETS = Path(__file__).parent / "assets"
_FULL_SCALE = 65535
_NO_LABEL = 255
_MAX_WITH_NEIGHBORS = 100_000
"""Items up to which their neighbors in the embedding are in the page; above, it shows those on the map."""


def write_page(items_map: ItemsMap, path: Path) -> None:
    """Write ``items_map`` to the file ``path``."""
    title = html.escape(items_map.title)
    page = (_ASSETS / "map.html").read_text(encoding="utf-8")
    parts = {
        "<!-- title -->": title,
        "/* style */": (_ASSETS / "map.css").read_text(encoding="utf-8"),
        "/* script */": (_ASSETS / "map.js").read_text(encoding="utf-8"),
        "/* data */": _as_json(items_map),
    }
    for mark, part in parts.items():
        before, _, after = page.partition(mark)
        page = before + part + after
    path.write_text(page.replace("<!-- title -->", title), encoding="utf-8")


def _as_json(items_map: ItemsMap) -> str:
    """Return the map as JSON that cannot end the element it is in."""
    least_2, most_2 = items_map.place_N2.min(axis=0), items_map.place_N2.max(axis=0)
    side = max(float((most_2 - least_2).max()), 1e-9)
    low_2, scale = (least_2 + most_2 - side) / 2, _FULL_SCALE / side

    def scaled(place: Any) -> Any:
        return np.round((np.asarray(place) - low_2) * scale).clip(0, _FULL_SCALE).astype("<u2")

    labels, label_N = items_map.labels, np.full(len(items_map.names), _NO_LABEL, np.uint8)
    if labels is not None:
        label_N[labels.label_N >= 0] = labels.label_N[labels.label_N >= 0]
    islands = place_names(labels, items_map.place_N2) if labels is not None else {}
    small = len(items_map.names) <= _MAX_WITH_NEIGHBORS
    data = {
        "names": items_map.names,
        "places": _base64(scaled(items_map.place_N2)),
        "labels": _base64(label_N),
        "legend": [
            {"name": name, "color": color}
            for name, color in (zip(labels.names, labels.colors, strict=True) if labels is not None else ())
        ],
        "islands": [
            {"name": name, "label": labels.names.index(name), "place": scaled(place).tolist()}
            for name, place in islands.items()
            if labels is not None
        ],
        "neighbors": _base64(items_map.neighbor_NK.astype("<i4")) if small else "",
        "neighborsEach": items_map.neighbor_NK.shape[1] if small else 0,
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _base64(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
