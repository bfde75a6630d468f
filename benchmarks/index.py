"""Compare libraries and kinds of nearest-neighbor indexes by recall and speed: FAISS and usearch against exact search.

    .venv/bin/python benchmarks/index.py runs/lastfm                      # a run's items, searched for its queries
    .venv/bin/python benchmarks/index.py --rows 1e5                       # clustered vectors of 64 columns
    .venv/bin/python benchmarks/index.py --rows 1e6 --only ivf            # only the indexes whose names match

One thread builds and searches. Each index is searched with increasing effort until its recall@100 reaches the target.
Inner products of vectors of different lengths ("dot") are searched in two ways: by the library's own inner product
("ip"), and as Euclidean distance with a further column (Bachrach et al., RecSys 2014; "L2+1"). "crossfade index" is
what the command builds; pq/4 has a byte for four columns. The neighbors
of exact search are the truth. Times are processor seconds, so that other work on the machine does not count. It needs
faiss-cpu and usearch.

Shapes: N rows, Q queries, K ranks, D columns.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.recommend.faiss_lists import (
    SAMPLES_PER_LIST,
    ListOptions,
    VectorLists,
    bytes_per_row,
    num_lists,
)
from crossfade.trainer.recommend.index_search import search_lists
from crossfade.trainer.recommend.options import Codes
from crossfade.trainer.recommend.top_k import unit_rows
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource

_DEPTH = 100
_QUERIES = 1000
_COLUMNS = 64
Search = Callable[[FloatArray, int, int], IntArray]
"""Returns the nearest rows (Q, K) of queries, by K and by an effort."""


def main() -> None:
    """Print a table for each kind of score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", metavar="FROM", help="use the vectors of this run (default: synthetic)")
    parser.add_argument("--rows", type=float, default=1e5, metavar="N", help="draw N synthetic vectors (default: 1e5)")
    parser.add_argument("--metric", nargs="+", default=["cosine", "dot"], choices=["cosine", "dot", "euclidean"])
    parser.add_argument("--only", default="", metavar="PATTERN", help="measure indexes whose names match")
    parser.add_argument("--target", type=float, default=0.95, metavar="R", help="recall@100 to reach (default: 0.95)")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if arguments.source:
        vectors = with_trained_model(ModelSource(source=str(arguments.source)), print, _vectors_of)
    else:
        vectors = _clustered(int(arguments.rows))
    with threadpool_limits(1):
        for metric in arguments.metric:
            _compare(metric, *vectors, arguments.only, arguments.target)


def _vectors_of(model: TrainedModel) -> tuple[FloatArray, FloatArray]:
    """Return the trained vectors of a run's items, and those of some of its queries."""
    item_R, query_R = (np.flatnonzero(model.trained_rows(table)) for table in (model.spec.item, model.spec.query))
    query_Q = np.sort(np.random.default_rng(0).choice(query_R, min(_QUERIES, len(query_R)), replace=False))
    return tuple(  # type: ignore[return-value]
        model.vectors.vectors(table.name, rows_N)
        for table, rows_N in ((model.spec.item, item_R), (model.spec.query, query_Q))
    )


def _clustered(rows: int) -> tuple[FloatArray, FloatArray]:
    """Draw vectors in clusters of unequal size and shape, of log-normal length, and queries between two clusters."""
    random = np.random.default_rng(1)
    clusters = max(20, int(rows**0.5) // 2)
    center_CD = random.standard_normal((clusters, _COLUMNS), np.float32)
    center_CD *= np.arange(1, _COLUMNS + 1, dtype=np.float32) ** -0.25  # columns differ in variance
    share_C = 1 / np.arange(1, clusters + 1) ** 0.8
    member_N = random.choice(clusters, rows, p=share_C / share_C.sum())
    vectors_ND = center_CD[member_N] + 0.6 * random.standard_normal((rows, _COLUMNS), np.float32)
    vectors_ND *= random.lognormal(0, 0.4, (rows, 1)).astype(np.float32)
    first_Q, second_Q = (random.choice(clusters, _QUERIES, p=share_C / share_C.sum()) for _ in range(2))
    noise_QD = 0.6 * random.standard_normal((_QUERIES, _COLUMNS), np.float32)
    return vectors_ND, 0.7 * center_CD[first_Q] + 0.3 * center_CD[second_Q] + noise_QD


def _compare(metric: str, vectors_ND: FloatArray, query_QD: FloatArray, only: str, target: float) -> None:
    if metric == "cosine":
        vectors_ND, query_QD = unit_rows(vectors_ND), unit_rows(query_QD)
    exact = (faiss.IndexFlatL2 if metric == "euclidean" else faiss.IndexFlatIP)(vectors_ND.shape[1])
    exact.add(vectors_ND)
    start = time.process_time()
    truth_QK = exact.search(query_QD, _DEPTH)[1]
    speed = len(query_QD) / (time.process_time() - start)
    print(f"\n{metric}: {len(vectors_ND):,} x {vectors_ND.shape[1]}, {len(query_QD):,} queries, 1 thread")
    print(f"{'index':<26} {'build s':>8} {'bytes/row':>9} {'effort':>6} {'recall@10':>9} {'@100':>7} {'queries/s':>9}")
    print(f"{'exact':<26} {'':>8} {4 * vectors_ND.shape[1]:>9} {'':>6} {1:>9.4f} {1:>7.4f} {speed:>9,.0f}", flush=True)
    for name, build, base_ND, searched_QD in _cases(metric, vectors_ND, query_QD):
        if not re.search(only, name):
            continue
        start = time.process_time()
        search, size = build(base_ND)
        seconds = time.process_time() - start
        for effort in (2**power for power in range(3, 12)):
            start = time.process_time()
            found_QK = search(searched_QD, _DEPTH, effort)
            speed = len(query_QD) / (time.process_time() - start)
            recall_10, recall = _recall(found_QK, truth_QK, 10), _recall(found_QK, truth_QK, _DEPTH)
            if recall >= target:
                break
        print(
            f"{name:<26} {seconds:>8.1f} {size / len(vectors_ND):>9.0f} {effort:>6} {recall_10:>9.4f} {recall:>7.4f} "
            f"{speed:>9,.0f}",
            flush=True,
        )


def _recall(found_QK: IntArray, truth_QK: IntArray, depth: int) -> float:
    pairs = zip(found_QK[:, :depth], truth_QK[:, :depth], strict=True)
    return float(np.mean([np.isin(true_K, found_K).mean() for found_K, true_K in pairs]))


def _cases(metric: str, vectors_ND: FloatArray, query_QD: FloatArray) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield name, builder, vectors and queries of each index."""
    ways = [("", metric == "euclidean", vectors_ND, query_QD)]
    if metric == "dot":
        square_N = np.square(vectors_ND).sum(axis=1)
        base_ND = np.column_stack([vectors_ND, np.sqrt(square_N.max() - square_N)])
        padded_QD = np.column_stack([query_QD, np.zeros(len(query_QD), np.float32)])
        ways = [(" ip", False, vectors_ND, query_QD), (" L2+1", True, base_ND, padded_QD)]
    kinds = [(codes, codes, 2) for codes in get_args(Codes)] + [(f"pq/{columns}", "pq", columns) for columns in (4, 8)]
    for name, codes, columns in kinds:
        options = ListOptions(metric, codes, columns)  # type: ignore[arg-type]
        yield f"crossfade index {name}", partial(_build_crossfade, options=options), vectors_ND, query_QD
    lists = int(4 * len(vectors_ND) ** 0.5)
    for suffix, is_l2, base_ND, searched_QD in ways:
        for name in (f"IVF{lists},Flat", f"IVF{lists},SQ8", "HNSW32,Flat", "HNSW32,SQ8"):

            def build(base_ND: FloatArray, name: str = name, is_l2: bool = is_l2) -> tuple[Search, int]:
                return _build_faiss(base_ND, name, is_l2)

            yield f"faiss {name}{suffix}", build, base_ND, searched_QD
        for dtype in ("f32", "f16", "i8"):

            def build_usearch(base_ND: FloatArray, dtype: str = dtype, is_l2: bool = is_l2) -> tuple[Search, int]:
                return _build_usearch(base_ND, dtype, "l2sq" if is_l2 else "cos" if metric == "cosine" else "ip")

            yield f"usearch 16 {dtype}{suffix}", build_usearch, base_ND, searched_QD


def _build_crossfade(base_ND: FloatArray, options: ListOptions) -> tuple[Search, int]:
    sample_ND = base_ND[
        np.random.default_rng(0).permutation(len(base_ND))[: SAMPLES_PER_LIST * num_lists(len(base_ND))]
    ]
    longest = float(np.linalg.norm(base_ND, axis=1).max())
    lists = VectorLists.train(sample_ND, len(base_ND), options, longest)
    lists.add(np.arange(len(base_ND)), base_ND)
    size = len(base_ND) * bytes_per_row(base_ND.shape[1], options)
    return lambda query_QD, depth, effort: search_lists(lists, base_ND.__getitem__, query_QD, depth, effort)[0], size


def _build_faiss(base_ND: FloatArray, name: str, is_l2: bool) -> tuple[Search, int]:
    metric = faiss.METRIC_L2 if is_l2 else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(base_ND.shape[1], name, metric)
    if name.startswith("HNSW"):
        index.hnsw.efConstruction = 80
    sample_ND = base_ND
    if name.startswith("IVF"):
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid, index.cp.niter = 1, 64, 10
        sample_ND = base_ND[np.random.default_rng(0).permutation(len(base_ND))[: 64 * index.nlist]]
    index.train(sample_ND)
    index.add(base_ND)

    def search(query_QD: FloatArray, depth: int, effort: int) -> IntArray:
        if name.startswith("HNSW"):
            index.hnsw.efSearch = effort
        else:
            index.nprobe = effort
        rows_QK: IntArray = index.search(query_QD, depth)[1]
        return rows_QK

    return search, len(faiss.serialize_index(index))


def _build_usearch(base_ND: FloatArray, dtype: str, metric: str) -> tuple[Search, int]:
    from usearch.index import Index

    index = Index(ndim=base_ND.shape[1], metric=metric, dtype=dtype, connectivity=16, expansion_add=80)
    index.add(np.arange(len(base_ND)), base_ND, threads=1)

    def search(query_QD: FloatArray, depth: int, effort: int) -> IntArray:
        index.expansion_search = effort
        rows_QK: IntArray = index.search(query_QD, depth, threads=1).keys.astype(np.int64)
        return rows_QK

    return search, index.serialized_length


if __name__ == "__main__":
    main()
