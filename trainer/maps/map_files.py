"""Draw a map into a folder: ``map.png``, ``map.html``, and ``map.parquet``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import CrossfadeError, InputError, Option, OptionError
from crossfade.base.io.disk_errors import write_failure
from crossfade.base.io.output import staged_file
from crossfade.base.io.replacing import check_replaceable
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.maps.items_map import ItemsMap, build_map
from crossfade.trainer.maps.options import MapOptions
from crossfade.trainer.maps.page import write_page
from crossfade.trainer.maps.picture import write_picture
from crossfade.trainer.recommend.trained_model import TrainedModel
from crossfade.trainer.runs.run_folder import JOB_FILE

_FILES = ("map.png", "map.html", "map.parquet")


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
    _check_free(folder, options.overwrite)
    return folder


def draw_map(
    model: TrainedModel, options: MapOptions, folder: Path, reporter: ProgressReporter
) -> tuple[ItemsMap, str | None]:
    """Draw the map of ``model`` into ``folder``; return it, with what ``write_map`` returns.

    Raises:
        CheckpointError, CrossfadeError, InputError, MissingExtraError: as ``build_map`` and ``write_map``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", found=folder, problem=f"cannot be written: {error.strerror}") from error
    items_map = build_map(model, options, reporter)
    return items_map, write_map(items_map, folder)


def _check_free(folder: Path, overwrite: bool) -> None:
    """Reject a ``folder`` with other files than a map's, or with a complete map unless ``overwrite`` is given.

    Raises:
        InputError: its files may not be replaced.
    """

    def find_foreign() -> str | None:
        # A command that was killed may have left hidden files, which the next one deletes.
        own = tuple(f"{dot}{name}" for name in _FILES for dot in ("", "."))
        return min((path.name for path in folder.iterdir() if not path.name.startswith(own)), default=None)

    # The table is written last.
    if folder.is_dir() and not (folder / _FILES[-1]).exists() and find_foreign() is None:
        return
    check_replaceable(folder, overwrite, "a map", find_foreign)


def write_map(items_map: ItemsMap, folder: Path) -> str | None:
    """Write the files of ``items_map``; each replaces an earlier one when it is complete.

    Returns:
        What could not be drawn, and what to install; None if all could.

    Raises:
        CrossfadeError: a file cannot be written.
        InputError: another process writes one of them.
        MissingExtraError: matplotlib is not installed.
    """
    writers: list[Callable[[ItemsMap, Path], str | None]] = [write_picture, write_page, _write_table]
    note = None
    for name, write in zip(_FILES, writers, strict=True):
        try:
            with staged_file(folder / name) as partial:
                note = write(items_map, partial) or note
        except OSError as error:
            raise CrossfadeError(f"{folder / name}: could not be written: {write_failure(error, folder)}") from error
    return note


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
