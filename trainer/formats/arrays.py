"""Write vectors as Parquet, numpy, or safetensors; the latter two with a Parquet file of their rows.

    FOLDER/ENTITY/rows-000000000000.parquet   id, row, vector, and name if the dataset has names (embeddings/files.py)

    FOLDER/ENTITY/changed.parquet             the same of what has changed since an earlier model, and
    FOLDER/ENTITY/deleted.parquet             id

    FOLDER/ENTITY/vectors.npy                 float32 (rows, dim), or
    FOLDER/ENTITY/vectors.safetensors         the tensor "vectors", float32 (rows, dim)
    FOLDER/ENTITY/rows.parquet                row, id, name if the dataset has names, and trained

Line r of the vectors is row r of the table, so no row is left out: ``trained`` is false where a vector is random, and
``id`` is null where the row is vacant. Files are written front to back, a block at a time.

A safetensors file is the length of a JSON header as 8 little-endian bytes, the header, and the values.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.manifest import DataFile, data_fingerprint
from crossfade.trainer.embeddings.files import write_shard, write_table
from crossfade.trainer.embeddings.listing import write_listing
from crossfade.trainer.formats.exported_model import Block, ExportedModel
from crossfade.trainer.recommend.trained_model import PartVectors
from crossfade.trainer.runs.options import Shard

CHANGED_FILE, DELETED_FILE = "changed.parquet", "deleted.parquet"
ROWS_FILE, NUMPY_FILE, SAFETENSORS_FILE = "rows.parquet", "vectors.npy", "vectors.safetensors"
_ALIGNMENT = 8
"""The values of a safetensors file begin at a multiple of this, as its library writes them."""
_SCORES: dict[ScoreKind, str] = {
    "cosine": "vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))",
    "dot": "vectors @ query",
    "euclidean": "-np.square(vectors - query).sum(axis=1)",
}
_LINES = f"Line r belongs to row r of `ENTITY/{ROWS_FILE}`."


@dataclass(frozen=True)
class _ArrayReader:
    """Python that reads the arrays of a format; ``{}`` stands for the entity.

    Attributes:
        vectors: an expression for the vectors of all rows.
        rows: an expression for the table with their IDs and names; a second ``{}`` stands for the column that is shown.
        imports: lines that the expressions need, in addition to those of numpy and Parquet.
        function: a function that they need.
        marks_trained: whether the rows have the column ``trained``.
    """

    vectors: str
    rows: str
    imports: Sequence[str] = ()
    function: Sequence[str] = ()
    marks_trained: bool = False


_PARQUET = _ArrayReader(
    vectors='read_vectors("{}")',
    rows='pq.read_table("{}", columns=["{}"])',
    function=[
        "",
        "def read_vectors(entity):",
        '    column = pq.read_table(entity, columns=["vector"])["vector"].combine_chunks()',
        "    return column.flatten().to_numpy().reshape(len(column), -1)",
        "",
    ],
)
_NUMPY = _ArrayReader(
    vectors=f'np.load("{{}}/{NUMPY_FILE}", mmap_mode="r")',
    rows=f'pq.read_table("{{}}/{ROWS_FILE}")',
    marks_trained=True,
)
_SAFETENSORS = _ArrayReader(
    vectors=f'load_file("{{}}/{SAFETENSORS_FILE}")["vectors"]',
    rows=f'pq.read_table("{{}}/{ROWS_FILE}")',
    imports=["from safetensors.numpy import load_file"],
    marks_trained=True,
)


class _Reported:
    """Vectors of a model; their rows are reported."""

    def __init__(self, exported: ExportedModel) -> None:
        self._exported = exported

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``."""
        found = self._exported.model.vectors.vectors(entity, rows_N)
        self._exported.reporter.advance(len(rows_N))
        return found


def write_parquet(exported: ExportedModel, folder: Path) -> str:
    """Write embeddings as training does, and return Markdown on how to load them.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, or the dataset is corrupt.
        OSError: a file cannot be written.
    """
    if exported.since is not None:
        return _write_changes(exported, folder)
    for table in exported.tables:
        exported.reporter.phase(table.name, table.rows, "row")
        write_table(folder, _Reported(exported), table, exported.model.vocabulary(table.name))
    write_listing(Folder(folder))
    return parquet_loading(exported)


def write_parquet_shard(
    exported: ExportedModel, folder: Folder, shard: Shard, kept: Container[str]
) -> Iterator[DataFile]:
    """Write the files of embeddings that are of ``shard``, unless an earlier attempt has ``kept`` them; yield all.

    Raises as ``write_parquet``.
    """
    for table in exported.tables:
        exported.reporter.phase(table.name, None, "row")
        source, vocabulary = PartVectors(_Reported(exported)), exported.model.vocabulary(table.name)
        yield from write_shard(folder, source, table, vocabulary, shard, kept)


def parquet_loading(exported: ExportedModel) -> str:
    """Return Markdown on how to load embeddings."""
    return (
        "`ENTITY/rows-*.parquet` have `id`, `row`, `vector`, and `name` if the dataset has names. Vectors of rows "
        f"without an interaction in train are random.\n\n{_example(exported, _PARQUET)}"
    )


def _write_changes(exported: ExportedModel, folder: Path) -> str:
    """Write the rows that have changed, and the IDs that are gone; return Markdown on both."""
    for table in exported.tables:
        (folder / table.name).mkdir()
        with ExitStack() as stack:
            writers: dict[str, pq.ParquetWriter] = {}
            for changes in exported.changes(table, complete=True):
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(changes.block.vectors_ND.ravel()), table.dim)
                tables = {
                    CHANGED_FILE: changes.block.rows.append_column("vector", vectors),
                    DELETED_FILE: pa.table({"id": changes.deleted}),
                }
                for name, rows in tables.items():
                    if name not in writers:
                        path = folder / table.name / name
                        writers[name] = stack.enter_context(pq.ParquetWriter(path, rows.schema, compression="zstd"))
                    writers[name].write_table(rows)
    return (
        f"First delete the IDs in `ENTITY/{DELETED_FILE}`. Then insert the rows of `ENTITY/{CHANGED_FILE}`, or replace "
        "those of the same ID: `row`, `id`, `name` if the dataset has names, and `vector`."
    )


def write_numpy(exported: ExportedModel, folder: Path) -> str:
    """Write the vectors of each table as ``vectors.npy``; returns and raises as ``write_parquet``."""
    for table in exported.tables:
        with _open(folder / table.name / NUMPY_FILE) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (table.rows, table.dim)}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            _write_rows(exported, table, folder, file)
    text = f"`ENTITY/{NUMPY_FILE}` can be opened with `mmap_mode`, without reading it."
    return f"{text} {_LINES}\n\n{_example(exported, _NUMPY)}"


def write_safetensors(exported: ExportedModel, folder: Path) -> str:
    """Write the vectors of each table as ``vectors.safetensors``; returns and raises as ``write_parquet``."""
    for table in exported.tables:
        with _open(folder / table.name / SAFETENSORS_FILE) as file:
            file.write(_safetensors_header(exported, table))
            _write_rows(exported, table, folder, file)
    text = f"`ENTITY/{SAFETENSORS_FILE}` has the tensor `vectors`, float32."
    return f"{text} {_LINES}\n\n{_example(exported, _SAFETENSORS)}"


def _example(exported: ExportedModel, reader: _ArrayReader) -> str:
    """Return a block of Markdown with Python that ranks the rows of a table for the first row of another, or of it."""
    model = exported.model
    ranked, query = exported.example_tables()
    label = "name" if model.manifest.entities[ranked.name].has_names else "id"
    lines = [
        "import numpy as np",
        "import pyarrow.parquet as pq",
        *reader.imports,
        "",
        *([*reader.function, ""] if reader.function else []),
        f"vectors = {reader.vectors.format(ranked.name)}",
        f"rows = {reader.rows.format(ranked.name, label)}",
        f"query = {reader.vectors.format(query.name)}[0]  # the first {query.name}",
        "",
        f"scores = {_SCORES[model.job.model.score]}",
        *(['scores[~rows["trained"].to_numpy()] = -np.inf'] if reader.marks_trained else []),
        "for row in np.argsort(-scores)[:10]:",
        f"    print(f\"{{scores[row]:.3f}} {{rows['{label}'][row]}}\")",
    ]
    return "\n".join(["```python", *lines, "```"])


def _safetensors_header(exported: ExportedModel, table: TableSpec) -> bytes:
    model = exported.model
    size = table.rows * table.dim * 4
    content = {
        "__metadata__": {
            "format": "crossfade-embeddings",
            "job": model.job.name,
            "entity": table.name,
            "score": model.job.model.score,
            "dataset_fingerprint": f"{data_fingerprint(model.data):08x}",
        },
        "vectors": {"dtype": "F32", "shape": [table.rows, table.dim], "data_offsets": [0, size]},
    }
    header = json.dumps(content).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return struct.pack("<Q", len(header)) + header


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir()
    with path.open("wb") as file:
        yield file


def _write_rows(exported: ExportedModel, table: TableSpec, folder: Path, file: BinaryIO) -> None:
    """Write the vectors of ``table`` to ``file``, and its rows next to it."""
    writer: pq.ParquetWriter | None = None
    try:
        for block in exported.blocks(table):
            file.write(np.ascontiguousarray(block.vectors_ND, dtype="<f4").data)
            rows = _with_trained(block)
            writer = writer or pq.ParquetWriter(folder / table.name / ROWS_FILE, rows.schema, compression="zstd")
            writer.write_table(rows)
    finally:
        if writer is not None:
            writer.close()


def _with_trained(block: Block) -> pa.Table:
    return block.rows.append_column("trained", pa.array(block.trained_N))
