"""The manifest of a prepared data set: which files hold which rows.

    DATA/manifest.json
    DATA/vocabulary/ENTITY/part-00000.parquet   row int64, id (int64 or string), count int64, and name string if given
    DATA/SPLIT/part-00000.parquet               QUERY int64, ITEM int64, weight float32, and timestamp if given

``row`` of a vocabulary runs from 0 without gaps, through all its files; an interaction names rows, never ids.
``count`` is the number of interactions of the split ``train``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvstore.errors import InputError
from kvstore.storage import Folder

FILE_NAME = "manifest.json"
VOCABULARY = "vocabulary"
SPLITS = ("train", "valid", "test")
WEIGHT = "weight"
TIMESTAMP = "timestamp"

Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFile(_Strict):
    """One Parquet file of a split. ``path`` is relative to the manifest; ``row_groups`` are their row counts."""

    path: str
    bytes: Count
    row_groups: list[Count]

    @property
    def rows(self) -> int:
        """The interactions in this file."""
        return sum(self.row_groups)


class Split(_Strict):
    """The files of one split, in order."""

    files: list[DataFile]

    @property
    def rows(self) -> int:
        """The interactions in this split."""
        return sum(file.rows for file in self.files)


class Entity(_Strict):
    """One kind of thing: its ids and the files of its vocabulary, in the order of rows.

    ``forgotten`` lists, in order, rows whose id and name were deleted: they keep their place, and nothing else.
    """

    rows: Annotated[int, Field(ge=1)]
    id_type: Literal["int64", "string"]
    named: bool = False
    files: list[str]
    forgotten: list[Count] = Field(default_factory=list)

    @model_validator(mode="after")
    def _forgotten_are_rows(self) -> Entity:
        if any(row >= after for row, after in pairwise([*self.forgotten, self.rows])):
            raise ValueError(f"forgotten: expected rows from 0 to {self.rows - 1}, each once, in order")
        return self


class Manifest(_Strict):
    """What a prepared data set holds."""

    format: Literal["crossfade-interactions"] = "crossfade-interactions"
    version: Literal[1] = 1
    query: str
    item: str
    entities: dict[str, Entity]
    splits: dict[Literal["train", "valid", "test"], Split]
    has_timestamp: bool = False
    source: dict[str, str | int | float | bool | list[str] | None] = Field(default_factory=dict)

    def write(self, folder: Folder) -> None:
        """Write ``manifest.json`` into ``folder``: last of all, and in one move, since it makes the data set whole."""
        folder.write(FILE_NAME, (self.model_dump_json(indent=1) + "\n").encode())


def read_manifest(folder: Folder) -> Manifest:
    """Read and check the manifest of ``folder``.

    Raises:
        InputError: there is none, or it is not a manifest of this version.
    """
    path = f"{folder.uri}/{FILE_NAME}"
    try:
        text = folder.read(FILE_NAME).decode()
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; expected a folder written by 'crossfade prepare --out {folder.uri}'"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: not a manifest of prepared data: {where}: {first['msg']}") from error
    for name in (manifest.query, manifest.item):
        if name not in manifest.entities:
            raise InputError(f"{path}: not a manifest of prepared data: entities: '{name}' is missing")
    return manifest
