"""An index of a model's vectors in a folder: its card, the check that it belongs to a model, and rankings by it.

    index = open_index(Path("indexes/lastfm"), model, "artist", "cosine")
    rows_QK, scores_QK = IndexRanker(index, model.vectors, table, score, candidates).rank(query_QD, excluded, count=10)

    FOLDER/card.json        IndexCard
    FOLDER/index.faiss      the vectors, in the format of FAISS, each with its row

Rankings have the filters, exclusions and limits per group of exact ones.

Shapes: Q queries, K ranks, J ranks before exclusions, N elements of lists, R rows of the entity, D columns.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, Option, command
from crossfade.base.io.checksums import FileChecksum, verify_files
from crossfade.base.io.regular_files import read_below
from crossfade.base.io.replacing import check_replaceable
from crossfade.base.json_text import validate_json
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.manifest import Count, data_fingerprint
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.embeddings.popularity import with_ones
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.faiss_lists import VectorLists
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.trained_model import TrainedModel

CARD_FILE, INDEX_FILE = "card.json", "index.faiss"
MEASURED_DEPTH = 100
"""The depth that the number of lists to scan was chosen for."""
_CHECKED_ROWS = 1024
"""Rows whose vectors identify a model. Rows are in order of frequency, so training changes these in every epoch."""
_CHUNK_QUERIES = 1024
_CHUNK_RANKS = 1 << 20
"""Ranks of all queries of a chunk, unless a single query has more."""
_PROBE_FACTOR = 4
"""How many times as many lists are scanned for queries whose lists had too few rows."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IndexedModel(_Section):
    """The model whose vectors an index holds; ``crc32`` is of the vectors of its first rows."""

    uri: str
    data_fingerprint: Count
    crc32: Count


class IndexMeasurements(_Section):
    """Approximate search compared with exact search, for ``queries`` vectors of the entity ``query_entity``."""

    query_entity: str
    queries: Count
    recall_at_100: float


class IndexCard(_Section):
    """What an index holds, how many of its lists a search scans, and how well it searches."""

    format: Literal["crossfade-index"] = "crossfade-index"
    version: Literal[4] = 4
    model: IndexedModel
    entity: str
    metric: ScoreKind
    rows: Count
    dim: Annotated[int, Field(ge=1, lt=2**31)]
    lists: Count
    probes: Count
    measured: IndexMeasurements
    files: dict[Annotated[str, Field(pattern=r"^index\.faiss$")], FileChecksum] = Field(min_length=1)


@dataclass(frozen=True)
class VectorIndex:
    """An opened index.

    Attributes:
        lists: the vectors.
        probes: the lists that a search scans.
        indexed_R: which rows of the entity it has, bool (R,).
    """

    lists: VectorLists
    probes: int
    indexed_R: BoolArray


def open_index(folder: Path, model: TrainedModel, entity: str, metric: ScoreKind) -> VectorIndex:
    """Open the index in ``folder``, which must have the vectors of ``entity`` in ``model`` and search by ``metric``.

    Raises:
        InputError: there is none, it is another one, or it cannot be read.
        MissingExtraError: FAISS is not installed.
    """
    return open_built_index(folder, check_index(read_card(folder), folder, model.compared_by(metric), entity, metric))


def open_built_index(folder: Path, indexed_R: BoolArray) -> VectorIndex:
    """Open the index in ``folder``, which has been built with the vectors of ``indexed_R``, bool (R,), without checks.

    Raises:
        InputError: there is none, or it cannot be read.
        MissingExtraError: FAISS is not installed.
    """
    card = read_card(folder)
    return VectorIndex(VectorLists.read(folder / INDEX_FILE, card.metric), card.probes, indexed_R)


def read_card(folder: Path) -> IndexCard:
    """Read the card of the index in ``folder``.

    Raises:
        InputError: there is none, or its format is another one.
    """
    path = folder / CARD_FILE
    try:
        return validate_json(IndexCard, read_below(folder, CARD_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder}: has no {CARD_FILE}; expected a folder that {command('index')} wrote") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(
            f"{path}: is not the card of an index: {error}; build it again with {command('index')}"
        ) from error


def check_index(card: IndexCard, folder: Path, model: TrainedModel, entity: str, metric: ScoreKind) -> BoolArray:
    """Check that the index in ``folder`` has the vectors of ``entity`` in ``model``, and searches by ``metric``.

    Vectors are compared, so that a run may be moved, and its checkpoint used instead of its embeddings.

    Returns:
        Which rows it has, bool (R,).

    Raises:
        InputError: it has not, or a file of it is damaged.
    """
    named = Option("index", folder)
    again = f"build one with {command('index', model.uri.removesuffix('/embeddings'), entity=entity, metric=metric)}"
    if card.entity != entity:
        raise InputError(named, f": has the vectors of '{card.entity}', not of '{entity}'; {again}")
    if card.metric != metric:
        raise InputError(named, f": searches by {card.metric}, but the ranking is by {metric}; {again}")
    if card.model.data_fingerprint != data_fingerprint(model.data):
        raise InputError(named, f": was built with another dataset than {model.data.uri}; {again}")
    indexed_R = model.trained_rows(entity)
    rows_N = np.flatnonzero(indexed_R)
    if len(rows_N) != card.rows or vectors_crc32(model, entity, rows_N) != card.model.crc32:
        raise InputError(named, f": was built from other vectors ({card.model.uri}) than {model.uri} has now; {again}")
    verify_files(folder, card.files, CARD_FILE, "copy the folder again, or build the index again")
    return indexed_R


def vectors_crc32(model: TrainedModel, entity: str, rows_N: IntArray) -> int:
    """Return the CRC-32 by which the vectors of the indexed ``rows_N``, int64 and sorted, are recognized."""
    return zlib.crc32(np.ascontiguousarray(model.vectors.vectors(entity, rows_N[:_CHECKED_ROWS])).tobytes())


def check_free(out: Path, overwrite: bool) -> None:
    """Reject an existing ``out``, unless ``overwrite`` is given and it holds nothing but an index.

    Raises:
        InputError: it may not be replaced.
    """

    def find_foreign() -> str | None:
        names = {path.name for path in out.iterdir()}
        return min(names - {CARD_FILE, INDEX_FILE} if CARD_FILE in names else names, default=None)

    check_replaceable(out, overwrite, "an index", find_foreign)


class IndexRanker(Ranker):
    """Ranks by an index.

    Filters and deep rankings scan more lists, so that recall does not fall with them. Where the scanned lists have too
    few candidates for a query, more are scanned, in the end all of them.
    """

    def __init__(
        self, index: VectorIndex, source: VectorSource, table: TableSpec, score: Score, candidates: Candidates
    ) -> None:
        """Rank the ``candidates`` of ``table`` that ``index`` has.

        An index for a ``score`` with offsets has the vectors of ``TrainedModel.ranking_model``.
        """
        candidates = replace(candidates, kept_R=candidates.kept_R & index.indexed_R)
        super().__init__(source, table, score, candidates)
        self._index = index
        is_filtered = self._num_candidates < np.count_nonzero(index.indexed_R)
        self._kept_R = candidates.kept_R if is_filtered else None

    def _rank(self, query_QD: FloatArray, excluded: JaggedArray, count: int) -> tuple[IntArray, FloatArray]:
        rows_QK = np.full((len(query_QD), count), -1, np.int64)
        scores_QK = np.full((len(query_QD), count), -np.inf, np.float32)
        if not self._num_candidates or not count:
            return rows_QK, scores_QK
        if self._score.offset_I is not None:
            query_QD = with_ones(query_QD, self._score)
        # Queries of about as many exclusions are searched together, to a depth that no other query changes.
        depth_Q = np.minimum(count + _rounded_up(excluded.counts_L), self._num_candidates)
        for depth in np.unique(depth_Q):
            chunk = max(1, min(_CHUNK_QUERIES, _CHUNK_RANKS // int(depth)))
            of_depth_Q = np.flatnonzero(depth_Q == depth)
            for first in range(0, len(of_depth_Q), chunk):
                queries_Q, probes = of_depth_Q[first : first + chunk], self._probes(int(depth))
                while len(queries_Q):
                    asked_QD, lists = query_QD[queries_Q], self._index.lists
                    best = lists.search(asked_QD, int(depth), probes, self._kept_R)
                    complete_Q = best[0][:, -1] >= 0
                    best = without_excluded(*best, excluded.take(queries_Q), count, len(self._index.indexed_R))
                    rows_QK[queries_Q], scores_QK[queries_Q] = best
                    complete_Q |= (best[0][:, -1] >= 0) | (probes >= lists.lists)
                    queries_Q, probes = queries_Q[~complete_Q], probes * _PROBE_FACTOR
        return rows_QK, scores_QK

    def _probes(self, depth: int) -> int:
        """Return the lists to scan for ``depth`` rows: those of the card are for 100 rows of all that it has."""
        share = np.count_nonzero(self._index.indexed_R) / self._num_candidates
        return int(min(self._index.probes * share * max(1.0, depth / MEASURED_DEPTH), self._index.lists.lists))


def _rounded_up(count_Q: IntArray) -> IntArray:
    """Round counts up to three binary digits: to few different ones, each at most a quarter more."""
    step_Q: IntArray = 2 ** np.maximum(np.frexp(count_Q)[1].astype(np.int64) - 3, 0)
    return -(-count_Q // step_Q) * step_Q


def without_excluded(
    rows_QJ: IntArray, scores_QJ: FloatArray, excluded: JaggedArray, count: int, rows: int
) -> tuple[IntArray, FloatArray]:
    """Return the ``count`` best of ``rows_QJ`` that are not ``excluded``, padded with row -1 and score -inf."""
    query_N = np.repeat(np.arange(len(rows_QJ)), excluded.counts_L)
    number_QJ = np.arange(len(rows_QJ))[:, None] * rows + rows_QJ
    dropped_QJ = np.isin(number_QJ, query_N * rows + excluded.values_N) | (rows_QJ < 0)
    order_QK = np.argsort(dropped_QJ, axis=1, kind="stable")[:, :count]
    dropped_QK = np.take_along_axis(dropped_QJ, order_QK, axis=1)
    rows_QK = np.where(dropped_QK, -1, np.take_along_axis(rows_QJ, order_QK, axis=1))
    scores_QK = np.where(dropped_QK, np.float32(-np.inf), np.take_along_axis(scores_QJ, order_QK, axis=1))
    padding = (0, 0), (0, count - rows_QK.shape[1])
    return np.pad(rows_QK, padding, constant_values=-1), np.pad(scores_QK, padding, constant_values=-np.inf)
