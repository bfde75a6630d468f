"""The manifest of a prepared data set: which files hold which rows.

    DATA/manifest.json
    DATA/vocabulary/ENTITY/part-00000.parquet   row int64, id (int64 or string), count int64, and name string if given
    DATA/SPLIT/part-00000.parquet               QUERY int64, ITEM int64, weight float32, and timestamp if given
    DATA/features/ENTITY/FEATURE/part-00000.parquet     row int64 of ENTITY, value int64: a row of FEATURE
    DATA/pending/ENTITY/part-00000.parquet      id, count int64, last_seen int64: ids that wait for a row

``row`` of a vocabulary runs from 0 without gaps, through all its files; an interaction names rows, never ids.
``count`` is the number of interactions of the split ``train``; that of a feature, such as the artist of tracks, the
number of those whose track has the value. A feature is an entity with a vocabulary of its own.
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvstore.errors import InputError
from kvstore.io.folder import Folder
from kvstore.io.storage_errors import translate_storage_errors
from kvstore.validation_errors import format_validation_error

FILE_NAME = "manifest.json"
JOURNAL = "forget.json"
"""What a deletion leaves where it broke off."""
VOCABULARY = "vocabulary"
FEATURES = "features"
PENDING = "pending"
SPLITS = ("train", "valid", "test")
WEIGHT = "weight"
TIMESTAMP = "timestamp"

_FIX_HINT = "; prepare the data again, elsewhere"

Count = Annotated[int, Field(ge=0)]


def _below(path: str) -> str:
    """``path``, which must lead to a file below the manifest."""
    if not path or path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
        raise ValueError(f"'{path}' is no path of a file below the manifest")
    return str(PurePosixPath(path))


FilePath = Annotated[str, AfterValidator(_below)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFile(_Strict):
    """One Parquet file. ``path`` is relative to the manifest; ``row_groups`` are their row counts.

    ``footer_crc32`` is the CRC-32 of the end of the file: the serialised metadata, their length and ``PAR1``. With
    ``bytes`` it tells a file that was cut off, damaged or exchanged from the one that was written.
    """

    path: FilePath
    bytes: Count
    footer_crc32: Annotated[int, Field(ge=0, lt=2**32)]
    row_groups: list[Count]

    @property
    def rows(self) -> int:
        """The rows in this file."""
        return sum(self.row_groups)


class Split(_Strict):
    """The files of one split, in order."""

    files: list[DataFile]

    @property
    def rows(self) -> int:
        """The interactions in this split."""
        return sum(file.rows for file in self.files)


class Feature(_Strict):
    """What the rows of an entity have of another: files of pairs, each once, sorted by ``row``, then by ``value``."""

    files: list[DataFile]

    @property
    def pairs(self) -> int:
        """How many values all rows have together."""
        return sum(file.rows for file in self.files)


class Entity(_Strict):
    """One kind of thing: its ids and the files of its vocabulary, in the order of rows.

    ``met``: the vocabulary says which rows were liked in train or in that of earlier data, whose rows these keep.
    ``seen``: it says when the id of a row was last seen, and since which data set of the lineage the row is its own.
    ``forgotten`` lists, in order, rows without an id, which were forgotten or have expired: they keep their place, and
    nothing else. ``pending`` are files of ids that have too few events for a row.
    """

    rows: Annotated[int, Field(ge=1)]
    id_type: Literal["int64", "string"]
    has_names: bool = False
    has_warm: bool = False
    has_last_seen: bool = False
    files: list[DataFile]
    vacant_rows: list[Count] = Field(default_factory=list)
    pending: list[DataFile] = Field(default_factory=list)

    @model_validator(mode="after")
    def _forgotten_are_rows(self) -> Entity:
        if any(row >= after for row, after in pairwise([*self.vacant_rows, self.rows])):
            raise ValueError(f"vacant_rows: expected rows from 0 to {self.rows - 1}, each once, in order")
        return self


class DatasetManifest(_Strict):
    """What a prepared data set holds. ``features``: by ``query`` or ``item`` entity, then by name of the feature.

    ``lineage``: what the data sets whose rows these keep are known by (``data_fingerprint``), the first one first.
    """

    format: Literal["crossfade-interactions"] = "crossfade-interactions"
    version: Literal[2] = 2
    query: str
    item: str
    entities: dict[str, Entity]
    splits: dict[Literal["train", "valid", "test"], Split]
    features: dict[str, dict[str, Feature]] = Field(default_factory=dict)
    lineage: list[Count] = Field(default_factory=list)
    has_timestamp: bool = False
    source: dict[str, str | int | float | bool | list[str] | None] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _is_of_this_version(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("version", 2) != 2:
            raise ValueError(f"it is of version {values['version']}, but this Crossfade reads 2")
        return values

    @model_validator(mode="after")
    def _features_are_of_entities(self) -> DatasetManifest:
        has_last_seen = {self.query, self.item}
        for entity, features in self.features.items():
            if entity not in (self.query, self.item):
                raise ValueError(f"features: '{entity}' is neither '{self.query}' nor '{self.item}'")
            for name in features:
                if name not in self.entities or name in has_last_seen:
                    raise ValueError(f"features: '{name}' of '{entity}' is no entity of its own")
                has_last_seen.add(name)
        return self

    def features_of(self, entity: str) -> dict[str, Feature]:
        """The features of ``entity``, by name: none, most likely."""
        return self.features.get(entity, {})

    def feature_owners(self) -> dict[str, str]:
        """Of each feature, the entity whose rows have it."""
        return {name: entity for entity, features in self.features.items() for name in features}

    def files(self) -> list[DataFile]:
        """Every file of vocabularies, of pending ids, of features and of splits."""
        features = [feature for some in self.features.values() for feature in some.values()]
        parts: list[Entity | Feature | Split] = [*self.entities.values(), *features, *self.splits.values()]
        pending = [file for entity in self.entities.values() for file in entity.pending]
        return [*(file for part in parts for file in part.files), *pending]

    def write(self, folder: Folder) -> None:
        """Write ``manifest.json`` into ``folder``: last of all, and in one move, since it makes the data set whole."""
        folder.write(FILE_NAME, (self.model_dump_json(indent=1) + "\n").encode())


def read_manifest(folder: Folder) -> DatasetManifest:
    """Read and check the manifest of ``folder``.

    Raises:
        InputError: there is none, it is not a manifest of this version, or nobody may read it.
        UnreachableError: storage does not answer.
    """
    path = f"{folder.uri}/{FILE_NAME}"
    try:
        manifest = DatasetManifest.model_validate_json(manifest_bytes(folder))
    except ValidationError as error:
        raise InputError(
            f"{path}: not a manifest of prepared data: {format_validation_error(error)}{_FIX_HINT}"
        ) from error
    for name in (manifest.query, manifest.item):
        if name not in manifest.entities:
            raise InputError(f"{path}: not a manifest of prepared data: entities: '{name}' is missing{_FIX_HINT}")
    return manifest


def data_fingerprint(folder: Folder) -> int:
    """What the prepared data in ``folder`` are known by: the CRC-32 of their manifest.

    Raises:
        InputError: there is no manifest, or nobody may read it.
        UnreachableError: storage does not answer.
    """
    return zlib.crc32(manifest_bytes(folder))


def manifest_bytes(folder: Folder) -> bytes:
    """The manifest of ``folder`` as it is written: what the data set is known by.

    Raises:
        InputError: there is none, or nobody may read it.
        UnreachableError: storage does not answer.
    """
    with translate_storage_errors(
        f"{folder.uri}/{FILE_NAME}",
        action="read",
        if_missing=f"no such file; expected a folder written by 'crossfade prepare --out {folder.uri}'",
    ):
        return folder.read(FILE_NAME)
