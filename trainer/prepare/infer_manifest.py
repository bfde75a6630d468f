"""Infer the manifest of a dataset that another tool has written, from its files.

    manifest = infer_manifest(Folder("s3://music/plays"), query=None, item=None, progress=NullReporter())

Every file directly in ``SPLIT/``, ``vocabulary/ENTITY/`` and ``features/ENTITY/FEATURE/`` is read as Parquet, whatever
its extension, except those whose names begin with ``_`` or ``.``: Spark, Athena and Dask write their own metadata
there. The files of a vocabulary and of a feature are ordered by the rows in them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pyarrow as pa

from crossfade.base.errors import InputError, Option, format_names
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT, is_entity_name
from crossfade.trainer.data.features import ROW, VALUE
from crossfade.trainer.data.manifest import (
    FEATURES,
    VOCABULARY,
    DataFile,
    DatasetManifest,
    Entity,
    Feature,
    Split,
)
from crossfade.trainer.data.parquet import ParquetFiles, file_entry
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS

_THREADS = 8
_NAMED = (Option("query"), " and ", Option("item"))
_LAYOUT = (
    "expected SPLIT/*.parquet (train, and optionally valid and test), vocabulary/ENTITY/*.parquet and, if there are "
    "features, features/ENTITY/FEATURE/*.parquet"
)
_DEPTHS: dict[str, int] = {**dict.fromkeys(ALL_SPLITS, 1), VOCABULARY: 2, FEATURES: 3}
"""Depth of the folders of each kind of files."""


@dataclass(frozen=True)
class _DataFolder:
    """The files of one folder of the dataset, and their schemas."""

    files: list[DataFile]
    schemas: list[pa.Schema]


def infer_manifest(folder: Folder, query: str | None, item: str | None, progress: ProgressReporter) -> DatasetManifest:
    """Infer the manifest from the names and footers of the files in ``folder``; their rows are not checked.

    The entities are ``query`` and ``item`` or, where these are None, the first two columns of train. Other columns that
    have a vocabulary are context.

    Raises:
        InputError: there are no such files, one is not a Parquet file, or vocabularies or columns are missing.
        StorageUnavailableError: storage does not answer.
    """
    paths = _data_paths(folder)
    progress.phase("read footers", len(paths), "file")
    found = _read_footers(folder, paths, progress)
    if "train" not in found:
        raise InputError(f"{folder.uri}: train/ has no file; {_LAYOUT}")
    columns = found["train"].schemas[0].names
    if len(columns) < 3:
        raise InputError(
            f"{folder.uri}/{found['train'].files[0].path}: has the columns {format_names(columns)}; expected rows of "
            f"the query entity, rows of the item entity, and '{WEIGHT}'"
        )
    sides = query or columns[0], item or columns[1]
    _check_names(folder, sides, found)
    features = _features(folder, sides, found)
    context = [name for name in columns if name not in sides and f"{VOCABULARY}/{name}" in found]
    names = [*sides, *(name for some in features.values() for name in some), *context]
    return DatasetManifest(
        query=sides[0],
        item=sides[1],
        entities={name: _entity(folder, name, found.get(f"{VOCABULARY}/{name}")) for name in names},
        features=features,
        context=context,
        splits={split: Split(files=found[split].files) for split in ALL_SPLITS if split in found},
        has_timestamp=TIMESTAMP in columns,
        source={"command": "validate"},
    )


def _check_names(folder: Folder, sides: tuple[str, str], found: dict[str, _DataFolder]) -> None:
    """Check that the entities, and the features that folders name, have names that a manifest can hold."""
    if sides[0] == sides[1]:
        raise InputError(f"{folder.uri}: query and item are both '{sides[0]}'; name two columns with ", _NAMED)
    for name in [*sides, *(path.split("/")[2] for path in found if path.startswith(f"{FEATURES}/"))]:
        if not is_entity_name(name):
            raise InputError(
                f"{folder.uri}: '{name:.100}' cannot be the name of an entity; expected a word of at most 100 ASCII "
                "letters, digits, '_' and '-': rename the column and its folders, or name others with ",
                _NAMED,
            )


def _data_paths(folder: Folder) -> list[str]:
    """Return the paths of all data files, sorted."""
    paths = []
    for path in sorted(folder.sizes()):
        *parents, name = path.split("/")
        if parents and parents[0] in _DEPTHS and name[0] not in "_.":
            if len(parents) != _DEPTHS[parents[0]]:
                raise InputError(f"{folder.uri}/{path}: is not where files of a dataset are; {_LAYOUT}")
            paths.append(path)
    if not paths:
        raise InputError(f"{folder.uri}: holds no dataset, with or without a manifest; {_LAYOUT}")
    return paths


def _read_footers(folder: Folder, paths: Sequence[str], progress: ProgressReporter) -> dict[str, _DataFolder]:
    """Describe the files by folder. Footers are read by several threads, since storage may have high latency."""
    files = ParquetFiles(folder)

    def read(path: str) -> tuple[DataFile, pa.Schema]:
        entry = file_entry(folder, path)
        files.check_footer(entry)
        return entry, files.footer(entry).schema.to_arrow_schema().remove_metadata()

    found: dict[str, _DataFolder] = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="footers") as pool:
        results = pool.map(read, paths)
        try:
            for path, (entry, schema) in zip(paths, results, strict=True):
                in_folder = found.setdefault(path.rpartition("/")[0], _DataFolder([], []))
                last = in_folder.schemas[-1] if in_folder.schemas else schema
                in_folder.files.append(entry)
                in_folder.schemas.append(last if last.equals(schema) else schema)  # share one object among many files
                progress.advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _features(folder: Folder, sides: Sequence[str], found: dict[str, _DataFolder]) -> dict[str, dict[str, Feature]]:
    """Return the features by entity and name, the files of each ordered by the rows in them."""
    features: dict[str, dict[str, Feature]] = {}
    taken = set(sides)
    for path, data_folder in found.items():
        kind, *rest = path.split("/")
        if kind == FEATURES:
            entity, name = rest
            if entity not in sides or name in taken:
                raise InputError(
                    f"{folder.uri}/{path}: expected a feature of {' or '.join(sides)}, with a name that no other "
                    "entity has; rename its folder, or name the entities with ",
                    _NAMED,
                )
            taken.add(name)
            filled = _files_with_rows(folder, data_folder, (ROW, VALUE), "row and value")
            files = sorted((file for file, _ in filled), key=partial(_first_row, folder))
            features.setdefault(entity, {})[name] = Feature(files=files)
    return features


def _files_with_rows(
    folder: Folder, found: _DataFolder, columns: Collection[str], expected: str
) -> list[tuple[DataFile, pa.Schema]]:
    """Return the files that have rows, and their schemas, which must have ``columns``."""
    filled = [(file, schema) for file, schema in zip(found.files, found.schemas, strict=True) if file.rows]
    for file, schema in filled:
        if missing := set(columns) - set(schema.names):
            raise InputError(
                f"{folder.uri}/{file.path}: has the columns {format_names(schema.names)}, but '{min(missing)}' is "
                f"missing; expected {expected}"
            )
    return filled


def _entity(folder: Folder, name: str, found: _DataFolder | None) -> Entity:
    where = f"{folder.uri}/{VOCABULARY}/{name}"
    if found is None:
        raise InputError(
            f"{where}: there is no vocabulary of '{name}', which is a column of train or a feature; {_LAYOUT}, where "
            "ENTITY is the name of the column; if the entities are other columns, name them with ",
            _NAMED,
        )
    filled = _files_with_rows(folder, found, ("row", "id", "count"), "row, id, count, and name if there are names")
    if not filled:
        raise InputError(f"{where}: the vocabulary has no row; expected one for each {name}")
    data_type = filled[0][1].field("id").type
    id_type: Literal["int64", "string"] = "int64" if pa.types.is_integer(data_type) else "string"
    has_names = all("name" in schema.names for _, schema in filled)
    files = sorted((file for file, _ in filled), key=partial(_first_row, folder))
    return Entity(rows=sum(file.rows for file in files), id_type=id_type, has_names=has_names, files=files)


def _first_row(folder: Folder, file: DataFile) -> int:
    """Return the first row in a file; it is only compared, since errors are found when the file is validated."""
    index = next(index for index, rows in enumerate(file.row_groups) if rows)
    first = ParquetFiles(folder).read(file, index, ["row"]).column("row")[0].as_py()
    return first if isinstance(first, int) else -1
