"""Given vectors: what tables begin with instead of random values (``model.start``), joined by ID.

    given = GivenVectors("track", "vectors.parquet", vocabulary, dim=64)
    given.has_vector_R                                  # which rows have a given vector
    for rows_A, values_AD in given.blocks(new_R):       # sorted and unique rows, in blocks
        store.assign("track", rows_A, values_AD)

A source is a Parquet file, or a folder of such files, with the columns ``id`` and ``vector`` (lists of ``model.dim``
numbers): other tools write it, and so does a run, as ``RUN/embeddings/ENTITY``. IDs that the dataset does not have are
ignored.

Shapes: R rows of the table, N vectors of the source, A rows of a block, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, format_names
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.parquet import open_parquet
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.spec import ModelSpec

ID, VECTOR = "id", "vector"
BLOCK_ROWS = 1 << 16
JOIN_BYTES = 140
"""Memory of the join per row of a table whose source has as many: 71 were measured with integer IDs, 136 with texts of
26 letters."""
_MAX_MAGNITUDE = 1e18
"""As in the optimizers, whose squares of larger values overflow."""


class GivenVectors:
    """The vectors that the table of one entity begins with."""

    def __init__(self, entity: str, source: str, vocabulary: Vocabulary, dim: int) -> None:
        """Open ``source`` and join its IDs with those of ``vocabulary``.

        Raises:
            InputError: it cannot be read, lacks a column, has vectors of another length than ``dim``, an ID twice, or
                no ID of the entity.
            StorageUnavailableError: storage does not answer.
        """
        self._key, self._dim, self._rows = f"model.start.{entity}", dim, vocabulary.rows
        self._files = [(uri, self._open(folder, name, uri)) for folder, name, uri in _sources(self._key, source)]
        self._row_N = self._join(entity, source, vocabulary)
        self.has_vector_R: BoolArray = np.zeros(self._rows, np.bool_)
        self.has_vector_R[self._row_N[self._row_N >= 0]] = True

    def _open(self, folder: Folder, name: str, uri: str) -> pq.ParquetFile:
        expected = f"no such file; expected a Parquet file with the columns '{ID}' and '{VECTOR}'"
        with self._errors(uri, expected):
            file = open_parquet(folder.open_random(name), page_checksum_verification=True)
        schema = file.schema_arrow
        missing = [column for column in (ID, VECTOR) if column not in schema.names]
        if missing:
            raise InputError(
                f"{self._key}: {uri}: has no column '{missing[0]}', only {format_names(schema.names)}; expected the "
                f"columns '{ID}' and '{VECTOR}'"
            )
        kind = schema.field(VECTOR).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or not pa.types.is_floating(kind.value_type):
            raise InputError(f"{self._key}: {uri}: column '{VECTOR}' holds {kind}; expected lists of floats")
        if pa.types.is_fixed_size_list(kind) and kind.list_size != self._dim:
            raise self._length_error(uri, kind.list_size)
        return file

    @contextmanager
    def _errors(self, uri: str, if_missing: str | None = None) -> Iterator[None]:
        with translate_storage_errors(f"{self._key}: {uri}", action="read", if_missing=if_missing):
            try:
                yield
            except pa.ArrowException as error:
                raise InputError(f"{self._key}: {uri}: cannot be read: {' '.join(str(error).split())}") from error

    def _length_error(self, uri: str, found: int) -> InputError:
        return InputError(
            f"{self._key}: {uri}: has vectors of {found} numbers, but model.dim is {self._dim}; set model.dim={found}, "
            "or give vectors of that length"
        )

    def _join(self, entity: str, source: str, vocabulary: Vocabulary) -> IntArray:
        """Find the row of each vector, int64 (N,): -1 where its ID is null or not in the dataset."""
        import pyarrow.compute as pc  # takes time to import, and most trainings have no given vectors

        known = pa.chunked_array([part.column(ID) for part in _same_type(vocabulary)])
        rows = [np.empty(0, np.int64)]
        for uri, file in self._files:
            with self._errors(uri):
                ids = file.read([ID], use_threads=False).column(ID)
            try:
                ids = ids.cast(known.type)
            except pa.ArrowException:
                raise InputError(
                    f"{self._key}: {uri}: column '{ID}' holds {ids.type}, but the ids of {entity} are {known.type}"
                ) from None
            found = pc.fill_null(pc.index_in(ids, value_set=known, skip_nulls=True), -1)
            rows.append(found.to_numpy().astype(np.int64))
        row_N = np.concatenate(rows)
        found_A, count_A = np.unique(row_N[row_N >= 0], return_counts=True)
        if not len(found_A):
            raise InputError(f"{self._key}: {source}: has a vector of none of the ids of {entity}: check them")
        if count_A.max() > 1:
            twice = vocabulary.take(found_A[count_A > 1][:1], [ID]).column(ID)[0]
            raise InputError(f"{self._key}: {source}: has more than one vector of the id {twice}; expected one")
        return row_N

    def blocks(self, wanted_R: BoolArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield the vectors of the rows ``wanted_R``: sorted and unique rows, int64 (A,), and float32 (A, D).

        Raises:
            InputError: a vector is null, of another length, or not finite.
            StorageUnavailableError: storage does not answer.
        """
        first = 0
        for uri, file in self._files:
            with self._errors(uri):
                for batch in file.iter_batches(BLOCK_ROWS, columns=[VECTOR], use_threads=False):
                    row_N = self._row_N[first : first + len(batch)]
                    first += len(batch)
                    places_A = np.flatnonzero((row_N >= 0) & wanted_R[row_N])
                    places_A = places_A[np.argsort(row_N[places_A])]
                    if len(places_A):
                        yield row_N[places_A], self._values(batch.column(VECTOR).take(pa.array(places_A)), uri)

    def count_blocks(self) -> int:
        """Return the most blocks that ``blocks`` yields."""
        return sum(-(-file.metadata.num_rows // BLOCK_ROWS) for _, file in self._files)

    def _values(self, lists: pa.Array, uri: str) -> FloatArray:
        lengths = lists.value_lengths().unique().to_pylist()
        if None in lengths:
            raise InputError(f"{self._key}: {uri}: a vector is null; leave out ids without one")
        if lengths != [self._dim]:
            raise self._length_error(uri, next(length for length in lengths if length != self._dim))
        values_N = lists.flatten().cast(pa.float64())
        values_AD = values_N.to_numpy(zero_copy_only=False).reshape(len(lists), self._dim)
        if not (np.abs(values_AD) <= _MAX_MAGNITUDE).all():
            raise InputError(f"{self._key}: {uri}: a vector has a value that is null, not finite, or beyond 1e18")
        # Servers add what workers push to 0, which turns -0.0 into 0.0; so does this, for the same bits in process.
        vectors_AD: FloatArray = (values_AD + 0.0).astype(np.float32)
        return vectors_AD


def _same_type(vocabulary: Vocabulary) -> Iterator[pa.Table]:
    """Yield the IDs of all rows in order; those of files without nulls have the same type as those of others."""
    schema = None
    for part in vocabulary.iter_tables([ID]):
        schema = schema or pa.schema([pa.field(ID, part.schema.field(ID).type)])
        yield part.cast(schema)


def _sources(key: str, source: str) -> list[tuple[Folder, str, str]]:
    """Return the folder, the name and the URI of each Parquet file of ``source``.

    Raises:
        InputError: there is none.
        StorageUnavailableError: storage does not answer.
    """
    parent, _, name = source.rpartition("/")
    if source.endswith(".parquet"):
        return [(Folder(parent or ("/" if source.startswith("/") else ".")), name, source)]
    folder = Folder(source)
    with translate_storage_errors(f"{key}: {source}", action="read"):
        names = [name for name in folder.names() if name.endswith(".parquet")]
    if not names:
        raise InputError(f"{key}: {source}: expected a Parquet file, or a folder of them such as RUN/embeddings/ENTITY")
    return [(folder, name, f"{folder.uri}/{name}") for name in names]


def open_given_vectors(
    job: JobConfig, model: ModelSpec, folder: Folder, manifest: DatasetManifest
) -> dict[str, GivenVectors]:
    """Open the vectors that tables of ``job`` begin with, by table; none without ``model.start``.

    Raises:
        InputError: they cannot be used.
        StorageUnavailableError: storage does not answer.
    """
    return {
        table.name: GivenVectors(
            table.name, job.model.start[table.name], Vocabulary(folder, manifest, table.name), table.dim
        )
        for table in model.tables
        if table.name in job.model.start
    }
