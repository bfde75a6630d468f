"""The manifest of a data set that was made elsewhere, from the files that are there.

    manifest = discover(Folder("s3://music/plays"), query=None, item=None)

Every file directly in ``SPLIT/``, ``vocabulary/ENTITY/`` and ``features/ENTITY/FEATURE/`` is taken for Parquet,
whatever its ending, but those whose names begin with ``_`` or ``.``: Spark, Athena and Dask leave notes of their own
there. Files of a vocabulary and of a feature go in the order of the rows in them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pyarrow as pa

from kvstore.errors import InputError, format_names
from kvstore.io.folder import Folder
from trainer.data.features import ROW, VALUE
from trainer.data.manifest import (
    FEATURES,
    SPLITS,
    TIMESTAMP,
    VOCABULARY,
    WEIGHT,
    DataFile,
    DatasetManifest,
    Entity,
    Feature,
    Split,
)
from trainer.data.parquet import ParquetFiles, file_entry
from trainer.data.reporter import ProgressReporter

_AT_A_TIME = 8
_LAYOUT = (
    "expected SPLIT/*.parquet (train, and valid and test if there are some), vocabulary/ENTITY/*.parquet and, for "
    "features if there are some, features/ENTITY/FEATURE/*.parquet"
)
_DEPTHS = {**dict.fromkeys(SPLITS, 1), VOCABULARY: 2, FEATURES: 3}
"""In how many folders files of each kind lie."""


@dataclass(frozen=True)
class _Found:
    """The files of one folder of the data set."""

    files: list[DataFile]
    schemas: list[pa.Schema]


def infer_manifest(folder: Folder, query: str | None, item: str | None, progress: ProgressReporter) -> DatasetManifest:
    """Describe the files in ``folder``: what is in their rows is not looked at.

    The entities are ``query`` and ``item`` or, where these are None, the first two columns of train.

    Raises:
        InputError: there are no such files, one is no Parquet file, or vocabularies or columns are missing.
        UnreachableError: storage does not answer.
    """
    paths = _data_paths(folder)
    progress.phase("look at files", len(paths), "file")
    found = _look(folder, paths, progress)
    if "train" not in found:
        raise InputError(f"{folder.uri}: there is no file in train/; {_LAYOUT}")
    columns = found["train"].schemas[0].names
    if len(columns) < 3:
        raise InputError(
            f"{folder.uri}/{found['train'].files[0].path}: has the columns {format_names(columns)}; expected rows of the "
            f"query and of the item entity, and '{WEIGHT}'"
        )
    sides = query or columns[0], item or columns[1]
    features = _features(folder, sides, found)
    names = [*sides, *(name for some in features.values() for name in some)]
    return DatasetManifest(
        query=sides[0],
        item=sides[1],
        entities={name: _entity(folder, name, found.get(f"{VOCABULARY}/{name}")) for name in names},
        features=features,
        splits={split: Split(files=found[split].files) for split in SPLITS if split in found},
        has_timestamp=TIMESTAMP in columns,
        source={"command": "check"},
    )


def _data_paths(folder: Folder) -> list[str]:
    """The paths of all files that are meant to be data, sorted."""
    paths = []
    for path in sorted(folder.sizes()):
        *parents, name = path.split("/")
        if parents and parents[0] in _DEPTHS and name[0] not in "_.":
            if len(parents) != _DEPTHS[parents[0]]:
                raise InputError(f"{folder.uri}/{path}: lies where no file of a data set lies; {_LAYOUT}")
            paths.append(path)
    if not paths:
        raise InputError(f"{folder.uri}: holds no data set, with or without a manifest; {_LAYOUT}")
    return paths


def _look(folder: Folder, paths: Sequence[str], progress: ProgressReporter) -> dict[str, _Found]:
    """What is in each folder. Files are looked at several at a time, since storage may be slow, and told in order."""
    files = ParquetFiles(folder)

    def look(path: str) -> tuple[DataFile, pa.Schema]:
        described = file_entry(folder, path)
        files.check_footer(described)
        return described, files.footer(described).schema.to_arrow_schema().remove_metadata()

    found: dict[str, _Found] = {}
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="look") as pool:
        looks = pool.map(look, paths)
        try:
            for path, (described, schema) in zip(paths, looks, strict=True):
                of_folder = found.setdefault(path.rpartition("/")[0], _Found([], []))
                last = of_folder.schemas[-1] if of_folder.schemas else schema
                of_folder.files.append(described)
                of_folder.schemas.append(last if last.equals(schema) else schema)  # of many files there is one
                progress.advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _features(folder: Folder, sides: Sequence[str], found: dict[str, _Found]) -> dict[str, dict[str, Feature]]:
    """The features by entity and name: the files of each go in the order of the rows in them."""
    features: dict[str, dict[str, Feature]] = {}
    taken = set(sides)
    for path, of_folder in found.items():
        kind, *rest = path.split("/")
        if kind == FEATURES:
            entity, name = rest
            if entity not in sides or name in taken:
                raise InputError(
                    f"{folder.uri}/{path}: expected a feature of {' or '.join(sides)}, of a name that no other entity "
                    "has; rename its folder, or name the entities with --query and --item"
                )
            taken.add(name)
            filled = _filled(folder, of_folder, (ROW, VALUE), "row and value")
            files = sorted((file for file, _ in filled), key=partial(_first_row, folder))
            features.setdefault(entity, {})[name] = Feature(files=files)
    return features


def _filled(folder: Folder, found: _Found, columns: Collection[str], expected: str) -> list[tuple[DataFile, pa.Schema]]:
    """The files that have rows, and their schemas, which must have ``columns``."""
    filled = [(file, schema) for file, schema in zip(found.files, found.schemas, strict=True) if file.rows]
    for file, schema in filled:
        if missing := set(columns) - set(schema.names):
            raise InputError(
                f"{folder.uri}/{file.path}: has the columns {format_names(schema.names)}, but '{min(missing)}' is missing; "
                f"expected {expected}"
            )
    return filled


def _entity(folder: Folder, name: str, found: _Found | None) -> Entity:
    where = f"{folder.uri}/{VOCABULARY}/{name}"
    if found is None:
        raise InputError(
            f"{where}: there is no vocabulary of '{name}', which is a column of train or a feature; {_LAYOUT}, ENTITY "
            "being the name of the column; if other columns are meant, name them with --query and --item"
        )
    filled = _filled(folder, found, ("row", "id", "count"), "row, id, count, and name if there are names")
    if not filled:
        raise InputError(f"{where}: the vocabulary has no row; expected one for each {name}")
    kind = filled[0][1].field("id").type
    id_type: Literal["int64", "string"] = "int64" if pa.types.is_integer(kind) else "string"
    named, met = (all(column in schema.names for _, schema in filled) for column in ("name", "met"))
    files = sorted((file for file, _ in filled), key=partial(_first_row, folder))
    return Entity(rows=sum(file.rows for file in files), id_type=id_type, has_names=named, has_warm=met, files=files)


def _first_row(folder: Folder, file: DataFile) -> int:
    """The first row in a file; what is wrong with it is found when all of it is read."""
    index = next(index for index, rows in enumerate(file.row_groups) if rows)
    first = ParquetFiles(folder).read(file, index, ["row"]).column("row")[0].as_py()
    return first if isinstance(first, int) else -1
