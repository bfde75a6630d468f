"""Push the vectors of a model to a database: one loop for all databases.

    database = connect("qdrant", "https://qdrant.example.com:6333")
    names = push(exported, database, "lastfm", log)         # {"artist": "lastfm_artist", ...}

Rows go in batches into new tables, which no search finds. When all are written, they are published: searches find them
instead of the rows of the earlier push. A request that fails for a reason that may pass is sent again. A failed push
leaves what searches find as it was, except in S3 Vectors, which has neither transactions nor aliases.

Rows without a trained vector are left out, and so are zero vectors where the score is the cosine, which they lack.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from crossfade.base.errors import CrossfadeError, InputError, Option, OptionError
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.embeddings.checkpoint_source import Log
from crossfade.trainer.formats.exported_model import ExportedModel

PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses before a request is sent again."""
MAX_ROWS, MAX_BYTES = 500, 8 << 20
"""Rows and bytes of a batch: S3 Vectors takes 500 rows, the smaller instances of Amazon OpenSearch Service 10 MiB."""
_VALUE_BYTES, _OTHER_BYTES = 24, 1 << 10
"""What JSON takes at most for a value, and usually for the ID and the name of a row."""
_MAX_NAME_LETTERS = 40
"""PostgreSQL's limit of 63 bytes, less the date of a version."""


@dataclass(frozen=True)
class VectorTable:
    """A table of vectors in a database, called a collection or an index in some.

    Attributes:
        entity: whose vectors it has.
        name: what searches call it; letters a-z, digits, and the separator of the database.
        version: the name of the new rows until they are published.
        dim: columns of a vector.
        score: what compares vectors.
        has_text_ids: whether IDs are texts; otherwise they are integers of 64 bits.
        has_names: whether rows have names.
    """

    entity: str
    name: str
    version: str
    dim: int
    score: ScoreKind
    has_text_ids: bool
    has_names: bool

    def is_other_version(self, name: str) -> bool:
        """Return whether ``name`` is an earlier version, or one whose push failed."""
        return name != self.version and re.fullmatch(rf"{re.escape(self.name)}_\d{{8}}t\d{{12}}", name) is not None


class Row(NamedTuple):
    """A row of a table; ``name`` is None if it has none."""

    id: Any
    name: str | None
    vector: list[float]


@dataclass(frozen=True)
class Problem:
    """An error of a database.

    Attributes:
        text: what happened, in one line.
        is_rejected: whether the request is wrong; otherwise, a later one may succeed.
    """

    text: str
    is_rejected: bool


class Database(ABC):
    """Holds vectors; ``place`` is what messages call it."""

    max_columns: int
    separator = "_"
    """What joins the parts of a table's name."""
    retries = True
    """Whether a failed request can be sent again."""
    place: str

    @abstractmethod
    def create(self, table: VectorTable) -> None:
        """Create the new version of ``table``, without rows.

        Raises:
            OptionError: the database has something else of this name, or cannot compare vectors by the score.
        """

    @abstractmethod
    def put(self, table: VectorTable, rows: Sequence[Row]) -> None:
        """Add rows; repeated, it replaces them."""

    @abstractmethod
    def publish(self, tables: Sequence[VectorTable]) -> None:
        """Let searches find the new versions, and delete the other ones."""

    @abstractmethod
    def problem(self, error: Exception) -> Problem | None:
        """Return what is wrong if ``error`` is the client's, otherwise None."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""


def push(exported: ExportedModel, database: Database, prefix: str, log: Log) -> dict[str, str]:
    """Replace the tables in ``database``, whose names begin with ``prefix``; return the name for each entity.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: the database does not answer or was lost.
        InputError: it rejects a request, its limits are exceeded, or no row has a trained vector.
    """
    tables = _vector_tables(exported, database, prefix)
    for table in tables:
        _attempt(database, partial(database.create, table))
        for rows in _batches(exported, table, log):
            _attempt(database, partial(database.put, table, rows))
    _attempt(database, partial(database.publish, tables))
    return {table.entity: table.name for table in tables}


def _attempt(database: Database, request: Callable[[], None]) -> None:
    """Make ``request``, again after a pause if it fails for a reason that may pass."""
    for pause in [*(PAUSES_SECONDS if database.retries else ()), None]:
        try:
            return request()
        except Exception as error:
            problem = database.problem(error)
            if problem is None:
                raise
            if problem.is_rejected:
                raise OptionError("push", found=database.place, problem=problem.text) from error
            if pause is None:
                what = f": {problem.text}; repeat the command when it answers"
                raise CrossfadeError(Option("push", database.place), what) from error
            time.sleep(pause)
    return None


def _batches(exported: ExportedModel, table: VectorTable, log: Log) -> Iterator[list[Row]]:
    size = max(1, min(MAX_ROWS, MAX_BYTES // (_VALUE_BYTES * table.dim + _OTHER_BYTES)))
    zeros = 0
    for block in exported.trained_blocks(table.entity):
        rows, vectors_ND = block.rows, block.vectors_ND
        ids = rows.column("id").to_pylist()
        names = rows.column("name").to_pylist() if table.has_names else [None] * len(ids)
        kept_N = vectors_ND.any(axis=1) if table.score == "cosine" else np.ones(len(ids), np.bool_)
        kept = np.flatnonzero(kept_N)
        zeros += len(ids) - len(kept)
        for first in range(0, len(kept), size):
            some = kept[first : first + size]
            vectors = vectors_ND[some].tolist()
            yield [Row(ids[row], names[row], vector) for row, vector in zip(some, vectors, strict=True)]
    if zeros:
        log(f"{table.name}: left out {zeros:,} rows with a zero vector, which has no cosine")


def _vector_tables(exported: ExportedModel, database: Database, prefix: str) -> list[VectorTable]:
    model = exported.model
    tables: list[VectorTable] = []
    for table in exported.tables:
        if table.dim > database.max_columns:
            raise InputError(
                f"{model.uri}: its vectors have {table.dim:,} columns, but {database.place} allows "
                f"{database.max_columns:,}; export to another format, or train with a smaller model.dim"
            )
        name = f"{prefix}_{table.name}".lower().replace("-", "_").replace("_", database.separator)
        if len(name) > _MAX_NAME_LETTERS:
            raise InputError(
                f"'{name}' would have {len(name)} characters, of {_MAX_NAME_LETTERS} at most; choose a shorter prefix "
                "with ",
                Option("name"),
            )
        if name in [other.name for other in tables]:
            what = f"'{name}' would hold several entities; export '{table.name}' by itself, with "
            raise InputError(what, Option("entity", table.name))
        entity, version = model.manifest.entities[table.name], f"{name}_{exported.date:%Y%m%dt%H%M%S%f}"
        is_text = entity.id_type == "string"
        score = model.job.model.score
        tables.append(VectorTable(table.name, name, version, table.dim, score, is_text, entity.has_names))
    return tables
