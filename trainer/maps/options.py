"""Options of ``crossfade map``: which items to draw, and how."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from crossfade.base.options import Integer, option
from crossfade.trainer.recommend.options import ListFiles
from crossfade.trainer.runs.options import ModelSource

_map = partial(option, group="map")


class MapOptions(ListFiles, ModelSource):
    """Which items to draw, and how."""

    count: Integer = _map(5000, "map the N most frequent", value="N", ge=1)
    color: str | None = _map(None, "color by this feature or column (default: the first feature)", value="COLUMN")
    colors: Integer = _map(12, "color N values", value="N", ge=1, le=250)
    seed: Integer = _map(1, "project with this seed", value="N", ge=0)
    out: Path | None = option(
        None, "write to this folder (default: the folder map of a local run)", group="output", value="OUT"
    )
    overwrite: bool = option(False, "replace the map in the folder", group="output")
