"""Write vectors as numpy or safetensors, with a Parquet file of their rows.

    write_numpy(exported, folder)

    FOLDER/ENTITY/vectors.npy           float32 (rows, dim), or
    FOLDER/ENTITY/vectors.safetensors   the tensor "vectors", float32 (rows, dim)
    FOLDER/ENTITY/rows.parquet          row, id, name if the dataset has names, and trained

Line r of the vectors is row r of the table, so no row is left out: ``trained`` is false where a vector is random, and
``id`` is null where the row is vacant. Files are written front to back, a block at a time.

A safetensors file is the length of a JSON header as 8 little-endian bytes, the header, and the values.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.embeddings.python_example import ArrayReader, choose_example, python_example
from crossfade.trainer.formats.exported_model import Block, ExportedModel

ROWS_FILE, NUMPY_FILE, SAFETENSORS_FILE = "rows.parquet", "vectors.npy", "vectors.safetensors"
UNTRAINED_NOTE = (
    "Every row is in the files. `trained` in `rows.parquet` is false for rows whose vector is random: those without an "
    "ID, and those without an interaction of positive weight in train, unless they have features."
)
_ALIGNMENT = 8
"""The values of a safetensors file begin at a multiple of this, as its library writes them."""
_READERS = {
    "numpy": ArrayReader(
        vectors=f'np.load("{{}}/{NUMPY_FILE}", mmap_mode="r")',
        rows=f'pq.read_table("{{}}/{ROWS_FILE}")',
        marks_trained=True,
    ),
    "safetensors": ArrayReader(
        vectors=f'load_file("{{}}/{SAFETENSORS_FILE}")["vectors"]',
        rows=f'pq.read_table("{{}}/{ROWS_FILE}")',
        imports=["from safetensors.numpy import load_file"],
        marks_trained=True,
    ),
}


def write_numpy(exported: ExportedModel, folder: Path) -> None:
    """Write the vectors of each table as ``vectors.npy``.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, or the dataset is corrupt.
        OSError: a file cannot be written.
    """
    for table in exported.tables:
        with _open(folder / table.name / NUMPY_FILE) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (table.rows, table.dim)}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            _write_rows(exported, table, folder, file)


def write_safetensors(exported: ExportedModel, folder: Path) -> None:
    """Write the vectors of each table as ``vectors.safetensors``; raises as ``write_numpy``."""
    for table in exported.tables:
        with _open(folder / table.name / SAFETENSORS_FILE) as file:
            file.write(_safetensors_header(exported, table))
            _write_rows(exported, table, folder, file)


def numpy_loading(exported: ExportedModel) -> str:
    """Return Markdown on how to load the files."""
    return _loading(exported, "numpy", f"`ENTITY/{NUMPY_FILE}` can be opened with `mmap_mode`, without reading it.")


def safetensors_loading(exported: ExportedModel) -> str:
    """Return Markdown on how to load the files."""
    text = f"`ENTITY/{SAFETENSORS_FILE}` has the tensor `vectors`, float32."
    return _loading(exported, "safetensors", text)


def _loading(exported: ExportedModel, name: str, text: str) -> str:
    model = exported.model
    tables = choose_example(model.spec, [table.name for table in exported.tables])
    example = python_example(model.job.model.score, tables, _READERS[name], model.manifest.entities)
    return f"{text} Line r belongs to row r of `ENTITY/{ROWS_FILE}`.\n\n{example}"


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
