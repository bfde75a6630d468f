"""Gradients of examples that share pools of negatives: three matrix products for each tile of scores, in threads.

    pools = PoolGradients(loss, score, num_hard=None, in_batch=True, items=40_000)
    loss_B, query_gradient_AD, item_gradient_AD = pools.compute(batch, weight_B, query_AD, item_AD)

A chunk of examples is the work of one thread: it computes tiles of scores with single-threaded BLAS and sums the
gradients of the pool. Gradients of the chunks are then added in their order. Neither chunks nor tiles depend on the
number of threads, so results do not either.

Shapes: A active rows, B examples, C negatives of a pool, T examples of a tile, R rows of the sums of all chunks, D
columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.scratch import Scratch
from crossfade.trainer.model.engines.sharing import WorkSharing
from crossfade.trainer.model.loss_kernels import shared_pool_pass
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.pool_kernels import fill_squares, gather, sum_item_gradients, sum_query_gradients
from crossfade.trainer.model.softmax_kernels import pool_softmax_pass
from crossfade.trainer.model.spec import Score

_TILE_SCORES = 1 << 19
"""Scores of a tile, 2 MiB, which stay in the cache."""
_MIN_TILE = 128
"""Examples of a tile at least: products with fewer rows are slow."""
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
class _Tile:
    """Examples of a chunk whose scores are in the cache together.

    Attributes:
        examples: the examples.
        query_TD: vectors of their queries, which a softmax pass multiplies by factors.
        slope_TC: products with the pool's vectors, which a pass turns into derivatives by score, over factors.
    """

    examples: slice
    query_TD: FloatArray
    slope_TC: FloatArray


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

    def __init__(self, loss: LossSpec, score: Score, *, num_hard: int | None, in_batch: bool, items: int) -> None:
        """Prepare for a table of ``items``.

        Args:
            loss: the loss.
            score: the score.
            num_hard: how many negatives count; None: all.
            in_batch: whether the items of a partition's examples are one another's negatives.
            items: rows of the item table.
        """
        self._loss = loss
        self._num_hard = num_hard
        self._in_batch = in_batch
        self._items = items
        self._softmax = loss.kind == "softmax" and num_hard is None
        self._scales = np.float32(score.dot_scale), np.float32(score.norm_scale)
        self._sharing = WorkSharing()
        self._scratch = Scratch()

    def compute(
        self, batch: Batch, weight_B: FloatArray, query_AD: FloatArray, item_AD: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the losses, and the gradients of the active rows' vectors ``query_AD`` and ``item_AD``."""
        pools = list(batch.partition_slices) if self._in_batch else [slice(0, len(batch))]
        chunks = self._chunks(batch, pools)
        arrays = self._arrays(batch, weight_B, query_AD, item_AD, chunks[-1][-1].sums.stop)
        flat = [chunk for of_pool in chunks for chunk in of_pool]
        self._sharing.run(lambda chunk: self._compute_chunk(arrays, chunk), flat)
        query_gradient_AD = sum_query_gradients(
            *(arrays.product_BD, arrays.factor_B, arrays.slope_B, arrays.total_B, query_AD, item_AD),
            *(batch.query.order_N, batch.query.starts_A1, batch.item_index_B, *self._scales),
        )
        places = (
            np.array([chunk.sums.start for chunk in flat]),
            np.array([0, *accumulate(map(len, chunks))]),
            np.array([pool.start for pool in pools]),
        )
        item_gradient_AD = sum_item_gradients(
            *(arrays.sums_RD, arrays.slope_R, places, len(batch.negative_index_N), self._in_batch, arrays.slope_B),
            *(query_AD, item_AD, batch.item.order_N, batch.item.starts_A1, batch.query.index_N, *self._scales),
        )
        return arrays.loss_B, query_gradient_AD, item_gradient_AD

    def _chunks(self, batch: Batch, pools: list[slice]) -> list[list[_Chunk]]:
        """Return the chunks of each pool."""
        chunks: list[list[_Chunk]] = []
        row = 0
        for examples in pools:
            in_batch = examples if self._in_batch else slice(0, 0)
            negatives = len(batch.negative_index_N) + in_batch.stop - in_batch.start
            chunks.append([])
            count = examples.stop - examples.start
            size = min(negatives // _CHUNKS_OF_POOL, -(-count // _MIN_CHUNKS))
            for part in _split(examples, max(_CHUNK_EXAMPLES, size)):
                chunks[-1].append(_Chunk(part, in_batch, slice(row, row + negatives)))
                row += negatives
        return chunks

    def _arrays(
        self, batch: Batch, weight_B: FloatArray, query_AD: FloatArray, item_AD: FloatArray, rows: int
    ) -> _BatchArrays:
        examples, dim = len(batch), query_AD.shape[1]
        has_norms = bool(self._scales[1])
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
        for part in _split(chunk.examples, max(_MIN_TILE, _TILE_SCORES // max(len(pool.rows_CD), 1))):
            query_TD = scratch.array("queries", part.stop - part.start, arrays.query_AD.shape[1])
            gather(arrays.query_AD, arrays.batch.query.index_N[part], query_TD)
            slope_TC = scratch.array("scores", len(query_TD), len(pool.rows_CD))
            np.matmul(query_TD, pool.rows_CD.T, out=slope_TC)
            loss_pass = self._softmax_pass if self._softmax else self._general_pass
            loss_pass(arrays, chunk, pool, _Tile(part, query_TD, slope_TC))
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

    def _softmax_pass(self, arrays: _BatchArrays, chunk: _Chunk, pool: _Pool, tile: _Tile) -> None:
        """Compute a tile by the kernel for softmax over the complete pool."""
        batch, in_batch, norm_scale = arrays.batch, chunk.in_batch_examples, self._scales[1]
        offset_C = self._scratch.array("offsets", len(pool.square_C))
        np.multiply(pool.square_C, norm_scale, out=offset_C)
        if len(pool.log_q_C):
            offset_C += pool.log_q_C
        places = len(batch), len(batch.negative_index_N), in_batch.start, in_batch.stop
        pool_softmax_pass(
            *(tile.slope_TC, tile.query_TD, tile.examples.start, arrays.item_AD, _uses(batch.item)),
            *(_uses(batch.query_groups), arrays.weight_B, places, offset_C, *self._scales),
            *(arrays.loss_B, arrays.slope_B, arrays.factor_B),
        )

    def _general_pass(self, arrays: _BatchArrays, chunk: _Chunk, pool: _Pool, tile: _Tile) -> None:
        """Compute a tile by the kernel for any loss, which may count the hardest negatives only."""
        batch, part, in_batch, negatives = arrays.batch, tile.examples, chunk.in_batch_examples, len(pool.square_C)
        item_TD = self._scratch.array("items", *tile.query_TD.shape)
        gather(arrays.item_AD, batch.item_index_B[part], item_TD)
        row_C = np.concatenate([batch.negative_index_N, batch.item_index_B[in_batch]])
        query_C = batch.query.index_N[:0]
        if self._in_batch:
            query_C = np.concatenate([np.full(len(batch.negative_index_N), -1), batch.query_groups.index_N[in_batch]])
        num_hard = None if self._num_hard is None else min(self._num_hard, negatives)
        rows = _narrow(batch.item_index_B[part]), _narrow(batch.query_groups.index_N[part])
        arrays.loss_B[part], arrays.slope_B[part] = shared_pool_pass(
            *(tile.slope_TC, tile.query_TD, item_TD, *rows, arrays.weight_B[part], _narrow(row_C), _narrow(query_C)),
            *(pool.square_C, pool.log_q_C, self._loss.code, self._loss.params(self._items, negatives), num_hard),
            *self._scales,
        )


def _narrow(index_N: IntArray) -> NDArray[np.int32]:
    """Convert active rows to int32, of which the kernels compare twice as many at a time."""
    return index_N.astype(np.int32)


def _split(part: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]


def _uses(active: ActiveRows) -> tuple[IntArray, IntArray, IntArray]:
    return active.index_N, active.order_N, active.starts_A1
