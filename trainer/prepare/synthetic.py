"""Write a prepared dataset of synthetic listening, of any size: planted genres and Zipf popularity.

    write_synthetic(Path("data/synthetic"), SyntheticSpec(queries=2_000, items=4_000, interactions=100_000), seed=1)

``synthetic_draws.py`` describes how interactions are drawn. They are drawn twice, once to count them, since only one
counter per row is kept, in memory-mapped files.

Shapes: N interactions of a chunk, R rows of a table, G genres.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from crossfade.base.errors import OptionError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT
from crossfade.trainer.data.features import SCHEMA, VALUE, content_group_rows, content_schema
from crossfade.trainer.data.manifest import (
    CONTENT,
    FEATURES,
    VOCABULARY,
    Content,
    DatasetManifest,
    Entity,
    Feature,
    Split,
)
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.options import SynthesizeOptions, SyntheticSpec
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
AUDIO = "audio"
_CENTER_STREAM, _AUDIO_STREAM = 8, 7
"""Separate the draws of genres' centers from those of noise."""
_AUDIO_ROWS = 4096
FIRST_ID = 1_000_001  # IDs differ from rows, so that code that mixes them up fails visibly


def synthetic_source(spec: SyntheticSpec, seed: int) -> Facts:
    """Return what the manifest of a dataset of ``spec`` and ``seed`` records under ``source``."""
    planted = ("audio", "moods", "drift")
    fields = [name for name in SyntheticSpec.model_fields if name != "likes"]
    values = {name: getattr(spec, name) for name in fields if getattr(spec, name) or name not in planted}
    return {"command": "synthetic", "seed": seed, **values}


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
        generator = Generator(spec, seed)
        rows, counts = _count(generator, staged.work, progress)
        _check_splits(spec, rows)
        entities = {
            spec.query: _write_vocabulary(staged, spec.query, counts["query"], None, progress),
            spec.item: _write_vocabulary(
                staged, spec.item, counts["item"], spec.genres if spec.items <= MAX_NAMED_ITEMS else None, progress
            ),
        }
        features: dict[str, dict[str, Feature]] = {}
        if GENRE not in (spec.query.lower(), spec.item.lower()):
            entities[GENRE] = _write_genres(staged, spec, counts["item"])
            features = {spec.item: {GENRE: _write_genre_pairs(staged, spec, progress)}}
        splits = _write_splits(generator, staged, rows, progress)
        manifest = DatasetManifest(
            query=spec.query,
            item=spec.item,
            entities=entities,
            splits={split: splits[split] for split in ALL_SPLITS if rows[split]},
            features=features,
            content={spec.item: {AUDIO: _write_audio(staged, spec, seed, progress)}} if spec.audio else {},
            has_timestamp=True,
            source=synthetic_source(spec, seed),
        )
        staged.publish(manifest)
    return manifest


def _check_splits(spec: SyntheticSpec, rows: Mapping[str, int]) -> None:
    for split, fraction in zip(ALL_SPLITS, (1, spec.valid, spec.test), strict=True):
        if fraction and not rows[split]:
            raise OptionError(
                "interactions",
                found=spec.interactions,
                problem=f"too few, {split} has none",
                fix="raise it, or set the fraction of the split to 0",
            )


def _count(generator: Generator, work: Path, progress: ProgressReporter) -> tuple[dict[str, int], dict[str, Integers]]:
    """Count the interactions of each split, and those of each row in train; the latter in files in ``work``."""
    spec = generator.spec
    rows_of_split = np.zeros(len(ALL_SPLITS), dtype=np.int64)
    counts: dict[str, Integers] = {
        side: np.memmap(work / f"{side}.counts", mode="w+", dtype=np.int64, shape=(rows,))
        for side, rows in (("query", spec.queries), ("item", spec.items))
    }
    progress.phase("count", spec.interactions, "row")
    for chunk in generator.chunks():
        rows_of_split += np.bincount(chunk.split_N, minlength=len(ALL_SPLITS))
        train_N = chunk.split_N == 0
        for side, row_N in (("query", chunk.query_N), ("item", chunk.item_N)):
            active, times = np.unique(row_N[train_N], return_counts=True)
            counts[side][active] += times
        progress.advance(len(chunk.query_N))
    return dict(zip(ALL_SPLITS, rows_of_split.tolist(), strict=True)), counts


def _write_vocabulary(
    staged: Staged, entity: str, count_R: Integers, genres: int | None, progress: ProgressReporter
) -> Entity:
    """Write a vocabulary in chunks; with ``genres``, rows have names."""
    rows = len(count_R)
    schema = vocabulary_schema("int64", genres is not None)
    progress.phase(f"vocabulary of {entity}", rows, "row")
    with PartWriter(staged, f"{VOCABULARY}/{entity}", schema, row_group_rows(rows)) as writer:
        for start in range(0, rows, CHUNK_ROWS):
            row_N = np.arange(start, min(start + CHUNK_ROWS, rows), dtype=np.int64)
            columns = [pa.array(row_N), pa.array(row_N + FIRST_ID), pa.array(count_R[row_N])]
            if genres is not None:
                names = zip((row_N + 1).tolist(), genre_of(row_N, genres).tolist(), strict=True)
                columns.append(pa.array([f"{entity} {number} ({genre_name(genre)})" for number, genre in names]))
            writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
            progress.advance(len(row_N))
        files = writer.close()
    return Entity(rows=rows, id_type="int64", has_names=genres is not None, files=files)


def _write_genres(staged: Staged, spec: SyntheticSpec, count_R: Integers) -> Entity:
    """Write the vocabulary of genres, whose counts are the sums of those of their items."""
    count_G = np.zeros(spec.genres, np.int64)
    for start in range(0, spec.items, CHUNK_ROWS):
        row_N = np.arange(start, min(start + CHUNK_ROWS, spec.items), dtype=np.int64)
        np.add.at(count_G, genre_of(row_N, spec.genres), count_R[row_N])
    number_G = np.arange(spec.genres, dtype=np.int64) + 1
    names = pa.array([genre_name(genre) for genre in range(spec.genres)])
    schema = vocabulary_schema("int64", has_names=True)
    columns = [pa.array(number_G - 1), pa.array(number_G), pa.array(count_G), names]
    with PartWriter(staged, f"{VOCABULARY}/{GENRE}", schema, row_group_rows(spec.genres)) as writer:
        writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
        return Entity(rows=spec.genres, id_type="int64", has_names=True, files=writer.close())


def _write_genre_pairs(staged: Staged, spec: SyntheticSpec, progress: ProgressReporter) -> Feature:
    progress.phase(f"{GENRE} of {spec.item}", spec.items, "row")
    with PartWriter(staged, f"{FEATURES}/{spec.item}/{GENRE}", SCHEMA, row_group_rows(spec.items)) as writer:
        for start in range(0, spec.items, CHUNK_ROWS):
            row_N = np.arange(start, min(start + CHUNK_ROWS, spec.items), dtype=np.int64)
            pairs = [pa.array(row_N), pa.array(genre_of(row_N, spec.genres))]
            writer.write(pa.RecordBatch.from_arrays(pairs, schema=SCHEMA))
            progress.advance(len(row_N))
        return Feature(files=writer.close())


def _write_audio(staged: Staged, spec: SyntheticSpec, seed: int, progress: ProgressReporter) -> Content:
    """Write the content of items: unit variance around the centers of genres, which have it too."""
    progress.phase(f"{AUDIO} of {spec.item}", spec.items, "row")
    schema, width = content_schema(spec.audio), spec.audio
    center_GD = np.random.default_rng((seed, _CENTER_STREAM)).standard_normal((spec.genres, width))
    group_rows = content_group_rows(row_group_rows(spec.items), width)
    with PartWriter(staged, f"{CONTENT}/{spec.item}/{AUDIO}", schema, group_rows) as writer:
        for start in range(0, spec.items, _AUDIO_ROWS):
            row_N = np.arange(start, min(start + _AUDIO_ROWS, spec.items), dtype=np.int64)
            noise_ND = np.random.default_rng((seed, _AUDIO_STREAM, start)).standard_normal((len(row_N), width))
            value_ND = (center_GD[genre_of(row_N, spec.genres)] + noise_ND).astype(np.float32)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(value_ND.ravel()), type=schema.field(VALUE).type)
            writer.write(pa.RecordBatch.from_arrays([pa.array(row_N), lists], schema=schema))
            progress.advance(len(row_N))
        # The root mean square that is expected, whatever was drawn, so that datasets of one kind agree.
        return Content(width=width, mean=0.0, std=float(np.sqrt(2.0)), files=writer.close())


def _write_splits(
    generator: Generator, staged: Staged, rows: dict[str, int], progress: ProgressReporter
) -> dict[str, Split]:
    """Draw all interactions again and write each to its split."""
    spec = generator.spec
    fields = [(spec.query, pa.int64()), (spec.item, pa.int64()), (WEIGHT, pa.float32()), (TIMESTAMP, pa.int64())]
    schema = pa.schema([pa.field(name, data_type, nullable=False) for name, data_type in fields])
    progress.phase("write", spec.interactions, "row")
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(PartWriter(staged, split, schema, row_group_rows(rows[split])))
            for split in ALL_SPLITS
            if rows[split]
        }
        for chunk in generator.chunks():
            for split, writer in writers.items():
                in_split_N = chunk.split_N == ALL_SPLITS.index(split)
                weight_N = np.ones(int(in_split_N.sum()), dtype=np.float32)
                columns = (chunk.query_N[in_split_N], chunk.item_N[in_split_N], weight_N, chunk.timestamp_N[in_split_N])
                writer.write(pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=schema))
            progress.advance(len(chunk.query_N))
        return {split: Split(files=writer.close()) for split, writer in writers.items()}
