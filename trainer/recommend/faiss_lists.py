"""Search vectors approximately with FAISS: an inverted file (IVF), whose lists are the clusters of k-means.

    lists = VectorLists.train(sample_ND, rows=10_000_000, ListOptions("cosine", codes="flat"), longest=1.0)
    lists.add(rows_N, vectors_ND)
    rows_QK, scores_QK = lists.search(query_QD, count=10, probes=16)

A search scans the lists whose centroids are nearest to the query; with all lists as ``probes``, it is exact for flat
codes. Scores are those of ``trainer.model.spec.Score`` without a temperature:

- cosine: vectors are scaled to length 1, and their inner product is searched.
- euclidean: the squared distance is searched, and its negative is the score.
- dot: k-means and inner products do not fit together when vectors differ in length. A further column √(M² − |x|²),
  with M the length of the longest, and 0 for queries, makes |q − x|² = |q|² + M² − 2q·x, so that the nearest have the
  largest inner product (Bachrach et al., "Speeding up the Xbox recommender system using a Euclidean transformation for
  inner-product spaces", RecSys 2014). With 8-bit codes, whose error in that column would exceed the differences of
  scores, the inner product itself is searched.

Only this module imports FAISS.

Shapes: N rows, Q queries, K ranks, R rows of the entity, D columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kvstore.arrays import BoolArray, FloatArray, IntArray
from kvstore.errors import InputError, MissingExtraError
from kvstore.jit import get_num_threads
from trainer.config.model_sections import ScoreKind
from trainer.evaluation.top_k import unit_rows

Codes = Literal["flat", "sq8"]
SAMPLES_PER_LIST = 64
"""Vectors that k-means uses for each list."""
_MIN_ROWS_PER_LIST = 16
_ITERATIONS = 10


@dataclass(frozen=True)
class ListOptions:
    """How vectors are compared and stored.

    Attributes:
        metric: the score that is searched.
        codes: ``flat``: float32; ``sq8``: 8 bits per column.
    """

    metric: ScoreKind
    codes: Codes = "flat"

    @property
    def adds_column(self) -> bool:
        """Whether vectors get a further column, which turns inner products into distances."""
        return self.metric == "dot" and self.codes == "flat"


def load_faiss(purpose: str) -> Any:
    """Import FAISS and let it use as many threads as the other kernels.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", extra="index", purpose=purpose) from error
    faiss.omp_set_num_threads(get_num_threads())
    return faiss


def num_lists(rows: int) -> int:
    """Return the number of lists for ``rows`` vectors: 4√rows, but lists of at least 16 on average."""
    return max(1, min(int(4 * math.sqrt(rows)), rows // _MIN_ROWS_PER_LIST))


def bytes_per_row(dim: int, options: ListOptions) -> int:
    """Return the bytes of a vector and its row number."""
    return (dim if options.codes == "sq8" else 4 * (dim + options.adds_column)) + 8


class VectorLists:
    """An index in memory, or in a file that the operating system pages."""

    def __init__(self, index: Any, options: ListOptions, longest: float) -> None:
        """Wrap ``index`` of FAISS; ``longest`` is M above."""
        self._index = index
        self._options = options
        self._longest = longest

    @staticmethod
    def train(sample_ND: FloatArray, rows: int, options: ListOptions, longest: float) -> VectorLists:
        """Find the lists for ``rows`` vectors, of which ``sample_ND`` are drawn at random.

        Raises:
            MissingExtraError: FAISS is not installed.
        """
        faiss = load_faiss("crossfade index")
        is_distance = options.metric == "euclidean" or options.adds_column
        index = faiss.index_factory(
            sample_ND.shape[1] + options.adds_column,
            f"IVF{num_lists(rows)},{'SQ8' if options.codes == 'sq8' else 'Flat'}",
            faiss.METRIC_L2 if is_distance else faiss.METRIC_INNER_PRODUCT,
        )
        index.cp.niter = _ITERATIONS
        index.cp.min_points_per_centroid = 1  # otherwise, it writes warnings to stderr
        index.cp.max_points_per_centroid = SAMPLES_PER_LIST
        lists = VectorLists(index, options, longest)
        index.train(lists._stored(sample_ND))
        return lists

    @staticmethod
    def read(path: Path, options: ListOptions, longest: float) -> VectorLists:
        """Open the file at ``path``, whose lists are read when they are scanned.

        Raises:
            InputError: it is not an index.
            MissingExtraError: FAISS is not installed.
        """
        faiss = load_faiss("searching an index")
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise InputError(
                f"{path}: is no index that FAISS can read; build it again with 'crossfade index'"
            ) from error
        # By default, each search starts threads that read ahead.
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
        return VectorLists(index, options, longest)

    @property
    def lists(self) -> int:
        """The number of lists."""
        return int(self._index.nlist)

    def add(self, rows_N: IntArray, vectors_ND: FloatArray) -> None:
        """Add vectors, which searches will name by ``rows_N``."""
        self._index.add_with_ids(self._stored(vectors_ND), rows_N)

    def write(self, path: Path) -> None:
        """Write the index to ``path``.

        Raises:
            OSError: it cannot be written.
        """
        import faiss

        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise OSError(f"{path}: {' '.join(str(error).split())}") from error

    def search(
        self, query_QD: FloatArray, count: int, probes: int, kept_R: BoolArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Return the ``count`` best rows of the nearest ``probes`` lists: int64 and scores float32 (Q, K), best first.

        ``kept_R`` leaves only some rows of the entity. Where fewer are found, rows are -1 and scores -inf.
        """
        faiss = load_faiss("searching an index")

        selector = None if kept_R is None else faiss.IDSelectorBitmap(np.packbits(kept_R, bitorder="little"))
        parameters = faiss.SearchParametersIVF(nprobe=min(probes, self.lists), sel=selector)
        score_QK, rows_QK = self._index.search(self._searched(query_QD), count, params=parameters)
        if self._options.adds_column:
            length_Q1 = np.square(query_QD).sum(axis=1, keepdims=True)
            score_QK = (length_Q1 + np.float32(self._longest) ** 2 - score_QK) / 2
        elif self._options.metric == "euclidean":
            score_QK = -score_QK
        score_QK[rows_QK < 0] = -np.inf
        return rows_QK, score_QK

    def _stored(self, vectors_ND: FloatArray) -> FloatArray:
        if self._options.metric == "cosine":
            return unit_rows(vectors_ND)
        if not self._options.adds_column:
            return vectors_ND
        rest_N = np.float32(self._longest) ** 2 - np.square(vectors_ND).sum(axis=1)
        return np.column_stack([vectors_ND, np.sqrt(np.maximum(rest_N, 0))])

    def _searched(self, query_QD: FloatArray) -> FloatArray:
        if self._options.metric == "cosine":
            return unit_rows(query_QD)
        if not self._options.adds_column:
            return query_QD
        return np.column_stack([query_QD, np.zeros(len(query_QD), np.float32)])
