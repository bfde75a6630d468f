"""The popularity term of a model's scores: what items gain by how often they were played.

    term = PopularityTerm.of(1.5, 0.25, temperature, counts_I)
    write_term(Folder(run / "embeddings"), term)                    # EMBEDDINGS/popularity.parquet
    term = read_term(EmbeddingFiles(run / "embeddings"), items)
    rank_items(source, term.added_to(model), ...)

With c the interactions of an item in train, or in the latest share of it, and T the temperature of the loss,

    score / T = similarity / T + factor · log(1 + c)

A softmax model learns what distinguishes queries; what all of them play now, counts say better, and they can be updated
without training. As a dot product, the score has one more column, 1 of queries and T · factor · log(1 + c) of items.

Shapes: N rows, Q queries, I items, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.json_text import validate_json
from crossfade.trainer.embeddings.files import EmbeddingFiles, VectorSource
from crossfade.trainer.embeddings.listing import AGAIN, POPULARITY_FILE, write_listing
from crossfade.trainer.model.spec import ModelSpec, Score

_COLUMN, _KEY = "offset", b"crossfade-popularity"


class PopularityCard(BaseModel):
    """How popularity enters scores.

    Attributes:
        factor: the factor of log(1 + count).
        share: the share of the latest interactions of train that are counted; 1: all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    factor: float
    share: float


@dataclass(frozen=True)
class PopularityTerm:
    """What is added to the score of each item, without its temperature: ``offset_I``, float32 (I,)."""

    card: PopularityCard
    offset_I: FloatArray

    @classmethod
    def of(cls, factor: float, share: float, temperature: float, count_I: IntArray) -> PopularityTerm:
        """Return the term of items with ``count_I`` interactions, int64 (I,), in the latest ``share`` of train."""
        offset_I = (temperature * factor * np.log1p(count_I)).astype(np.float32)
        return cls(PopularityCard(factor=factor, share=share), offset_I)

    def added_to(self, score: Score, temperature: float) -> Score:
        """Return ``score``, which has been divided by ``temperature``, with the term."""
        return replace(score, offset_I=self.offset_I / np.float32(temperature))

    def save(self, folder: Folder) -> None:
        """Write the term into ``folder``, as ``popularity.parquet``.

        Raises:
            OSError: it cannot be written.
        """
        metadata = {_KEY: self.card.model_dump_json()}
        table = pa.table({_COLUMN: self.offset_I}).replace_schema_metadata(metadata)
        with folder.open_output(POPULARITY_FILE) as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=False, write_page_checksum=True)

    @classmethod
    def from_table(cls, table: pa.Table, items: int) -> PopularityTerm:
        """Return the term that ``save`` has written, of so many ``items``.

        Raises:
            ValueError: the table is none, or of other items.
        """
        card = validate_json(PopularityCard, (table.schema.metadata or {}).get(_KEY, b""))
        column = table[_COLUMN]
        is_whole = len(column) == items and pa.types.is_float32(column.type) and not column.null_count
        if not (is_whole and np.isfinite(offset_I := column.to_numpy()).all()):
            raise ValueError(f"expected a finite float32 for each of {items:,} items")
        return cls(card, offset_I)


def write_term(folder: Folder, term: PopularityTerm | None) -> None:
    """Write the term of the embeddings in ``folder``, or delete it, and list its file.

    Raises:
        OSError: it cannot be written.
    """
    if term is not None:
        term.save(folder)
    elif folder.exists(POPULARITY_FILE):
        folder.remove(POPULARITY_FILE)
    else:
        return
    write_listing(folder)


def read_term(embeddings: EmbeddingFiles, items: int) -> PopularityTerm | None:
    """Return the popularity term of ``embeddings``, of so many ``items``; None if they have none.

    Raises:
        InputError: its file is missing or damaged, or of other items.
    """
    if (table := embeddings.popularity()) is None:
        return None
    try:
        return PopularityTerm.from_table(table, items)
    except (ValueError, KeyError) as error:
        raise InputError(f"{embeddings.popularity_uri}: is not a popularity term: {error}; {AGAIN}") from error


class RankingVectors:
    """Vectors whose dot product is a score with offsets: queries and items have one more column.

    Where the score compares directions, all have length 1 without that column.
    """

    def __init__(self, source: VectorSource, model: ModelSpec, score: Score) -> None:
        """Add the column of ``score``, without a temperature, to the vectors of ``source``."""
        self._source, self._names, self._score = source, (model.query.name, model.item.name), score

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64, sorted and unique: float32 (N, D + 1), of features (N, D)."""
        vectors_ND, (query, item) = self._source.vectors(entity, rows_N), self._names
        assert self._score.offset_I is not None
        if entity == query:
            return with_ones(vectors_ND, self._score)
        return _with_column(vectors_ND, self._score, self._score.offset_I[rows_N] if entity == item else None)


def with_ones(query_QD: FloatArray, score: Score) -> FloatArray:
    """Return vectors of queries with the column that meets the offsets of items: float32 (Q, D + 1)."""
    return _with_column(query_QD, score, np.ones(len(query_QD), np.float32))


def _with_column(vectors_ND: FloatArray, score: Score, column_N: FloatArray | None) -> FloatArray:
    if score.normalized:
        vectors_ND = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    return vectors_ND if column_N is None else np.column_stack([vectors_ND, column_N]).astype(np.float32)


def ranking_spec(model: ModelSpec) -> ModelSpec:
    """Return the model of ``RankingVectors``: dot products of one more column."""
    query, item = (replace(table, dim=table.dim + 1) for table in (model.query, model.item))
    wider = {query.name: query, item.name: item}
    towers = tuple(replace(tower, entity=wider[tower.entity.name]) for tower in model.towers)
    return replace(model, query=query, item=item, towers=towers, score=Score.of("dot", 1.0))
