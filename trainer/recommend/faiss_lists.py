"""Search vectors approximately with FAISS: an inverted file (IVF), whose lists are the clusters of k-means.

    lists = VectorLists.train(sample_ND, rows=10_000_000, ListOptions("cosine", codes="flat"), longest=1.0)
    lists.add(rows_N, vectors_ND)
    rows_QK, scores_QK = lists.search(query_QD, count=10, probes=16)

A search scans the lists whose centroids are nearest to the query; with all lists as ``probes``, it is exact for flat
codes. Scores are those of ``crossfade.trainer.model.spec.Score`` without a temperature:

- cosine: vectors are scaled to length 1, and their inner product is searched.
- euclidean: the squared distance is searched, and its negative is the score.
- dot: inner products are searched, but k-means and centroids do not fit them when vectors differ in length. Lists are
  found, and chosen, by the distance of vectors with a further column: √(M² − |x|²), with M the length of the longest,
  and 0 for queries. Since |q − x|² is then |q|² + M² − 2q·x, the nearest have the largest inner product (Bachrach et
  al., "Speeding up the Xbox recommender system using a Euclidean transformation for inner-product spaces", RecSys
  2014).

Product quantization ("pq") stores what a vector differs by from the centroid of its list: for each few columns, which
of 256 typical values is nearest, in a byte. Its scores are those of the stored values; ``index_search.py`` ranks what
it finds again, by the vectors.

Only this module imports FAISS.

Shapes: N rows, Q queries, K ranks, R rows of the entity, D columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, MissingExtraError, command
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.recommend.options import Codes
from crossfade.trainer.recommend.top_k import unit_rows

SAMPLES_PER_LIST = 64
"""Vectors that k-means uses for each list."""
MIN_PQ_ROWS = 256
"""Vectors that product quantization is learned from, at least: as many as a byte has values."""
_MIN_ROWS_PER_LIST = 16
ITERATIONS = 10


@dataclass(frozen=True)
class ListOptions:
    """How vectors are compared and stored.

    Attributes:
        metric: the score that is searched.
        codes: ``flat``: float32; ``sq8``: 8 bits per column; ``pq``: 8 bits for ``columns_per_byte`` columns.
        columns_per_byte: of product quantization.
    """

    metric: ScoreKind
    codes: Codes = "flat"
    columns_per_byte: int = 2

    def added_columns(self, dim: int) -> int:
        """Return the columns that vectors of ``dim`` columns get in addition.

        Beside that of dot products, with 8-bit codes, they fill up to a multiple of 8, which FAISS compares four times
        as fast; with product quantization, to a multiple of the columns of a byte.
        """
        needed = 1 if self.metric == "dot" else 0
        if self.codes == "pq":
            return needed + -(dim + needed) % self.columns_per_byte
        return 8 - dim % 8 if needed and self.codes == "sq8" else needed

    def code_bytes(self, dim: int) -> int:
        """Return the bytes of a stored vector of ``dim`` columns."""
        width = dim + self.added_columns(dim)
        return 4 * width if self.codes == "flat" else width if self.codes == "sq8" else width // self.columns_per_byte


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
    return options.code_bytes(dim) + 8


class VectorLists:
    """An index in memory, or in a file that the operating system pages."""

    def __init__(self, index: Any, options: ListOptions, longest: float = 0.0) -> None:
        """Wrap ``index`` of FAISS; ``longest`` is M above, which only adding needs."""
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
        index = _new_index(faiss, sample_ND.shape[1], num_lists(rows), options)
        index.cp.niter = ITERATIONS
        index.cp.min_points_per_centroid = 1  # otherwise, it writes warnings to stderr
        index.cp.max_points_per_centroid = SAMPLES_PER_LIST
        if options.codes == "pq":
            index.pq.cp.niter, index.pq.cp.min_points_per_centroid = ITERATIONS, 1
        lists = VectorLists(index, options, longest)
        index.train(lists._stored(sample_ND))
        return lists

    @staticmethod
    def read(path: Path, options: ListOptions) -> VectorLists:
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
        return VectorLists(index, options)

    @staticmethod
    def load(path: Path, options: ListOptions) -> VectorLists:
        """Load the file at ``path``, of flat codes, to change what it has.

        Raises:
            RuntimeError: it is not an index.
        """
        faiss = load_faiss("crossfade serve")
        from faiss.contrib.inspect_tools import get_invlist

        index = faiss.read_index(str(path))
        # With the further column, all vectors have the length of the longest.
        filled = next(number for number in range(index.nlist) if index.invlists.list_size(number))
        stored_D = get_invlist(index.invlists, filled)[1][0].view(np.float32)  # type: ignore[no-untyped-call]
        return VectorLists(index, options, float(np.linalg.norm(stored_D)))

    @property
    def options(self) -> ListOptions:
        """How vectors are compared and stored."""
        return self._options

    @property
    def rows(self) -> int:
        """The number of vectors."""
        return int(self._index.ntotal)

    @property
    def lists(self) -> int:
        """The number of lists."""
        return int(self._index.nlist)

    def add(self, rows_N: IntArray, vectors_ND: FloatArray) -> None:
        """Add vectors, which searches will name by ``rows_N``."""
        self._index.add_with_ids(self._stored(vectors_ND), rows_N)

    def remove(self, removed_R: BoolArray) -> None:
        """Remove the vectors of the rows ``removed_R``, bool (R,)."""
        self._index.remove_ids(_selector(removed_R))

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

        selector = None if kept_R is None else _selector(kept_R)
        parameters = faiss.SearchParametersIVF(nprobe=min(probes, self.lists), sel=selector)
        score_QK, rows_QK = self._index.search(self._searched(query_QD), count, params=parameters)
        if self._options.metric == "euclidean":
            score_QK = -score_QK
        score_QK[rows_QK < 0] = -np.inf
        return rows_QK, score_QK

    def _stored(self, vectors_ND: FloatArray) -> FloatArray:
        stored_ND = self._searched(vectors_ND)
        if self._options.metric == "dot":
            rest_N = np.float32(self._longest) ** 2 - np.square(vectors_ND).sum(axis=1)
            stored_ND[:, vectors_ND.shape[1]] = np.sqrt(np.maximum(rest_N, 0))
        return stored_ND

    def _searched(self, query_QD: FloatArray) -> FloatArray:
        """Append zeros as the further columns, to vectors of length 1 for cosines."""
        unit_QD = unit_rows(query_QD) if self._options.metric == "cosine" else query_QD
        added = self._index.d - query_QD.shape[1]
        return np.pad(unit_QD, ((0, 0), (0, added))) if added else unit_QD


def _selector(rows_R: BoolArray) -> Any:
    """Return what selects the rows ``rows_R`` in FAISS."""
    return load_faiss("searching an index").IDSelectorBitmap(np.packbits(rows_R, bitorder="little"))


def _new_index(faiss: Any, dim: int, lists: int, options: ListOptions) -> Any:
    """Return an empty index of FAISS for vectors of ``dim`` columns."""
    inner_product, width = faiss.METRIC_INNER_PRODUCT, dim + options.added_columns(dim)
    if options.metric != "dot":
        metric = faiss.METRIC_L2 if options.metric == "euclidean" else inner_product
        names = {"flat": "Flat", "sq8": "SQ8", "pq": f"PQ{options.code_bytes(dim)}np"}
        return faiss.index_factory(width, f"IVF{lists},{names[options.codes]}", metric)
    quantizer = faiss.IndexFlatL2(width)
    if options.codes == "flat":
        index = faiss.IndexIVFFlat(quantizer, width, lists, inner_product)
    elif options.codes == "pq":
        index = faiss.IndexIVFPQ(quantizer, width, lists, options.code_bytes(dim), 8, inner_product)
    else:
        # Without residuals, since these would be of distances.
        bits = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, width, lists, bits, inner_product, False)
    index.cp.spherical = False
    return index
