"""Write a prepared dataset of synthetic listening, of any size: planted genres and Zipf popularity.

    write_synthetic(Path("data/synthetic"), SyntheticSpec(queries=2_000, items=4_000, interactions=100_000), seed=1)

``synthetic_draws.py`` describes how interactions are drawn.

Shapes: N interactions of a chunk, R rows of a table, G genres.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from crossfade.base.errors import OptionError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.features import SCHEMA
from crossfade.trainer.data.manifest import (
    FEATURES,
    VOCABULARY,
    DataFile,
    DatasetManifest,
    Entity,
    Feature,
    Split,
)
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.prepare.options import SynthesizeOptions, SyntheticSpec
from crossfade.trainer.prepare.split_files import interaction_schema
from crossfade.trainer.prepare.staging import PartWriter, Staged, read_complete, row_group_rows, staged_output
from crossfade.trainer.prepare.summary import Facts
from crossfade.trainer.prepare.synthetic_draws import (
    CHUNK_ROWS,
    Generator,
    Integers,
    genre_name,
    genre_of,
)
from crossfade.trainer.prepare.vocabulary_tables import vocabulary_schema

MAX_NAMED_ITEMS = 100_000
GENRE = "genre"
FIRST_ID = 1_000_001  # IDs differ from rows, so that code that mixes them up fails visibly


def synthetic_source(spec: SyntheticSpec, seed: int) -> Facts:
    """Return what the manifest of a dataset of ``spec`` and ``seed`` records under ``source``."""
    return {"command": "synthetic", "seed": seed, **{name: getattr(spec, name) for name in SyntheticSpec.model_fields}}


def synthesize(options: SynthesizeOptions, progress: ProgressReporter) -> DatasetManifest | None:
    """Write the dataset that ``options`` describe; None if it is there already, and may be skipped.

    Raises:
        InputError: the output exists and may not be replaced, or a split would be empty.
    """
    if options.skip_existing:
        existing = read_complete(Folder(options.out))
        if existing is not None and existing.source == synthetic_source(options, options.seed):
            return None
    return write_synthetic(options.out, options, options.seed, options.overwrite, progress, options.work_dir)


def write_synthetic(
    out: str | os.PathLike[str],
    spec: SyntheticSpec,
    seed: int,
    overwrite: bool = False,
    progress: ProgressReporter | None = None,
    work: Path | None = None,
) -> DatasetManifest:
    """Write the prepared dataset ``out``, a path or URI, and return its manifest.

    The same spec and seed give the same bytes. ``interactions`` is the exact total of all splits. Ids are int64,
    ``FIRST_ID`` + row; up to 100,000 items have names. The dataset is written completely or not at all.

    Raises:
        InputError: ``out`` exists and may not be replaced, or a split would be empty.
    """
    progress = progress or NullReporter()
    with staged_output(out, overwrite, work) as staged:
        splits, counts = _write_splits(Generator(spec, seed), staged, progress)
        for split in (split for split, written in splits.items() if not written.rows):
            raise OptionError(
                "interactions",
                found=spec.interactions,
                problem=f"too few, {split} has none",
                fix="raise it, or set the fraction of the split to 0",
            )
        name = partial(_item_name, spec) if spec.items <= MAX_NAMED_ITEMS else None
        entities = {
            spec.query: _write_vocabulary(staged, spec.query, counts["query"], progress),
            spec.item: _write_vocabulary(staged, spec.item, counts["item"], progress, name),
        }
        features: dict[str, dict[str, Feature]] = {}
        if GENRE not in (spec.query.lower(), spec.item.lower()):
            count_G = np.array([counts["item"][genre :: spec.genres].sum() for genre in range(spec.genres)], np.int64)
            entities[GENRE] = _write_vocabulary(staged, GENRE, count_G, progress, genre_name, first_id=1)
            features = {spec.item: {GENRE: Feature(files=_write_genres(staged, spec, progress))}}
        manifest = DatasetManifest(
            query=spec.query,
            item=spec.item,
            entities=entities,
            splits=splits,
            features=features,
            has_timestamp=True,
            source=synthetic_source(spec, seed),
        )
        staged.publish(manifest)
    return manifest


def _write_genres(staged: Staged, spec: SyntheticSpec, progress: ProgressReporter) -> list[DataFile]:
    def genres(row_N: Integers) -> Sequence[pa.Array]:
        return [pa.array(row_N), pa.array(genre_of(row_N, spec.genres))]

    return _write(staged, f"{FEATURES}/{spec.item}/{GENRE}", SCHEMA, spec.items, genres, progress)


def _item_name(spec: SyntheticSpec, row: int) -> str:
    return f"{spec.item} {row + 1} ({genre_name(row % spec.genres)})"


def _write(
    staged: Staged,
    path: str,
    schema: pa.Schema,
    rows: int,
    columns: Callable[[Integers], Sequence[pa.Array]],
    progress: ProgressReporter,
) -> list[DataFile]:
    """Write the ``columns`` of all ``rows`` to ``path`` in chunks."""
    progress.phase(path, rows, "row")
    with PartWriter(staged, path, schema, row_group_rows(rows)) as writer:
        for start in range(0, rows, CHUNK_ROWS):
            row_N = np.arange(start, min(start + CHUNK_ROWS, rows), dtype=np.int64)
            writer.write(pa.RecordBatch.from_arrays(columns(row_N), schema=schema))
            progress.advance(len(row_N))
        return writer.close()


def _write_vocabulary(
    staged: Staged,
    entity: str,
    count_R: Integers,
    progress: ProgressReporter,
    name: Callable[[int], str] | None = None,
    first_id: int = FIRST_ID,
) -> Entity:
    """Write a vocabulary, whose IDs count from ``first_id``; ``name`` returns the name of a row, if rows have names."""

    def columns(row_N: Integers) -> Sequence[pa.Array]:
        found = [pa.array(row_N), pa.array(row_N + first_id), pa.array(count_R[row_N])]
        return found if name is None else [*found, pa.array([name(row) for row in row_N.tolist()])]

    schema = vocabulary_schema("int64", has_names=name is not None)
    files = _write(staged, f"{VOCABULARY}/{entity}", schema, len(count_R), columns, progress)
    return Entity(rows=len(count_R), id_type="int64", has_names=name is not None, files=files)


def _write_splits(
    generator: Generator, staged: Staged, progress: ProgressReporter
) -> tuple[dict[SplitName, Split], dict[str, Integers]]:
    """Draw all interactions, and write each to its split; return the splits, and the counts in train by side.

    The counts are in files, since memory may not hold them.
    """
    spec = generator.spec
    schema = interaction_schema(spec.query, spec.item, has_timestamp=True, context=())
    shares = dict(zip(ALL_SPLITS, (1 - spec.valid - spec.test, spec.valid, spec.test), strict=True))
    counts: dict[str, Integers] = {
        side: np.memmap(staged.work / f"{side}.counts", mode="w+", dtype=np.int64, shape=(rows,))
        for side, rows in (("query", spec.queries), ("item", spec.items))
    }
    progress.phase("write", spec.interactions, "row")
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                PartWriter(staged, split, schema, row_group_rows(round(share * spec.interactions)))
            )
            for split, share in shares.items()
            if share > 0
        }
        for chunk in generator.chunks():
            for split, writer in writers.items():
                in_split_N = chunk.split_N == ALL_SPLITS.index(split)
                query_N, item_N = chunk.query_N[in_split_N], chunk.item_N[in_split_N]
                weight_N = np.ones(len(query_N), dtype=np.float32)
                columns = (query_N, item_N, weight_N, chunk.timestamp_N[in_split_N])
                writer.write(pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=schema))
                if split == "train":
                    for side, row_N in (("query", query_N), ("item", item_N)):
                        active, times = np.unique(row_N, return_counts=True)
                        counts[side][active] += times
            progress.advance(len(chunk.query_N))
        splits = {split: Split(files=writer.close()) for split, writer in writers.items()}
    return splits, counts
