"""Write a map to a folder: ``map.png``, ``map.html``, and ``map.parquet``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import CrossfadeError
from crossfade.base.io.disk_errors import write_failure
from crossfade.base.io.output import staged_file
from crossfade.base.io.replacing import check_replaceable
from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.page import write_page
from crossfade.trainer.maps.picture import write_picture

_FILES = ("map.png", "map.html", "map.parquet")


def check_free(folder: Path, overwrite: bool) -> None:
    """Reject a ``folder`` with other files than a map's, or with a complete map unless ``overwrite`` is given.

    Raises:
        InputError: its files may not be replaced.
    """

    def find_foreign() -> str | None:
        # A command that was killed may have left hidden files, which the next one deletes.
        own = tuple(f"{dot}{name}" for name in _FILES for dot in ("", "."))
        foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith(own))
        return f"--out {folder}: holds '{foreign[0]}', which is not part of a map; choose another" if foreign else None

    # The table is written last.
    if folder.is_dir() and not (folder / _FILES[-1]).exists() and find_foreign() is None:
        return
    check_replaceable(
        folder,
        overwrite,
        exists=f"--out {folder}: already exists; choose another, or replace a map with --overwrite",
        no_folder=f"--out {folder}: is not a folder, so --overwrite does not replace it; choose another",
        find_foreign=find_foreign,
    )


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
