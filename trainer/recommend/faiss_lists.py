"""Search vectors approximately with FAISS: an inverted file (IVF), whose lists are the clusters of k-means.

    lists = VectorLists.train(sample_ND, rows=10_000_000, metric="cosine", longest=1.0)
    lists.add(rows_N, vectors_ND)
    rows_QK, scores_QK = lists.search(query_QD, count=10, probes=16)

A search scans the lists whose centroids are nearest to the query; with all lists as ``probes``, it is exact. Scores are
as of ``crossfade.trainer.model.spec.Score`` without a temperature:

- cosine: vectors are scaled to length 1, and their inner product is searched.
- euclidean: the squared distance is searched, and its negative is the score.
- dot: inner products are searched, but k-means and centroids do not fit them when vectors differ in length. Lists are
  found, and chosen, by the distance of vectors with a further column: √(M² − |x|²), with M the length of the longest,
  and 0 for queries. Since |q − x|² is then |q|² + M² − 2q·x, the nearest have the largest inner product (Bachrach et
  al., "Speeding up the Xbox recommender system using a Euclidean transformation for inner-product spaces", RecSys
  2014).

Only this module imports FAISS.

Shapes: N rows, Q queries, K ranks, R rows of the entity, D columns.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, MissingExtraError, command
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.recommend.top_k import unit_rows

SAMPLES_PER_LIST = 64
"""Vectors that k-means uses for each list."""
_MIN_ROWS_PER_LIST = 16
_ITERATIONS = 10


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


class VectorLists:
    """An index in memory, or in a file that the operating system pages."""

    def __init__(self, index: Any, metric: ScoreKind, longest: float = 0.0) -> None:
        """Wrap ``index`` of FAISS, which searches by ``metric``; ``longest`` is M above, which only adding needs."""
        self._index, self.metric, self._longest = index, metric, longest

    @staticmethod
    def train(sample_ND: FloatArray, rows: int, metric: ScoreKind, longest: float) -> VectorLists:
        """Find the lists for ``rows`` vectors, of which ``sample_ND`` are drawn at random.

        Raises:
            MissingExtraError: FAISS is not installed.
        """
        faiss, dim = load_faiss("crossfade index"), sample_ND.shape[1]
        if metric == "dot":
            quantizer = faiss.IndexFlatL2(dim + 1)
            index = faiss.IndexIVFFlat(quantizer, dim + 1, num_lists(rows), faiss.METRIC_INNER_PRODUCT)
            index.cp.spherical = False
        else:
            kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
            index = faiss.index_factory(dim, f"IVF{num_lists(rows)},Flat", kind)
        index.cp.niter = _ITERATIONS
        index.cp.min_points_per_centroid = 1  # otherwise, it writes warnings to stderr
        index.cp.max_points_per_centroid = SAMPLES_PER_LIST
        lists = VectorLists(index, metric, longest)
        index.train(lists._stored(sample_ND))
        return lists

    @staticmethod
    def read(path: Path, metric: ScoreKind) -> VectorLists:
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
                f"{path}: is no index that FAISS can read; build it again with {command('index')}"
            ) from error
        # By default, each search starts threads that read ahead.
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
        return VectorLists(index, metric)

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
        try:
            load_faiss("crossfade index").write_index(self._index, str(path))
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
        if self.metric == "euclidean":
            score_QK = -score_QK
        score_QK[rows_QK < 0] = -np.inf
        return rows_QK, score_QK

    def _stored(self, vectors_ND: FloatArray) -> FloatArray:
        stored_ND = self._searched(vectors_ND)
        if self.metric == "dot":
            rest_N = np.float32(self._longest) ** 2 - np.square(vectors_ND).sum(axis=1)
            stored_ND[:, -1] = np.sqrt(np.maximum(rest_N, 0))
        return stored_ND

    def _searched(self, query_QD: FloatArray) -> FloatArray:
        """Return vectors of length 1 for cosines, and with a further column of zeros for dot products."""
        if self.metric == "dot":
            return np.pad(query_QD, ((0, 0), (0, self._index.d - query_QD.shape[1])))
        return unit_rows(query_QD) if self.metric == "cosine" else query_QD
