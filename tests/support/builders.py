"""Build small datasets in the format of ``trainer/data/manifest.py``.

manifest = write_data_set(folder, {"train": [[make_interactions([0, 1], [2, 2])]]}, queries=2, items=3)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from crossfade.base.arrays import FloatArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, Entity, Feature, Split
from crossfade.trainer.data.parquet import file_entry, write_options
from crossfade.trainer.data.reader import Interactions

QUERY, ITEM = "customer", "track"

SplitFiles = Sequence[Sequence[Interactions]]
"""The row groups of each file of a split."""


def make_interactions(queries: ArrayLike, items: ArrayLike, weights: ArrayLike | None = None) -> Interactions:
    """Build interactions of the given rows, with weight 1 by default."""
    query_N, item_N = np.array(queries, dtype=np.int64), np.array(items, dtype=np.int64)
    weight_N = np.ones(len(query_N), np.float32) if weights is None else np.array(weights, dtype=np.float32)
    return Interactions(query_N, item_N, weight_N)


def numbered_interactions(group_sizes: Sequence[Sequence[int]], queries: int, items: int) -> SplitFiles:
    """Build files with row groups of the given sizes; each interaction's weight is its number in the split."""
    files, first = [], 0
    for sizes in group_sizes:
        groups = []
        for size in sizes:
            numbers = np.arange(first, first + size)
            groups.append(make_interactions(numbers % queries, numbers * 7 % items, numbers))
            first += size
        files.append(groups)
    return files


def interaction_table(interactions: Interactions) -> pa.Table:
    """Convert ``interactions`` to the columns and types of a dataset file."""
    return pa.table(
        {QUERY: interactions.query_N, ITEM: interactions.item_N, "weight": interactions.weight_N},
        schema=pa.schema([(QUERY, pa.int64()), (ITEM, pa.int64()), ("weight", pa.float32())]),
    )


def write_groups(path: Path, groups: Sequence[pa.Table]) -> None:
    """Write ``groups`` as the row groups of one Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, groups[0].schema, **write_options(groups[0].schema)) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(1, group.num_rows))


def write_split(folder: Path, name: str, files: SplitFiles) -> Split:
    """Write the split ``name`` into the dataset in ``folder``."""
    entries = []
    for number, groups in enumerate(files):
        path = f"{name}/part-{number:05d}.parquet"
        write_groups(folder / path, [interaction_table(group) for group in groups])
        entries.append(file_entry(Folder(folder), path))
    return Split(files=entries)


def write_vocabulary(
    folder: Path,
    entity: str,
    ids: Sequence[int] | Sequence[str],
    *,
    names: Sequence[str | None] | None = None,
    counts: ArrayLike | None = None,
    file_rows: int = 1 << 20,
    group_rows: int = 1 << 16,
) -> Entity:
    """Write the vocabulary of ``entity``, where row r has ``ids[r]``, in files and row groups of the given sizes."""
    columns = {
        "row": np.arange(len(ids), dtype=np.int64),
        "id": pa.array(ids),
        "count": np.ones(len(ids), np.int64) if counts is None else np.array(counts, np.int64),
    }
    if names is not None:
        columns["name"] = pa.array(names, pa.string())
    table = pa.table(columns)
    files = []
    for number, start in enumerate(range(0, len(ids), file_rows)):
        path = f"vocabulary/{entity}/part-{number:05d}.parquet"
        stop = min(start + file_rows, len(ids))
        groups = range(start, stop, group_rows)
        write_groups(folder / path, [table.slice(first, min(group_rows, stop - first)) for first in groups])
        files.append(file_entry(Folder(folder), path))
    id_type = "string" if isinstance(ids[0], str) else "int64"
    return Entity(rows=len(ids), id_type=id_type, has_names=names is not None, files=files)


def write_data_set(folder: Path, splits: Mapping[str, SplitFiles], *, queries: int, items: int) -> DatasetManifest:
    """Write a complete dataset whose IDs are integers, with its manifest."""
    rows = {QUERY: queries, ITEM: items}
    return write_manifest(folder, {name: write_vocabulary(folder, name, range(rows[name])) for name in rows}, splits)


def write_manifest(
    folder: Path,
    entities: dict[str, Entity],
    splits: Mapping[str, SplitFiles],
    features: dict[str, dict[str, Feature]] | None = None,
) -> DatasetManifest:
    """Write the interactions of a dataset whose vocabularies and features are there, and its manifest."""
    manifest = DatasetManifest(
        query=QUERY,
        item=ITEM,
        entities=entities,
        splits={name: write_split(folder, name, files) for name, files in splits.items()},
        features=features or {},
    )
    manifest.write(Folder(folder))
    return manifest


def random_rows(rows: int, dim: int, seed: int) -> FloatArray:
    """Return normally distributed float32 (rows, dim)."""
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
