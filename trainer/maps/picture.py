"""Draw a map as a PNG.

write_picture(items_map, Path("maps/map.png"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crossfade.kvstore.errors import MissingExtraError, escape_unprintable
from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.map_labels import place_names

PALETTE = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"),
    *("#ee7733", "#009988", "#cc3311", "#997700", "#5e4fa2", "#bb88dd"),
)
"""Colors of labels, by number; readable on light and dark ground."""
UNLABELED = "#b4b4b4"
_INCHES, _DPI = 11.0, 150
_NAMED_ITEMS = 40
_MIN_DISTANCE = 0.045
"""Least distance between two items whose names are drawn, as a fraction of the map's size."""


def write_picture(items_map: ItemsMap, path: Path) -> None:
    """Draw ``items_map`` into the PNG file ``path``: items colored by label, islands and the most frequent items named.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingExtraError("matplotlib", "map", "crossfade map") from error

    # Names may have dollar signs, and controls of terminals, which matplotlib would print in its warnings.
    with rc_context({"text.parse_math": False}):
        _draw(items_map, path)


def _draw(items_map: ItemsMap, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES, _INCHES), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_title(escape_unprintable(items_map.title), fontsize=15, loc="left")
    _draw_items(axes, items_map)
    _draw_names(axes, items_map)
    if items_map.labels is not None:
        axes.legend(loc="lower right", frameon=True, framealpha=0.85, fontsize=10, markerscale=2.5)
        for name, (x, y) in place_names(items_map.labels, items_map.place_N2).items():
            number = items_map.labels.names.index(name)
            axes.text(
                *(x, y, escape_unprintable(name)),
                fontsize=17,
                weight="bold",
                color=PALETTE[number % len(PALETTE)],
                ha="center",
                va="center",
                path_effects=_outline(4),
            )
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_items(axes: Any, items_map: ItemsMap) -> None:
    count = len(items_map.names)
    area = float(np.clip(40_000 / count, 0.5, 14))
    label_N = items_map.labels.label_N if items_map.labels is not None else np.full(count, -1)
    plain_N2 = items_map.place_N2[label_N < 0]
    axes.scatter(*plain_N2.T, s=area, c=UNLABELED if items_map.labels else PALETTE[0], linewidths=0, rasterized=True)
    for number, name in enumerate(items_map.labels.names if items_map.labels is not None else ()):
        point_N2 = items_map.place_N2[label_N == number]
        color = PALETTE[number % len(PALETTE)]
        axes.scatter(*point_N2.T, s=area, c=color, linewidths=0, label=escape_unprintable(name), rasterized=True)


def _draw_names(axes: Any, items_map: ItemsMap) -> None:
    """Write the names of the most frequent items that are far enough from each other."""
    size = float(np.ptp(items_map.place_N2, axis=0).max())
    drawn: list[int] = []
    for number, place_2 in enumerate(items_map.place_N2):
        distance_M = np.hypot(*(items_map.place_N2[drawn] - place_2).T)
        if len(drawn) < _NAMED_ITEMS and (distance_M > _MIN_DISTANCE * size).all():
            drawn.append(number)
            name = escape_unprintable(items_map.names[number])
            axes.text(*place_2, name, fontsize=7, ha="center", va="bottom", color="#222222", path_effects=_outline(2))


def _outline(width: float) -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="white")]
