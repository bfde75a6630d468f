"""The manifest, the parts, and the names of files of a checkpoint, and the shards of tables that it stores.

    manifest = CheckpointManifest(step=123, tables=..., optimizer=..., seed=1, parts=...)
    CheckpointManifest.from_bytes(manifest.to_bytes()) == manifest        # raises CorruptFileError on any change

Everything read from a checkpoint is validated: a file that fails raises ``CorruptFileError``, which
``translate_read_errors`` turns into a ``CheckpointError`` that names the file. Another version of the format is an
``InputError``. docs/reference.md describes the format.
"""

from __future__ import annotations

import errno
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from math import isfinite
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from crossfade.base.errors import CheckpointError, InputError, format_names
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import UnsuitableFileError
from crossfade.base.json_text import parse_json
from crossfade.base.validation import format_validation_error
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import FileDigest, TableSpec

FORMAT_VERSION = 2
MANIFEST_FORMAT, PART_FORMAT = "crossfade-checkpoint", "crossfade-checkpoint-part"
MANIFEST_NAME = "manifest.json"
WEIGHTS = "weights"
HEADER_BYTES = 128

STEP_NAME = re.compile(r"step-([0-9]{9,18})")
TABLE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
PART_NAME = re.compile(r"part-[0-9]{5,9}-of-[0-9]{5,9}\.json")
SHARD_NAME = re.compile(
    r"(?P<table>[A-Za-z0-9_-]+)/(?P<array>[a-z_]+)\.(?P<number>[0-9]{5,9})-of-(?P<shards>[0-9]{5,9})\.npy"
)
EXTRA_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.npz")
"""Name of a small file that the writer adds: never a name of a manifest or a part."""

_SEAL = re.compile(rb',\n "crc32": (\d+)\n}\n\Z')
_MAX_SEAL_BYTES = 64

_MAX_TABLE_VALUES = 2**60
"""Above that, the bytes of an array do not fit into 64 bits."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Crc32 = Annotated[int, Field(ge=0, lt=2**32)]


def step_name(step: int) -> str:
    """Return the name of the checkpoint of ``step`` in the folder of checkpoints."""
    return f"step-{step:09d}"


def part_name(part: int, parts: int) -> str:
    """Return the name of the file that lists what part ``part`` of ``parts`` wrote."""
    return f"part-{part:05d}-of-{parts:05d}.json"


def shard_name(table: str, array: str, number: int, num_shards: int) -> str:
    """Return the path, inside a checkpoint, of the file with one array of shard ``number`` of ``table``."""
    return f"{table}/{array}.{number:05d}-of-{num_shards:05d}.npy"


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file of version 1.0 (numpy.lib.format), independent of the version of numpy.

    It is always ``HEADER_BYTES`` long, so the offset of a row can be computed.
    """
    fields = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + fields.encode()
    return header.ljust(HEADER_BYTES - 1) + b"\n"


@dataclass(frozen=True)
class TableShard:
    """A shard in memory: rows r of a table of ``table_rows`` rows with r mod ``num_shards`` = ``number``.

    ``arrays`` holds ``weights`` (n, dim) and each array of optimizer state by name; entry i is row
    i·num_shards + number. Entries from ``shard_rows`` on are padding, which is neither written nor read.
    """

    table: str
    table_rows: int
    number: int
    num_shards: int
    arrays: dict[str, NDArray[Any]]

    @property
    def rows(self) -> int:
        """Rows of the shard, without padding."""
        return shard_rows(self.table_rows, self.number, self.num_shards)

    def file_name(self, array: str) -> str:
        """Return the path, inside a checkpoint, of the file with ``array`` of this shard."""
        return shard_name(self.table, array, self.number, self.num_shards)


def shard_rows(table_rows: int, number: int, num_shards: int) -> int:
    """Return how many of a table's rows shard ``number`` of ``num_shards`` has."""
    return max(0, -(-(table_rows - number) // num_shards))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartFile(_Strict):
    """A file of array rows that a part lists: its path, size in bytes and CRC-32."""

    path: Annotated[str, Field(max_length=300)]
    bytes: Count
    crc32: Crc32


class Part(_Strict):
    """The files that one server wrote."""

    format: Literal["crossfade-checkpoint-part"]
    version: Literal[2]
    files: list[PartFile]


def _check_tables(tables: list[TableSpec]) -> list[TableSpec]:
    for table in tables:
        if not TABLE_NAME.fullmatch(table.name):
            raise ValueError(f"'{table.name:.100}' cannot be the name of a table")
        if table.rows < 0 or table.dim < 1 or table.rows * table.dim > _MAX_TABLE_VALUES:
            raise ValueError(f"'{table.name}' has {table.rows} rows of {table.dim} columns")
        if not (isfinite(table.init_std) and table.init_std >= 0):
            raise ValueError(f"'{table.name}' has init_std {table.init_std}; expected a number of 0 or more")
    _check_distinct([table.name for table in tables])
    return tables


def _check_optimizer(optimizer: OptimizerSpec) -> OptimizerSpec:
    for field in fields(optimizer):
        value = getattr(optimizer, field.name)
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{field.name} is {value}; expected a finite number")
    return optimizer


def _check_digests(pattern: re.Pattern[str], digests: list[FileDigest]) -> list[FileDigest]:
    for digest in digests:
        if not pattern.fullmatch(digest.name):
            raise ValueError(f"'{digest.name:.100}' is not the name of such a file")
        if digest.bytes < 0 or not 0 <= digest.crc32 < 2**32:
            raise ValueError(f"'{digest.name}' has {digest.bytes} bytes and the CRC-32 {digest.crc32}")
    _check_distinct([digest.name for digest in digests])
    return digests


def _check_distinct(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"expected each name once, but found {format_names(names)}")


class CheckpointManifest(_Strict):
    """The manifest, written last: a checkpoint with a valid manifest is complete.

    ``files`` lists small files that the writer adds, such as dense layers, and is left out of the JSON if empty.
    ``training`` is the trainer's state, opaque to this package: the job, the position in the data and so on.
    """

    format: Literal["crossfade-checkpoint"] = "crossfade-checkpoint"
    version: Literal[2] = 2
    step: Count
    tables: Annotated[list[TableSpec], AfterValidator(_check_tables)]
    optimizer: Annotated[OptimizerSpec, AfterValidator(_check_optimizer)]
    seed: int
    parts: Annotated[list[FileDigest], AfterValidator(partial(_check_digests, PART_NAME))]
    files: Annotated[list[FileDigest], AfterValidator(partial(_check_digests, EXTRA_NAME))] = Field(
        default_factory=list
    )
    training: dict[str, Any] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Serialize to JSON whose last member is the CRC-32 of all bytes before that member."""
        body = self.model_dump_json(indent=1, exclude=None if self.files else {"files"}).encode().removesuffix(b"\n}")
        return body + b',\n "crc32": %d\n}\n' % zlib.crc32(body)

    @staticmethod
    def from_bytes(data: bytes) -> CheckpointManifest:
        """Parse and verify the content of a manifest file.

        Raises:
            CorruptFileError: it is not a manifest, or its CRC-32 does not match.
            FormatVersionError: it is intact, but of another version of the format.
            ValidationError: a field is missing or has a wrong type.
        """
        try:
            raw = parse_json(data)
        except ValueError as error:
            raise CorruptFileError(f"not a checkpoint manifest: {error}") from error
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != MANIFEST_FORMAT:
            raise CorruptFileError(f"not a checkpoint manifest: expected format {MANIFEST_FORMAT!r}, found {found!r}")
        seal = _SEAL.search(data, max(0, len(data) - _MAX_SEAL_BYTES))
        sealed = seal is not None and zlib.crc32(data[: seal.start()]) == int(seal[1])
        # With a CRC-32 that does not match, the version may be corrupt too. Other versions may have none.
        if raw.get("version") != FORMAT_VERSION and (sealed or seal is None):
            raise FormatVersionError(raw.get("version"))
        if seal is None or not sealed:
            raise CorruptFileError("its CRC-32 does not match its content")
        return CheckpointManifest.model_validate_json(data[: seal.start()] + b"}", strict=True)


class CorruptFileError(Exception):
    """A file of a checkpoint is corrupt; the message has the reason without the file's name."""


class FormatVersionError(Exception):
    """A checkpoint is of another version of the format; ``version`` is what was found."""

    def __init__(self, version: object) -> None:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        fix = "use the version of Crossfade that wrote it, or a later one" if newer else "train again in another folder"
        super().__init__(
            f"has format version {version!r}, but this version of Crossfade reads version {FORMAT_VERSION} only; {fix}"
        )
        self.version = version


@contextmanager
def translate_read_errors(folder: Folder, name: str) -> Iterator[None]:
    """Turn an error in reading the file ``name`` into a CheckpointError, which names a corrupt checkpoint as such.

    Another version of the format is an InputError.
    """
    uri = f"{folder.uri}/{name}"
    try:
        yield
    except CorruptFileError as error:
        raise CheckpointError(f"{uri}: {error}", checkpoint=folder.uri) from error
    except FormatVersionError as error:
        # Not skipped as a corrupt one is: a run that resumed from an older checkpoint would lose what this one has.
        raise InputError(f"{uri}: {error}") from error
    except ValidationError as error:
        raise CheckpointError(
            f"{uri}: invalid content: {format_validation_error(error)}", checkpoint=folder.uri
        ) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{uri}: missing", checkpoint=folder.uri) from error
    except (IsADirectoryError, NotADirectoryError, UnsuitableFileError) as error:
        raise CheckpointError(f"{uri}: cannot be read: {error.strerror}", checkpoint=folder.uri) from error
    except OSError as error:
        # EIO is a disk that lost the data, so the checkpoint is corrupt; any other error may be transient.
        corrupt = folder.uri if error.errno == errno.EIO else None
        raise CheckpointError(f"{uri}: cannot be read: {error}", checkpoint=corrupt) from error
