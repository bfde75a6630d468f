"""The work that everything is measured on: BPR triples with the same IDs for Crossfade and all peers.

    work = make_work(folder, Draw("zipf", customers=1_000_000, tracks=100_000, triples=4_000_000))
    work.ids            # a folder of customer.npy, positive.npy, negative.npy, for peers
    work.dataset        # a prepared dataset of the same customers and positives, for 'crossfade train'

IDs are drawn once from a seed and kept. Zipf's law ranks rows in a random order, so that popular rows are not
neighbors. Negatives are uniform; Crossfade and peers that sample by themselves draw their own.

Shapes: N triples, R rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import IntArray
from crossfade.trainer.data.column_names import WEIGHT
from crossfade.trainer.data.manifest import VOCABULARY, DatasetManifest, Entity, Split
from crossfade.trainer.prepare.staging import PartWriter, Staged, row_group_rows, staged_output
from crossfade.trainer.prepare.vocabulary_tables import vocabulary_schema

ZIPF_EXPONENT = 1.1
SEED = 1
CHUNK_ROWS = 1 << 20
Distribution = Literal["uniform", "zipf"]


@dataclass(frozen=True)
class Draw:
    """What is drawn: ``triples`` of IDs by ``distribution`` from two tables."""

    distribution: Distribution
    customers: int
    tracks: int
    triples: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.distribution}-{self.customers}-{self.tracks}-{self.triples}"


@dataclass(frozen=True)
class Work:
    """IDs in files. ``ids``: a folder of arrays; ``dataset``: a prepared dataset."""

    draw: Draw
    ids: Path
    dataset: Path


def make_work(folder: Path, draw: Draw) -> Work:
    """Write the IDs of ``draw`` below ``folder``, unless they exist."""
    work = Work(draw, folder / draw.name / "ids", folder / draw.name / "dataset")
    if (work.dataset / "manifest.json").exists():
        return work
    generator = np.random.default_rng(SEED)
    customer_N = draw_rows(generator, draw.distribution, draw.customers, draw.triples)
    positive_N = draw_rows(generator, draw.distribution, draw.tracks, draw.triples)
    negative_N = generator.integers(0, draw.tracks, draw.triples)
    work.ids.mkdir(parents=True, exist_ok=True)
    for name, row_N in (("customer", customer_N), ("positive", positive_N), ("negative", negative_N)):
        np.save(work.ids / f"{name}.npy", row_N)
    _write_dataset(work, customer_N, positive_N)
    return work


def draw_rows(generator: np.random.Generator, distribution: Distribution, rows: int, count: int) -> IntArray:
    """Draw ``count`` rows of a table of ``rows``: int64 (count,)."""
    if distribution == "uniform":
        return generator.integers(0, rows, count)
    cumulative_R = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -ZIPF_EXPONENT)
    ranks_N = np.searchsorted(cumulative_R, generator.random(count) * cumulative_R[-1], side="right")
    return generator.permutation(rows)[np.minimum(ranks_N, rows - 1)]


def _write_dataset(work: Work, customer_N: IntArray, positive_N: IntArray) -> None:
    """Write the interactions and vocabularies as 'crossfade prepare' does; the ID of a row is its number."""
    fields = [("customer", pa.int64()), ("track", pa.int64()), (WEIGHT, pa.float32())]
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])
    weight_N = np.ones(len(customer_N), np.float32)
    with staged_output(work.dataset, overwrite=False) as staged:
        with PartWriter(staged, "train", schema, row_group_rows(len(customer_N))) as writer:
            columns = [pa.array(column) for column in (customer_N, positive_N, weight_N)]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
            split = Split(files=writer.close())
        sides = (("customer", customer_N, work.draw.customers), ("track", positive_N, work.draw.tracks))
        entities = {name: _write_vocabulary(staged, name, row_N, rows) for name, row_N, rows in sides}
        source = {"command": "benchmark", "draw": work.draw.name}
        staged.publish(
            DatasetManifest(query="customer", item="track", entities=entities, splits={"train": split}, source=source)
        )


def _write_vocabulary(staged: Staged, entity: str, row_N: IntArray, rows: int) -> Entity:
    count_R = np.bincount(row_N, minlength=rows)
    schema = vocabulary_schema("int64", has_names=False)
    with PartWriter(staged, f"{VOCABULARY}/{entity}", schema, row_group_rows(rows)) as writer:
        for start in range(0, rows, CHUNK_ROWS):
            number_R = np.arange(start, min(start + CHUNK_ROWS, rows), dtype=np.int64)
            columns = [pa.array(number_R), pa.array(number_R), pa.array(count_R[start : start + CHUNK_ROWS])]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
        return Entity(rows=rows, id_type="int64", files=writer.close())
