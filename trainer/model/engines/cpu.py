"""Closed-form gradients on the CPU: BLAS for pools of negatives, two passes for negatives per example.

    engine = CpuEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"))
    loss, gradients = engine.gradients(batch, vectors)

Cosine scores are dot products of unit rows: vectors are normalized once, row by row, so what follows need not
distinguish scores. Gradients pass back through the normalization as sums: of a leaf (``kvstore/tree_sums.py``) in the
first two ways, whose results do not depend on how workers divide partitions, of all uses in the third:

- ``PerExampleGradients``: examples that each have negatives of their own, and steps that update rows in place.
- ``PoolGradients``: examples that share pools of negatives, three matrix products for each tile of scores.
- ``AllItemsGradients``: softmax where all items are negatives: each query is scored once for all its examples.

In the last two, a chunk of examples or queries is the work of one thread: it computes tiles of scores with
single-threaded BLAS and sums the gradients of the pool. Gradients of the chunks, in the second way those of a
partition, are then added in their order. Neither chunks nor tiles depend on the number of threads, so results do not
either.

Shapes: A active rows, B or N examples, N also uses of items, C negatives of a pool or all items, T examples or queries
of a tile, K chunks, R rows of the sums of all chunks, or of a table, D columns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.jit import get_num_threads
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.memory import empty_rows
from crossfade.kvstore.optimizers import check_convergence
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.device_engine import split
from crossfade.trainer.model.kernel_arguments import ScoreScales, Vectors
from crossfade.trainer.model.loss_kernels import PoolExamples, PoolNegatives, shared_pool_pass
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.normalization_kernels import normalize, through_normalize
from crossfade.trainer.model.per_example_kernels import (
    Examples,
    ItemUses,
    QueryTables,
    item_gradients,
    query_gradients,
    update_items,
    update_queries,
)
from crossfade.trainer.model.pool_kernels import (
    OwnTerms,
    PoolProducts,
    PoolSums,
    add_to,
    fill_squares,
    gather,
    scale_rows,
    sum_chunks,
    sum_item_gradients,
    sum_query_gradients,
)
from crossfade.trainer.model.softmax_kernels import (
    ExampleResults,
    Pool,
    Tile,
    all_items_softmax_pass,
    pool_softmax_pass,
)
from crossfade.trainer.model.spec import ModelSpec, Score

_NO_NORMS = np.empty(0, np.float32)


class CpuEngine:
    """Computes gradients in closed form with numba and BLAS."""

    name = "cpu"
    device = "cpu"

    def __init__(self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig) -> None:
        """Prepare for ``model``, ``loss`` and ``negatives``, whose kind is resolved."""
        self._model = model
        self._all_softmax = negatives.kind == "all" and loss.kind == "softmax"
        self._gradients: PerExampleGradients | PoolGradients
        if negatives.kind == "per_example":
            self._gradients = PerExampleGradients(loss, model)
        else:
            in_batch = negatives.kind in IN_BATCH_KINDS
            self._gradients = PoolGradients(loss, model, in_batch=in_batch)
        self._all_items = AllItemsGradients(loss, model.score)

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss, and the gradients of ``vectors`` (see ``Engine``)."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(vectors[name]) for name in names}
        sides = [Vectors(np.ascontiguousarray(vectors[name]), _NO_NORMS) for name in names]
        if self._model.score.normalized:
            sides = [Vectors(*normalize(side.rows_AD)) for side in sides]
        method = self._all_items if self._all_softmax and batch.shares_query_scores else self._gradients
        loss_B, *gradients = method.compute(batch, batch.normalized_weights(), *sides)
        return float(loss_B.sum(dtype=np.float64)), dict(zip(names, gradients, strict=True))

    def gpu_memory(self) -> None:
        """Return None: the engine computes on the CPU."""


class PerExampleGradients:
    """Losses and gradients of a loss and a score, with numba kernels."""

    def __init__(self, loss: LossSpec, model: ModelSpec) -> None:
        """Compute ``loss`` of the scores of ``model``; where they are of unit vectors, vectors are unit vectors."""
        self._objective = loss.objective(model)
        self._scales = self._objective.scales
        self._old_AD = np.empty((0, 0), np.float32)

    def compute(
        self, batch: Batch, weight_B: FloatArray, query: Vectors, item: Vectors
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the losses of the examples, and the gradients of the active queries and items.

        Args:
            batch: the examples and negatives; there is at least one.
            weight_B: weights of the examples, float32.
            query: vectors of the active queries, float32 and contiguous.
            item: vectors of the active items.
        """
        count = _negatives(batch)
        examples = Examples(batch.query.starts_A1, batch.item.index_N, weight_B, batch.log_q_N, count, *batch.leaves)
        by_query_AD, loss_B, slope_N = query_gradients(query, item, examples, self._objective)
        return loss_B, by_query_AD, item_gradients(item, _item_uses(batch, query.rows_AD, slope_N), self._scales)

    def update(self, batch: Batch, weight_B: FloatArray, store: LocalStore, model: ModelSpec) -> FloatArray:
        """Take a step on the tables of ``model`` in ``store``, and return the losses of the examples.

        Raises:
            StoreError: a row lies outside its table.
            DivergedError: a gradient is not finite.
        """
        query, item, count = batch.query, batch.item, _negatives(batch)
        query_name, item_name = model.query.name, model.item.name
        store.check({query_name: query.rows_A, item_name: item.rows_A})
        old_AD = self._old_rows(len(query.rows_A), model.query.dim)
        examples = Examples(query.starts_A1, item.uses_N, weight_B, batch.log_q_N, count, *batch.leaves)
        with store.updating(query_name, query.rows_A) as (query_RD, optimizer):
            tables = QueryTables(query_RD, query.rows_A, store.weights(item_name), old_AD)
            loss_B, slope_N, divergent_rows = update_queries(tables, examples, self._objective, optimizer)
            check_convergence(divergent_rows, query_RD, query.rows_A)
        uses = _item_uses(batch, old_AD, slope_N)
        with store.updating(item_name, item.rows_A) as (item_RD, optimizer):
            divergent_rows = update_items(item_RD, item.rows_A, uses, self._scales, optimizer)
            check_convergence(divergent_rows, item_RD, item.rows_A)
        result: FloatArray = loss_B
        return result

    def _old_rows(self, rows: int, dim: int) -> FloatArray:
        """Return memory for rows of queries; it is reused, since fresh pages take longer than copies."""
        if len(self._old_AD) < rows:
            self._old_AD = empty_rows(rows + rows // 8, dim)
        return self._old_AD[:rows]


def _negatives(batch: Batch) -> int:
    """Return the number of negatives of an example."""
    assert batch.is_ordered
    return len(batch.negative_index_N) // len(batch)


def _item_uses(batch: Batch, query_AD: FloatArray, slope_N: FloatArray) -> ItemUses:
    item, negatives = batch.item, _negatives(batch)
    return ItemUses(query_AD, batch.query.index_N, item.order_N, item.starts_A1, slope_N, negatives, *batch.leaves)


_TILE_SCORES = 1 << 19
"""Scores of a tile, 2 MiB, which stay in the cache."""
_MIN_TILE = 128
"""Examples or queries of a tile at least: products with fewer rows are slow."""
_CHUNK_EXAMPLES = 512
_CHUNKS_OF_POOL = 16
"""Chunks of a pool that has as many negatives as examples, at most; each has a sum as large as the pool."""
_MIN_CHUNKS = 4
"""Chunks of a pool with many more negatives than examples, so that several threads have work."""


@dataclass(frozen=True)
class _Chunk:
    """Examples that share a pool of negatives.

    Attributes:
        examples: the examples.
        in_batch_examples: the examples whose items are in-batch negatives; in the pool, they follow the drawn ones.
        sums: the rows of the pool in the sums of all chunks.
    """

    examples: slice
    in_batch_examples: slice
    sums: slice


@dataclass(frozen=True)
class _Pool:
    """The negatives of a chunk: drawn ones, then in-batch ones.

    Attributes:
        rows_CD: their vectors.
        square_C: squared norms of these.
        log_q_C: subtracted from their scores; empty: nothing.
    """

    rows_CD: FloatArray
    square_C: FloatArray
    log_q_C: FloatArray


@dataclass(frozen=True)
class _BatchArrays:
    """Inputs and results of all chunks of a batch.

    Attributes:
        batch: the examples and negatives.
        weight_B: the examples' weights.
        query_AD: vectors of the active queries.
        item_AD: vectors of the active items.
        loss_B: losses.
        slope_B: derivatives by the score of the example's own item.
        factor_B: factors of the tiles' slopes.
        total_B: sums of an example's derivatives by all its scores; empty: 0.
        product_BD: sums of the pool's vectors, weighted by the tiles' slopes.
        sums_RD: sums of queries' vectors, weighted by derivatives.
        slope_R: sums of these derivatives; empty: not used.
    """

    batch: Batch
    weight_B: FloatArray
    query_AD: FloatArray
    item_AD: FloatArray
    loss_B: FloatArray
    slope_B: FloatArray
    factor_B: FloatArray
    total_B: FloatArray
    product_BD: FloatArray
    sums_RD: FloatArray
    slope_R: FloatArray


class PoolGradients:
    """Computes losses and gradients of batches with pools of negatives."""

    def __init__(self, loss: LossSpec, model: ModelSpec, *, in_batch: bool) -> None:
        """Compute ``loss`` of the scores of ``model``.

        Args:
            loss: the loss.
            model: the model.
            in_batch: whether the items of a partition's examples are one another's negatives.
        """
        self._loss = loss
        self._in_batch = in_batch
        self._softmax = loss.kind == "softmax"
        self._objective = loss.objective(model)
        self._scales = self._objective.scales
        self._sharing = WorkSharing()
        self._scratch = Scratch()

    def compute(
        self, batch: Batch, weight_B: FloatArray, query: Vectors, item: Vectors
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the losses, and the gradients of the active rows."""
        query_AD, item_AD, (leaf_B, leaves) = query.rows_AD, item.rows_AD, batch.leaves
        chunks = self._chunks(batch)
        arrays = self._arrays(batch, weight_B, query_AD, item_AD, chunks[-1][-1].sums.stop)
        flat = [chunk for of_pool in chunks for chunk in of_pool]
        self._sharing.run(lambda chunk: self._compute_chunk(arrays, chunk), flat)
        products = PoolProducts(arrays.product_BD, arrays.factor_B, arrays.total_B)
        own = OwnTerms(arrays.slope_B, batch.item_index_B, item_AD)
        query_gradient_AD = sum_query_gradients((own, products), query, batch.query.uses, self._scales, batch.leaves)
        starts = [part.start for part in batch.partition_slices]
        sums = PoolSums(
            arrays.sums_RD,
            arrays.slope_R,
            row_K=np.array([chunk.sums.start for chunk in flat]),
            chunk_P1=np.array([0, *accumulate(map(len, chunks))]),
            example_P1=np.array([*starts, len(batch)]),
            leaf_P=leaf_B[starts].astype(np.int64),
            drawn=len(batch.negative_index_N),
            in_batch=self._in_batch,
        )
        own = OwnTerms(arrays.slope_B, batch.query.index_N, query_AD)
        item_gradient_AD = sum_item_gradients((own, sums), item, batch.item.uses, self._scales, leaves)
        return arrays.loss_B, query_gradient_AD, item_gradient_AD

    def _chunks(self, batch: Batch) -> list[list[_Chunk]]:
        """Return the chunks of each partition, which depend on no other one, nor on how many the worker has."""
        chunks: list[list[_Chunk]] = []
        row = 0
        for examples in batch.partition_slices:
            in_batch = examples if self._in_batch else slice(0, 0)
            negatives = len(batch.negative_index_N) + in_batch.stop - in_batch.start
            chunks.append([])
            count = examples.stop - examples.start if self._in_batch else batch.global_size
            size = min(negatives // _CHUNKS_OF_POOL, -(-count // _MIN_CHUNKS))
            for part in split(examples, max(_CHUNK_EXAMPLES, size)):
                chunks[-1].append(_Chunk(part, in_batch, slice(row, row + negatives)))
                row += negatives
        return chunks

    def _arrays(
        self, batch: Batch, weight_B: FloatArray, query_AD: FloatArray, item_AD: FloatArray, rows: int
    ) -> _BatchArrays:
        examples, dim = len(batch), query_AD.shape[1]
        has_norms = bool(self._scales.norm)
        array = self._scratch.array
        arrays = _BatchArrays(
            *(batch, weight_B, query_AD, item_AD),
            loss_B=np.empty(examples, np.float32),
            slope_B=array("slope", examples),
            factor_B=array("factor", examples),
            # The derivatives of a softmax add up to 0.
            total_B=array("total", examples if has_norms and not self._softmax else 0),
            product_BD=array("products", examples, dim),
            sums_RD=array("sums", rows, dim),
            slope_R=array("slopes", rows if has_norms else 0),
        )
        arrays.factor_B[:] = 1.0
        return arrays

    def _compute_chunk(self, arrays: _BatchArrays, chunk: _Chunk) -> None:
        pool, scratch = self._pool(arrays, chunk), self._scratch
        sums_CD, slope_C = arrays.sums_RD[chunk.sums], arrays.slope_R[chunk.sums]
        for part in split(chunk.examples, max(_MIN_TILE, _TILE_SCORES // max(len(pool.rows_CD), 1))):
            query_TD = scratch.array("queries", part.stop - part.start, arrays.query_AD.shape[1])
            gather(arrays.query_AD, arrays.batch.query.index_N[part], query_TD)
            slope_TC = scratch.array("scores", len(query_TD), len(pool.rows_CD))
            np.matmul(query_TD, pool.rows_CD.T, out=slope_TC)
            loss_pass = self._softmax_pass if self._softmax else self._general_pass
            loss_pass(arrays, chunk, pool, Tile(part.start, query_TD, slope_TC))
            np.matmul(slope_TC, pool.rows_CD, out=arrays.product_BD[part])
            is_first = part.start == chunk.examples.start
            scratch.sum_product(sums_CD, slope_TC, query_TD, first=is_first)
            if len(slope_C):
                tile_C = arrays.factor_B[part] @ slope_TC
                slope_C[:] = tile_C if is_first else slope_C + tile_C
            if len(arrays.total_B):
                arrays.total_B[part] = slope_TC.sum(axis=1) + arrays.slope_B[part]

    def _pool(self, arrays: _BatchArrays, chunk: _Chunk) -> _Pool:
        """Gather the negatives of a chunk in memory that the thread's next chunk uses again."""
        batch, in_batch = arrays.batch, chunk.in_batch_examples
        drawn, log_q_N = len(batch.negative_index_N), batch.log_q_N
        rows_CD = self._scratch.array("rows", chunk.sums.stop - chunk.sums.start, arrays.item_AD.shape[1])
        gather(arrays.item_AD, batch.negative_index_N, rows_CD)
        gather(arrays.item_AD, batch.item_index_B[in_batch], rows_CD[drawn:])
        square_C = self._scratch.array("squares", len(rows_CD))
        fill_squares(rows_CD, np.float32(1.0), square_C)
        return _Pool(rows_CD, square_C, np.concatenate([log_q_N[len(batch) :], log_q_N[: len(batch)][in_batch]]))

    def _softmax_pass(self, arrays: _BatchArrays, chunk: _Chunk, pool: _Pool, tile: Tile) -> None:
        """Compute a tile by the kernel for softmax."""
        batch, in_batch = arrays.batch, chunk.in_batch_examples
        offset_C = self._scratch.array("offsets", len(pool.square_C))
        np.multiply(pool.square_C, self._scales.norm, out=offset_C)
        if len(pool.log_q_C):
            offset_C += pool.log_q_C
        ends = len(batch), len(batch.negative_index_N), in_batch.start, in_batch.stop
        negatives = Pool(*ends, offset_C, self._loss.top_k_params())
        uses = batch.item.uses, batch.query_groups.uses
        results = ExampleResults(arrays.loss_B, arrays.slope_B, arrays.factor_B)
        pool_softmax_pass(tile, arrays.item_AD, *uses, arrays.weight_B, negatives, self._scales, results)

    def _general_pass(self, arrays: _BatchArrays, chunk: _Chunk, pool: _Pool, tile: Tile) -> None:
        """Compute a tile by the kernel for the other losses."""
        batch, in_batch = arrays.batch, chunk.in_batch_examples
        part = slice(tile.first, tile.first + len(tile.query_TD))
        item_TD = self._scratch.array("items", *tile.query_TD.shape)
        gather(arrays.item_AD, batch.item_index_B[part], item_TD)
        row_C = np.concatenate([batch.negative_index_N, batch.item_index_B[in_batch]])
        query_C = batch.query.index_N[:0]
        if self._in_batch:
            query_C = np.concatenate([np.full(len(batch.negative_index_N), -1), batch.query_groups.index_N[in_batch]])
        rows = _narrow(batch.query_groups.index_N[part]), _narrow(batch.item_index_B[part])
        examples = PoolExamples(tile.query_TD, item_TD, *rows, arrays.weight_B[part])
        drawn = PoolNegatives(_narrow(row_C), _narrow(query_C), pool.square_C)
        arrays.loss_B[part], arrays.slope_B[part] = shared_pool_pass(tile.scores_TC, examples, drawn, self._objective)


def _narrow(index_N: IntArray) -> NDArray[np.int32]:
    """Convert active rows to int32, of which the kernels compare twice as many at a time."""
    return index_N.astype(np.int32)


_CHUNK_QUERIES = 256
_MIN_CHUNK_QUERIES = 64
"""Queries of a chunk at least, where a step has too few for chunks of the usual size to be the work of all threads."""
_SUMS_BYTES = 64 << 20
"""Memory of the sums of all chunks of queries, each of which is as large as the table of items."""
_MIN_SUMS, _MAX_SUMS = 8, 64


class AllItemsGradients:
    """Computes losses and gradients of batches whose examples have all items as negatives."""

    def __init__(self, loss: LossSpec, score: Score) -> None:
        """Prepare for ``loss``, a softmax, of ``score``."""
        self._loss = loss
        self._scales = ScoreScales.of(score)
        self._sharing = WorkSharing()
        self._scratch = Scratch()

    def compute(
        self, batch: Batch, weight_B: FloatArray, query: Vectors, item: Vectors
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the losses, in the order of ``batch.query.order_N``, and the gradients of both sides."""
        query_AD, item_AD = query.rows_AD, item.rows_AD
        dot_scale, norm_scale = self._scales
        top_k = self._loss.top_k_params()
        examples = batch.item_index_B, weight_B, batch.query.uses, top_k
        offset_C = self._scratch.array("offsets", len(item_AD))
        fill_squares(item_AD, norm_scale, offset_C)
        size = _chunk_size(len(query_AD), item_AD.nbytes)
        chunks = [slice(start, start + size) for start in range(0, len(query_AD), size)]
        loss_N, factor_A = np.empty(len(batch), np.float32), self._scratch.array("factors", len(query_AD))
        query_gradient_AD = np.empty_like(query_AD)
        sums_KCD = self._scratch.array("sums", len(chunks), *item_AD.shape)
        slope_KC = self._scratch.array("slopes", len(chunks), len(item_AD) if norm_scale else 0)
        tile = max(_MIN_TILE, _TILE_SCORES // len(item_AD))

        def compute_chunk(chunk: int) -> None:
            end = min(chunks[chunk].stop, len(query_AD))
            for start in range(chunks[chunk].start, end, tile):
                part = slice(start, min(start + tile, end))
                query_TD = self._scratch.array("queries", part.stop - start, query_AD.shape[1])
                query_TD[:] = query_AD[part]
                slope_TC = self._scratch.array("scores", len(query_TD), len(item_AD))
                np.matmul(query_TD, item_AD.T, out=slope_TC)
                tile_of_queries = Tile(start, query_TD, slope_TC)
                all_items_softmax_pass(tile_of_queries, (offset_C, dot_scale), *examples, loss_N, factor_A)
                np.matmul(slope_TC, item_AD, out=query_gradient_AD[part])
                # The slopes of a query add up to 0, so its squared norm, a term of all its scores, gets no gradient.
                scale_rows(query_gradient_AD[part], factor_A[part], dot_scale)
                is_first = start == chunks[chunk].start
                self._scratch.sum_product(sums_KCD[chunk], slope_TC, query_TD, first=is_first)
                if norm_scale:
                    tile_C = factor_A[part] @ slope_TC
                    slope_KC[chunk] = tile_C if is_first else slope_KC[chunk] + tile_C

        self._sharing.run(compute_chunk, range(len(chunks)))
        item_gradient_AD = sum_chunks(sums_KCD, slope_KC, item_AD, self._scales)
        for side, gradient_AD in ((query, query_gradient_AD), (item, item_gradient_AD)):
            if len(side.norm_A):
                through_normalize(gradient_AD, *side)
        return loss_N, query_gradient_AD, item_gradient_AD


def _chunk_size(queries: int, sums_bytes: int) -> int:
    """Return the queries of a chunk. Chunks are about equally large, and their number is even, like that of cores."""
    most = min(max(_SUMS_BYTES // sums_bytes, _MIN_SUMS), _MAX_SUMS)
    chunks = min(max(-(-queries // _CHUNK_QUERIES), min(queries // _MIN_CHUNK_QUERIES, _MIN_SUMS)), most)
    return -(-queries // max(chunks - chunks % 2, 1))


_ALIGNMENT = 64
_PRODUCT_ROWS = 2048
"""Rows of a product that are added to a sum at a time, to stay in the cache."""


class Scratch(threading.local):
    """Arrays of float32 that each thread keeps, since fresh pages cost more than scores."""

    def __init__(self) -> None:
        self._memory: dict[str, FloatArray] = {}

    def array(self, name: str, *shape: int) -> FloatArray:
        """Return the calling thread's array ``name``, with any contents; the next such call overwrites it."""
        size = prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            memory = np.empty(size + _ALIGNMENT // 4, np.float32)
            memory = self._memory[name] = memory[-memory.ctypes.data % _ALIGNMENT // 4 :]
        return memory[:size].reshape(shape)

    def sum_product(self, sums_CD: FloatArray, slope_TC: FloatArray, query_TD: FloatArray, *, first: bool) -> None:
        """Add ``slope_TC.T @ query_TD`` to ``sums_CD``; ``first``: nothing has been added before."""
        if first:
            np.matmul(slope_TC.T, query_TD, out=sums_CD)
            return
        for start in range(0, len(sums_CD), _PRODUCT_ROWS):
            part_CD = sums_CD[start : start + _PRODUCT_ROWS]
            product_CD = self.array("product", *part_CD.shape)
            np.matmul(slope_TC[:, start : start + _PRODUCT_ROWS].T, query_TD, out=product_CD)
            add_to(part_CD, product_CD)


Part = TypeVar("Part")


class WorkSharing:
    """Runs parts of a computation in as many threads as kernels have."""

    def __init__(self) -> None:
        """Prepare threads, which start when they are needed."""
        self._helpers = get_num_threads() - 1
        self._threads = ThreadPoolExecutor(max(self._helpers, 1), thread_name_prefix="engine")

    def run(self, work: Callable[[Part], None], parts: Iterable[Part]) -> None:
        """Call ``work`` with each part, in any thread; parts start in their order."""
        left = list(parts)
        shared = iter(left)  # the lock of the interpreter gives each part to one thread

        def take_parts() -> None:
            for part in shared:
                work(part)

        helpers = [self._threads.submit(take_parts) for _ in range(min(self._helpers, len(left) - 1))]
        try:
            take_parts()
        finally:
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
