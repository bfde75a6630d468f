"""Results of finished runs: embeddings by row and reports, and whether two runs have the same bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.checkpoint.format import TableShard
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint
from crossfade.kvstore.optimizers import make_optimizer
from crossfade.trainer.embeddings.files import EmbeddingFiles, vectors_of

ENTITIES = ("customer", "track")


def vectors(run: Path, entity: str) -> FloatArray:
    """Return the embeddings of a run, float32 of shape (rows, dimension), in the order of rows."""
    tables = [pq.read_table(path) for path in sorted((run / "embeddings" / entity).glob("*.parquet"))]
    return np.concatenate([vectors_of(table.column("vector")) for table in tables])


def assert_same_bits(one: Path, other: Path) -> None:
    for entity in ENTITIES:
        assert vectors(one, entity).tobytes() == vectors(other, entity).tobytes(), entity


def all_vectors(embeddings: Path) -> dict[str, FloatArray]:
    """Return the vectors of each entity in a folder of embeddings."""
    files = EmbeddingFiles(embeddings)
    return {name: files.vectors(name, np.arange(files.rows(name))) for name in files.entities}


def same_bits(one: Path, other: Path) -> bool:
    """Return whether two folders of embeddings have the same vectors."""
    found, expected = all_vectors(one), all_vectors(other)
    return found.keys() == expected.keys() and all(found[name].tobytes() == expected[name].tobytes() for name in found)


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


def checkpoint_arrays(run: Path, entity: str) -> dict[str, FloatArray]:
    """Read the weights and optimizer state in the newest checkpoint of a run."""
    checkpoint, _ = latest_checkpoint(str(run / "checkpoints"))
    assert checkpoint is not None
    [table] = [table for table in checkpoint.manifest.tables if table.name == entity]
    state = make_optimizer(checkpoint.manifest.optimizer, table.rows, table.dim).state
    arrays = {"weights": np.empty((table.rows, table.dim), np.float32), **state}
    checkpoint.load([TableShard(entity, table.rows, 0, 1, arrays)])
    return arrays
