"""The manifest of a prepared dataset: which files hold which rows.

    manifest = read_manifest(Folder("data/plays"))
    manifest.splits["train"].rows, manifest.entities["track"].rows

    DATA/manifest.json
    DATA/vocabulary/ENTITY/part-00000.parquet   row int64, id (int64 or string), count int64, and name string if given
    DATA/SPLIT/part-00000.parquet               QUERY int64, ITEM int64, weight float32, and timestamp if given, and an
                                                int64 column for each context entity: a row of it, or -1 for none
    DATA/earlier/SPLIT/part-00000.parquet       as a split: interactions of the datasets that this one extends
    DATA/replay/part-00000.parquet              as a split: earlier interactions of train to train on again
    DATA/features/ENTITY/FEATURE/part-00000.parquet     row int64 of ENTITY, value int64: a row of FEATURE
    DATA/content/ENTITY/COLUMN/part-00000.parquet       row int64 of ENTITY, value: a list of float32
    DATA/pending/ENTITY/part-00000.parquet      id, count int64, last_seen int64: IDs that have no row yet

``row`` of a vocabulary runs from 0 without gaps, through all its files; interactions refer to rows, never to IDs.
``count`` is the number of interactions of the split ``train``; for a feature, such as the artist of tracks, the number
of interactions whose track has the value. A feature is an entity with its own vocabulary.
docs/reference.md describes every column.
"""

from __future__ import annotations

import zlib
from collections import Counter
from itertools import pairwise
from pathlib import PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from crossfade.base.errors import InputError, command
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.json_text import validate_json
from crossfade.trainer.data.column_names import MAX_CONTENT_WIDTH, TIMESTAMP, WEIGHT, is_entity_name
from crossfade.trainer.data.split_names import SplitName

FILE_NAME = "manifest.json"
BASELINES_FILE = "baselines.json"
"""Metrics of baselines, and what was tried for tuned ones; evaluations keep it beside the data (docs/evaluation.md)."""
VOCABULARY = "vocabulary"
FEATURES = "features"
CONTENT = "content"
PENDING = "pending"
EARLIER = "earlier"
REPLAY = "replay"

_VERSION: Literal[4] = 4
_FIX_HINT = "; prepare the data again into another folder"

_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 1024
"""What file systems allow of a name, and S3 of a path."""

Count = Annotated[int, Field(ge=0, lt=2**63)]


def _check_relative(path: str) -> str:
    names = path.split("/")
    if {"", ".", ".."} & set(names) or PureWindowsPath(path).drive:
        raise ValueError(f"'{path:.200}' must be a relative path inside the dataset")
    if "\\" in path or not path.isprintable():
        raise ValueError(f"'{path:.200}' has a backslash or a character that is not printable")
    if len(path.encode()) > _MAX_PATH_BYTES or max(len(name.encode()) for name in names) > _MAX_NAME_BYTES:
        raise ValueError(f"'{path:.60}…' is longer than paths can be")
    return path


FilePath = Annotated[str, AfterValidator(_check_relative)]
"""A path relative to the manifest, which cannot lead out of its folder."""


def _check_name(name: str) -> str:
    if not is_entity_name(name):
        raise ValueError(
            f"'{name:.100}' cannot be the name of an entity; expected a word of at most 100 ASCII letters, digits, "
            f"'_' and '-', other than '{WEIGHT}' and '{TIMESTAMP}'"
        )
    return name


EntityName = Annotated[str, AfterValidator(_check_name)]


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

    @property
    def content(self) -> tuple[int, int, list[int]]:
        """What files of the same content have in common."""
        return self.bytes, self.footer_crc32, self.row_groups


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


class Content(_Strict):
    """The files of one content column: (row, value) pairs with ``width`` float32 each, at most one per row, sorted.

    Models read (value − ``mean``) / ``std``, which are those of the column's numbers. For vectors, ``mean`` is 0 and
    ``std`` the root mean square of all their values, so that their directions are kept.
    """

    width: Annotated[int, Field(ge=1, le=MAX_CONTENT_WIDTH)]
    mean: Annotated[float, Field(allow_inf_nan=False)]
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    files: list[DataFile]

    @property
    def pairs(self) -> int:
        """The number of rows that have a value."""
        return sum(file.rows for file in self.files)


class Entity(_Strict):
    """The vocabulary of one entity, such as customers, tracks or artists: its files in the order of rows.

    The optional columns: ``has_names`` for ``name``; ``has_earlier_count`` for ``earlier_count``, the sum of the counts
    of the row in the datasets that this one extends; ``has_last_seen`` for ``last_seen`` and ``lineage_index``, when
    the ID last occurred and in which dataset of the lineage it got the row.
    ``vacant_rows`` lists, sorted, the rows without an ID, since it was forgotten or has expired: they keep their place,
    so that other rows keep theirs. ``pending`` are the files of IDs that have too few events for a row.
    """

    rows: Annotated[int, Field(ge=1, lt=2**63)]
    id_type: Literal["int64", "string"]
    has_names: bool = False
    has_earlier_count: bool = False
    has_last_seen: bool = False
    files: list[DataFile]
    vacant_rows: list[Count] = Field(default_factory=list)
    pending: list[DataFile] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_vacant_rows(self) -> Entity:
        if any(row >= after for row, after in pairwise([*self.vacant_rows, self.rows])):
            raise ValueError(f"vacant_rows: expected rows from 0 to {self.rows - 1}, each once, in order")
        return self


class CoOccurrence(_Strict):
    """How much the items of a query say about each other, in train (``trainer/prepare/co_occurrence.py``).

    ``lift`` is how many times as often as by chance two items of one query also occur together at another; 1 if they
    are independent. ``items_per_query`` is how many different items a query has on average.
    """

    lift: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    items_per_query: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class DatasetManifest(_Strict):
    """The contents of a prepared dataset.

    ``features`` and ``content`` are grouped by their ``query`` or ``item`` entity, then by name; ``content`` is left
    out of the JSON if empty. ``context`` are the entities that belong to events, such as the hour or the device, whose
    rows are columns of the splits. ``lineage`` holds the fingerprints (``data_fingerprint``) of the datasets that this
    one extends, the oldest first, and before deletions its own. ``earlier`` are the interactions of those datasets, by
    split, of IDs that still have their rows; it is left out of the JSON if there are none. With ``is_grouped``, the
    interactions of a query entity are consecutive in each of ``splits``, and in ``replay``: earlier interactions for
    training and nothing else, which are neither history nor counted, and which datasets that extend this one ignore,
    since they have the originals; it is left out of the JSON if there are none. ``co_occurrence`` is how much the items
    of a query say about each other, left out of the JSON if it was not measured. ``source`` documents how the data were
    prepared, what was dropped and why.
    """

    format: Literal["crossfade-interactions"] = "crossfade-interactions"
    version: Literal[4] = _VERSION
    query: EntityName
    item: EntityName
    entities: dict[EntityName, Entity]
    splits: dict[SplitName, Split]
    earlier: dict[SplitName, Split] = Field(default_factory=dict)
    replay: Split | None = None
    features: dict[str, dict[str, Feature]] = Field(default_factory=dict)
    content: dict[str, dict[EntityName, Content]] = Field(default_factory=dict)
    context: list[EntityName] = Field(default_factory=list)
    lineage: list[Count] = Field(default_factory=list)
    has_timestamp: bool = False
    is_grouped: bool = False
    co_occurrence: CoOccurrence | None = None
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
        if self.query == self.item:
            raise ValueError(f"query and item are both '{self.query}'; expected two entities")
        taken = {self.query, self.item}
        for entity, features in self.features.items():
            if entity not in (self.query, self.item):
                raise ValueError(f"features: '{entity}' is neither '{self.query}' nor '{self.item}'")
            for name in features:
                if name not in self.entities or name in taken:
                    raise ValueError(f"features: '{name}' of '{entity}' must be an entity of its own")
                taken.add(name)
        for name in self.context:
            if name not in self.entities or name in taken:
                raise ValueError(f"context: '{name}' must be another entity than query, item and features, once")
            taken.add(name)
        return self

    @model_validator(mode="after")
    def _check_content(self) -> DatasetManifest:
        taken = set(self.entities)
        for entity, columns in self.content.items():
            if entity not in (self.query, self.item):
                raise ValueError(f"content: '{entity}' is neither '{self.query}' nor '{self.item}'")
            for name in columns:
                if name in taken:
                    raise ValueError(f"content: the name '{name}' of '{entity}' is in use")
                taken.add(name)
        return self

    @model_validator(mode="after")
    def _check_files(self) -> DatasetManifest:
        """Reject a file that is listed twice: its rows would count twice, and a deletion would rewrite it twice."""
        listed = Counter(file.path for file in self.files())
        if listed and listed.most_common(1)[0][1] > 1:
            raise ValueError(f"'{listed.most_common(1)[0][0]}' is listed more than once")
        if sum(file.rows for file in self.files()) >= 2**63:
            raise ValueError("files have more rows than 64-bit integers can count")
        return self

    def trained_on(self) -> Split:
        """Return what is trained on: train, and then the earlier interactions that are replayed."""
        parts = [self.splits["train"], *([self.replay] if self.replay else [])]
        return Split(files=[file for part in parts for file in part.files])

    def interactions(self) -> dict[str, Split]:
        """Return all interactions by the folder of their files."""
        found = {str(name): split for name, split in self.splits.items()}
        found |= {f"{EARLIER}/{name}": split for name, split in self.earlier.items()}
        return found if self.replay is None else {**found, REPLAY: self.replay}

    def features_of(self, entity: str) -> dict[str, Feature]:
        """Return the features of ``entity`` by name, which may be none."""
        return self.features.get(entity, {})

    def content_of(self, entity: str) -> dict[str, Content]:
        """Return the content columns of ``entity`` by name, which may be none."""
        return self.content.get(entity, {})

    def feature_owners(self) -> dict[str, str]:
        """Return, for each feature, the entity whose rows have it."""
        return {name: entity for entity, features in self.features.items() for name in features}

    def hold_out_notes(self) -> list[str]:
        """Return a sentence, in a list, if test or valid was held out at random although interactions have times."""
        valid, test = (str(self.source.get(f"hold_out_{split}", "")) for split in ("valid", "test"))
        test = test or str(self.source.get("hold_out", ""))
        if not self.has_timestamp:
            return []
        if test and not test.startswith("random"):
            if not valid.startswith("random") and not self.source.get("valid_by_default"):
                return []
            return [
                "valid is held out at random, and test by time: the epoch and the factor of popularity that are best "
                "on valid need not be best for the future (hold out both by time)"
            ]
        if not test:
            return []
        return [
            "test is held out at random, although interactions have times: it does not show how well the future is "
            "predicted (a hold-out after:TIME does)"
        ]

    def files(self) -> list[DataFile]:
        """Return every file of vocabularies, pending IDs, features, content, and interactions."""
        features = [feature for some in self.features.values() for feature in some.values()]
        content = [column for some in self.content.values() for column in some.values()]
        interactions = self.interactions().values()
        parts: list[Feature | Content | Split] = [*features, *content, *interactions]
        of_entities = [file for entity in self.entities.values() for file in (*entity.files, *entity.pending)]
        return [*of_entities, *(file for part in parts for file in part.files)]

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
        absent = {name for name in ("content", "earlier", "replay", "co_occurrence") if not getattr(self, name)}
        return (self.model_dump_json(indent=1, exclude=absent) + "\n").encode()


def read_manifest(folder: Folder) -> DatasetManifest:
    """Read and validate the manifest of ``folder``.

    Raises:
        InputError: there is none, it is not a manifest of this format version, or it may not be read.
        StorageUnavailableError: storage does not answer.
    """
    try:
        manifest = validate_json(DatasetManifest, manifest_bytes(folder))
        _check_entities(manifest)
    except ValueError as error:
        raise InputError(f"{folder.uri}/{FILE_NAME}: not a manifest of prepared data: {error}{_FIX_HINT}") from error
    return manifest


def _check_entities(manifest: DatasetManifest) -> None:
    """Check that query and item have vocabularies, and that files have as many rows as their entity.

    Arrays and tables are made with ``rows`` entries, and a footer that disagrees with ``row_groups`` is rejected, so a
    manifest alone cannot make a table of any size.
    """
    for name in (manifest.query, manifest.item):
        if name not in manifest.entities:
            raise ValueError(f"entities: '{name}' is missing")
    for name, entity in manifest.entities.items():
        rows = sum(file.rows for file in entity.files)
        if rows != entity.rows:
            raise ValueError(f"entities.{name}: has {entity.rows:,} rows, but its files have {rows:,}")


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
        if_missing=f"no such file; expected a folder written by {command('prepare', out=folder.uri)}",
    ):
        return folder.read(FILE_NAME)
