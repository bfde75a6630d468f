"""Draw a map into a folder: ``map.html``, and ``map.parquet`` with the places.

The page needs no other file: its code is in ``assets/``, and data are embedded as base64 of little-endian arrays:
places as uint16 pairs over the larger side of the map, labels as uint8 (255: none), and neighbors as int32.

Shapes: N items, K neighbors.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import CrossfadeError, InputError, Option, OptionError
from crossfade.base.io.disk_errors import write_failure
from crossfade.base.io.output import staged_file
from crossfade.base.io.replacing import check_replaceable
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.maps.items_map import ItemsMap, build_map
from crossfade.trainer.maps.map_labels import place_names
from crossfade.trainer.maps.options import MapOptions
from crossfade.trainer.recommend.trained_model import TrainedModel
from crossfade.trainer.runs.run_folder import JOB_FILE

_FILES = ("map.html", "map.parquet")
_ASSETS = Path(__file__).parent / "assets"
_FULL_SCALE = 65535
_NO_LABEL = 255
_MAX_WITH_NEIGHBORS = 100_000
"""Items up to which their neighbors in the embedding are in the page; above, it shows those on the map."""


def map_folder(options: MapOptions) -> Path:
    """Return the folder for the map, which may be written.

    Raises:
        InputError: none is named and the model is not a local run, or the files of the folder may not be replaced.
    """
    source, folder = options.source, options.out
    if folder is None:
        if "://" in source or (Path(source).exists() and not (Path(source) / JOB_FILE).exists()):
            naming = Option("out")
            raise InputError(f"{source}: is not a local run folder: name a folder for the map with ", naming)
        folder = Path(source) / "map"

    def find_foreign() -> str | None:
        # A command that was killed may have left hidden files, which the next one deletes.
        own = tuple(f"{dot}{name}" for name in _FILES for dot in ("", "."))
        return min((path.name for path in folder.iterdir() if not path.name.startswith(own)), default=None)

    check_replaceable(folder, options.overwrite, "a map", find_foreign)
    return folder


def draw_map(model: TrainedModel, options: MapOptions, folder: Path, reporter: ProgressReporter) -> ItemsMap:
    """Draw the map of ``model`` into ``folder``, and return it.

    Raises:
        CheckpointError, CrossfadeError, InputError, MissingExtraError: as ``build_map`` and ``write_map``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", found=folder, problem=f"cannot be written: {error.strerror}") from error
    items_map = build_map(model, options, reporter)
    write_map(items_map, folder)
    return items_map


def write_map(items_map: ItemsMap, folder: Path) -> None:
    """Write the files of ``items_map``; each replaces an earlier one when it is complete.

    Raises:
        CrossfadeError: a file cannot be written.
        InputError: another process writes one of them.
    """
    for name, write in zip(_FILES, (write_page, _write_table), strict=True):
        try:
            with staged_file(folder / name) as partial:
                write(items_map, partial)
        except OSError as error:
            raise CrossfadeError(f"{folder / name}: could not be written: {write_failure(error, folder)}") from error


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
    islands = place_names(labels, items_map.place_N2, items_map.neighbor_NK) if labels is not None else {}
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


def _write_table(items_map: ItemsMap, path: Path) -> None:
    columns = {
        "id": items_map.ids,
        "row": pa.array(items_map.rows_N),
        "name": pa.array(items_map.names),
        "x": pa.array(items_map.place_N2[:, 0]),
        "y": pa.array(items_map.place_N2[:, 1]),
    }
    if items_map.labels is not None:
        for column, values in ("label", items_map.labels.names), ("color", items_map.labels.colors):
            columns[column] = pa.array([values[number] if number >= 0 else None for number in items_map.labels.label_N])
    pq.write_table(pa.table(columns), path, compression="zstd", write_page_checksum=True)
