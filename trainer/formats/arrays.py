"""Write vectors as Parquet, numpy, or safetensors; the latter two with a Parquet file of their rows.

    FOLDER/ENTITY/rows-000000000000.parquet   id, row, vector, and name if the dataset has names (embeddings/files.py)

    FOLDER/ENTITY/vectors.npy                 float32 (rows, dim), or
    FOLDER/ENTITY/vectors.safetensors         the tensor "vectors", float32 (rows, dim)
    FOLDER/ENTITY/rows.parquet                row, id, name if the dataset has names, and trained

Line r of the vectors is row r of the table, so no row is left out: ``trained`` is false where a vector is random, and
``id`` is null where the row is vacant. Files are written front to back, a block at a time.

A safetensors file is the length of a JSON header as 8 little-endian bytes, the header, and the values. The package
safetensors would need all values in memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.embeddings.files import write_table
from crossfade.trainer.embeddings.listing import write_listing
from crossfade.trainer.formats.exported_model import ExportedModel

ROWS_FILE, NUMPY_FILE, SAFETENSORS_FILE = "rows.parquet", "vectors.npy", "vectors.safetensors"
_ALIGNMENT = 8
"""The values of a safetensors file begin at a multiple of this, as its library writes them."""


class _Reported:
    """Vectors of a model; their rows are reported."""

    def __init__(self, exported: ExportedModel) -> None:
        self._exported = exported

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``."""
        found = self._exported.model.vectors.vectors(entity, rows_N)
        self._exported.reporter.advance(len(rows_N))
        return found


def write_parquet(exported: ExportedModel, folder: Path) -> None:
    """Write embeddings as training does.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, or the dataset is corrupt.
        OSError: a file cannot be written.
    """
    for table in exported.tables:
        exported.reporter.phase(table.name, table.rows, "row")
        write_table(folder, _Reported(exported), table, exported.model.vocabulary(table.name))
    write_listing(Folder(folder))


def write_numpy(exported: ExportedModel, folder: Path) -> None:
    """Write the vectors of each table as ``vectors.npy``; raises as ``write_parquet``."""

    def header(table: TableSpec) -> bytes:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (table.rows, table.dim)}
        content = pa.BufferOutputStream()
        np.lib.format.write_array_header_1_0(content, shape)  # type: ignore[no-untyped-call]
        return bytes(content.getvalue())

    _write(exported, folder, NUMPY_FILE, header)


def write_safetensors(exported: ExportedModel, folder: Path) -> None:
    """Write the vectors of each table as ``vectors.safetensors``; raises as ``write_parquet``."""
    model = exported.model

    def header(table: TableSpec) -> bytes:
        about = {
            "format": "crossfade-embeddings",
            "job": model.job.name,
            "entity": table.name,
            "score": model.job.model.score,
            "dataset_fingerprint": f"{data_fingerprint(model.data):08x}",
        }
        place = {"dtype": "F32", "shape": [table.rows, table.dim], "data_offsets": [0, table.rows * table.dim * 4]}
        text = json.dumps({"__metadata__": about, "vectors": place}).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text

    _write(exported, folder, SAFETENSORS_FILE, header)


def _write(exported: ExportedModel, folder: Path, name: str, header: Callable[[TableSpec], bytes]) -> None:
    """Write the vectors of each table to the file ``name``, after a header, and the rows beside it."""
    for table in exported.tables:
        (folder / table.name).mkdir()
        with ExitStack() as stack:
            file = stack.enter_context((folder / table.name / name).open("wb"))
            file.write(header(table))
            writer: pq.ParquetWriter | None = None
            for block in exported.blocks(table):
                file.write(np.ascontiguousarray(block.vectors_ND, dtype="<f4").data)
                rows = block.rows.append_column("trained", pa.array(block.trained_N))
                if writer is None:
                    path = folder / table.name / ROWS_FILE
                    writer = stack.enter_context(pq.ParquetWriter(path, rows.schema, compression="zstd"))
                writer.write_table(rows)
