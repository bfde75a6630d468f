"""The manifest of a prepared dataset: which files hold which rows.

    manifest = read_manifest(Folder("data/plays"))
    manifest.splits["train"].rows, manifest.entities["track"].rows

    DATA/manifest.json
    DATA/vocabulary/ENTITY/part-00000.parquet   row int64, id (int64 or string), count int64, and name string if given
    DATA/SPLIT/part-00000.parquet               QUERY int64, ITEM int64, weight float32, and timestamp if given
    DATA/features/ENTITY/FEATURE/part-00000.parquet     row int64 of ENTITY, value int64: a row of FEATURE
    DATA/pending/ENTITY/part-00000.parquet      id, count int64, last_seen int64: IDs that have no row yet

``row`` of a vocabulary runs from 0 without gaps, through all its files; interactions refer to rows, never to IDs.
``count`` is the number of interactions of the split ``train``; for a feature, such as the artist of tracks, the number
of interactions whose track has the value. A feature is an entity with its own vocabulary.
docs/data-format.md describes every column.
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from crossfade.kvstore.errors import InputError
from crossfade.kvstore.io.folder import Folder
from crossfade.kvstore.io.output import finish_replacement
from crossfade.kvstore.io.storage_errors import translate_storage_errors
from crossfade.kvstore.validation_errors import format_validation_error

FILE_NAME = "manifest.json"
BASELINES_FILE = "baselines.json"
"""Metrics of rankings without training, which evaluations keep beside the data (docs/evaluation.md)."""
JOURNAL = "forget.json"
"""The list of files that an interrupted deletion may have left behind."""
VOCABULARY = "vocabulary"
FEATURES = "features"
PENDING = "pending"
SPLITS = ("train", "valid", "test")
WEIGHT = "weight"
TIMESTAMP = "timestamp"

_VERSION: Literal[3] = 3
_FIX_HINT = "; prepare the data again into another folder"

Count = Annotated[int, Field(ge=0)]


def _check_relative(path: str) -> str:
    if not path or path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
        raise ValueError(f"'{path}' must be a relative path inside the dataset")
    return str(PurePosixPath(path))


FilePath = Annotated[str, AfterValidator(_check_relative)]
"""A path relative to the manifest, which cannot lead out of its folder."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFile(_Strict):
    """One Parquet file. ``path`` is relative to the manifest; ``row_groups`` are the rows of each row group.

    ``footer_crc32`` is the CRC-32 of the end of the file: the serialized metadata, their length and ``PAR1``. Together
    with ``bytes`` it detects files that were truncated, corrupted or replaced.
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
    """The files of (row, value) pairs of one feature: each pair once, sorted by ``row``, then by ``value``."""

    files: list[DataFile]

    @property
    def pairs(self) -> int:
        """The number of (row, value) pairs."""
        return sum(file.rows for file in self.files)


class Entity(_Strict):
    """The vocabulary of one entity, such as customers, tracks or artists: its files in the order of rows.

    The optional columns: ``has_names`` for ``name``; ``has_warm`` for ``warm``, whether the row had an interaction of
    positive weight in the train split of this dataset or of its base datasets; ``has_last_seen`` for ``last_seen`` and
    ``lineage_index``, when the ID last occurred and in which dataset of the lineage it got the row.
    ``vacant_rows`` lists, sorted, the rows without an ID, since it was forgotten or has expired: they keep their place,
    so that other rows keep theirs. ``pending`` are the files of IDs that have too few events for a row.
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
    def _check_vacant_rows(self) -> Entity:
        if any(row >= after for row, after in pairwise([*self.vacant_rows, self.rows])):
            raise ValueError(f"vacant_rows: expected rows from 0 to {self.rows - 1}, each once, in order")
        return self


class DatasetManifest(_Strict):
    """The contents of a prepared dataset.

    ``features`` are grouped by their ``query`` or ``item`` entity, then by name. ``lineage`` holds the fingerprints
    (``data_fingerprint``) of the base datasets whose rows this one keeps, the oldest first. ``source`` documents how
    the data were prepared, what was dropped and why.
    """

    format: Literal["crossfade-interactions"] = "crossfade-interactions"
    version: Literal[3] = _VERSION
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
    def _check_version(cls, values: Any) -> Any:
        """Reject other versions first: their fields would only give misleading errors."""
        if isinstance(values, dict) and values.get("version", _VERSION) != _VERSION:
            raise ValueError(f"has format version {values['version']}, but version {_VERSION} is required")
        return values

    @model_validator(mode="after")
    def _check_features(self) -> DatasetManifest:
        taken = {self.query, self.item}
        for entity, features in self.features.items():
            if entity not in (self.query, self.item):
                raise ValueError(f"features: '{entity}' is neither '{self.query}' nor '{self.item}'")
            for name in features:
                if name not in self.entities or name in taken:
                    raise ValueError(f"features: '{name}' of '{entity}' must be an entity of its own")
                taken.add(name)
        return self

    def features_of(self, entity: str) -> dict[str, Feature]:
        """Return the features of ``entity`` by name, which may be none."""
        return self.features.get(entity, {})

    def feature_owners(self) -> dict[str, str]:
        """Return, for each feature, the entity whose rows have it."""
        return {name: entity for entity, features in self.features.items() for name in features}

    def files(self) -> list[DataFile]:
        """Return every file of vocabularies, pending IDs, features and splits."""
        features = [feature for some in self.features.values() for feature in some.values()]
        parts: list[Entity | Feature | Split] = [*self.entities.values(), *features, *self.splits.values()]
        pending = [file for entity in self.entities.values() for file in entity.pending]
        return [*(file for part in parts for file in part.files), *pending]

    def write(self, folder: Folder) -> None:
        """Write ``manifest.json`` into ``folder``: last and atomically, since it completes the dataset."""
        folder.write(FILE_NAME, self._to_bytes())

    def write_over(self, folder: Folder, version: str | None) -> None:
        """Write it as ``write`` does, if the version of the present one is still ``version``, None if there is none.

        Raises:
            ChangedError: another process has written or deleted it.
        """
        folder.write_over(FILE_NAME, self._to_bytes(), version)

    def _to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()


def read_manifest(folder: Folder) -> DatasetManifest:
    """Read and validate the manifest of ``folder``.

    Raises:
        InputError: there is none, it is not a manifest of this format version, or it may not be read.
        StorageUnavailableError: storage does not answer.
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
    """Return the CRC-32 of the manifest of ``folder``, which identifies the dataset in lineages and checkpoints.

    Raises:
        InputError: there is no manifest, or it may not be read.
        StorageUnavailableError: storage does not answer.
    """
    return zlib.crc32(manifest_bytes(folder))


def manifest_bytes(folder: Folder) -> bytes:
    """Return the manifest of ``folder`` as it was written, after restoring a dataset whose replacement was killed.

    Raises:
        InputError: there is none, it may not be read, or another process is replacing it.
        StorageUnavailableError: storage does not answer.
    """
    with translate_storage_errors(
        f"{folder.uri}/{FILE_NAME}",
        action="read",
        if_missing=f"no such file; expected a folder written by 'crossfade prepare --out {folder.uri}'",
    ):
        restore_dataset(folder)
        return folder.read(FILE_NAME)


def restore_dataset(folder: Folder) -> None:
    """Restore the dataset in ``folder`` if a process that was replacing it was killed.

    Raises:
        InputError: another process is replacing it.
        OSError: it cannot be restored.
    """
    if folder.path is not None:
        finish_replacement(folder.path.absolute())
