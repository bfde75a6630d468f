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

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import FloatArray, IntArray
from kvstore.jit import get_num_threads
from trainer.model.active_rows import ActiveRows
from trainer.model.batches import Batch
from trainer.model.engines.scratch import Scratch
from trainer.model.loss_kernels import shared_pool_pass
from trainer.model.losses import LossSpec
from trainer.model.pool_kernels import fill_squares, gather, sum_item_gradients, sum_query_gradients
from trainer.model.softmax_kernels import pool_softmax_pass
from trainer.model.spec import Score

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
        mates: the examples whose items are in-batch negatives; in the pool, they follow the drawn ones.
        sums: the rows of the pool in the sums of all chunks.
    """

    examples: slice
    mates: slice
    sums: slice


@dataclass(frozen=True)
class _Step:
    """Inputs and results of all chunks.

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
        self._threads = ThreadPoolExecutor(get_num_threads(), thread_name_prefix="engine")
        self._scratch = Scratch()

    def compute(
        self, batch: Batch, weight_B: FloatArray, query_AD: FloatArray, item_AD: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the losses, and the gradients of the active rows' vectors ``query_AD`` and ``item_AD``."""
        pools = list(batch.partition_slices) if self._in_batch else [slice(0, len(batch))]
        chunks = self._chunks(batch, pools)
        step = self._step(batch, weight_B, query_AD, item_AD, chunks[-1][-1].sums.stop)
        flat = [chunk for of_pool in chunks for chunk in of_pool]
        for _ in self._threads.map(lambda chunk: self._compute_chunk(step, chunk), flat):
            pass
        query_gradient_AD = sum_query_gradients(
            *(step.product_BD, step.factor_B, step.slope_B, step.total_B, query_AD, item_AD),
            *(batch.query.order_N, batch.query.starts_A1, batch.item_index_B, *self._scales),
        )
        places = (
            np.array([chunk.sums.start for chunk in flat]),
            np.array([0, *accumulate(map(len, chunks))]),
            np.array([pool.start for pool in pools]),
        )
        item_gradient_AD = sum_item_gradients(
            *(step.sums_RD, step.slope_R, places, len(batch.negative_index_N), self._in_batch, step.slope_B),
            *(query_AD, item_AD, batch.item.order_N, batch.item.starts_A1, batch.query.index_N, *self._scales),
        )
        return step.loss_B, query_gradient_AD, item_gradient_AD

    def _chunks(self, batch: Batch, pools: list[slice]) -> list[list[_Chunk]]:
        """Return the chunks of each pool."""
        chunks: list[list[_Chunk]] = []
        row = 0
        for examples in pools:
            mates = examples if self._in_batch else slice(0, 0)
            negatives = len(batch.negative_index_N) + mates.stop - mates.start
            chunks.append([])
            count = examples.stop - examples.start
            size = min(negatives // _CHUNKS_OF_POOL, -(-count // _MIN_CHUNKS))
            for part in _split(examples, max(_CHUNK_EXAMPLES, size)):
                chunks[-1].append(_Chunk(part, mates, slice(row, row + negatives)))
                row += negatives
        return chunks

    def _step(self, batch: Batch, weight_B: FloatArray, query_AD: FloatArray, item_AD: FloatArray, rows: int) -> _Step:
        examples, dim = len(batch), query_AD.shape[1]
        has_norms = bool(self._scales[1])
        array = self._scratch.array
        step = _Step(
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
        step.factor_B[:] = 1.0
        return step

    def _compute_chunk(self, step: _Step, chunk: _Chunk) -> None:
        batch, scratch = step.batch, self._scratch
        drawn = len(batch.negative_index_N)
        rows_CD = scratch.array("rows", chunk.sums.stop - chunk.sums.start, step.item_AD.shape[1])
        gather(step.item_AD, batch.negative_index_N, rows_CD)
        gather(step.item_AD, batch.item_index_B[chunk.mates], rows_CD[drawn:])
        square_C = scratch.array("squares", len(rows_CD))
        fill_squares(rows_CD, np.float32(1.0), square_C)
        log_q_N = batch.log_q_N
        log_q_C = np.concatenate([log_q_N[len(batch) :], log_q_N[: len(batch)][chunk.mates]])
        sums_CD, slope_C = step.sums_RD[chunk.sums], step.slope_R[chunk.sums]
        for part in _split(chunk.examples, max(_MIN_TILE, _TILE_SCORES // max(len(rows_CD), 1))):
            query_TD = scratch.array("queries", part.stop - part.start, step.query_AD.shape[1])
            gather(step.query_AD, batch.query.index_N[part], query_TD)
            slope_TC = np.matmul(query_TD, rows_CD.T, out=scratch.array("scores", len(query_TD), len(rows_CD)))
            loss_pass = self._softmax_pass if self._softmax else self._other_pass
            loss_pass(step, chunk, part, slope_TC, query_TD, square_C, log_q_C)
            np.matmul(slope_TC, rows_CD, out=step.product_BD[part])
            is_first = part.start == chunk.examples.start
            scratch.sum_product(sums_CD, slope_TC, query_TD, first=is_first)
            if len(slope_C):
                tile_C = step.factor_B[part] @ slope_TC
                slope_C[:] = tile_C if is_first else slope_C + tile_C
            if len(step.total_B):
                step.total_B[part] = slope_TC.sum(axis=1) + step.slope_B[part]

    def _softmax_pass(
        self,
        step: _Step,
        chunk: _Chunk,
        part: slice,
        slope_TC: FloatArray,
        query_TD: FloatArray,
        square_C: FloatArray,
        log_q_C: FloatArray,
    ) -> None:
        batch, norm_scale = step.batch, self._scales[1]
        offset_C = self._scratch.array("offsets", len(square_C))
        np.multiply(square_C, norm_scale, out=offset_C)
        if len(log_q_C):
            offset_C += log_q_C
        pool = len(batch), len(batch.negative_index_N), chunk.mates.start, chunk.mates.stop
        pool_softmax_pass(
            *(slope_TC, query_TD, part.start, step.item_AD, _uses(batch.item), _uses(batch.query), step.weight_B),
            *(pool, offset_C, *self._scales, step.loss_B, step.slope_B, step.factor_B),
        )

    def _other_pass(
        self,
        step: _Step,
        chunk: _Chunk,
        part: slice,
        slope_TC: FloatArray,
        query_TD: FloatArray,
        square_C: FloatArray,
        log_q_C: FloatArray,
    ) -> None:
        batch, negatives = step.batch, len(square_C)
        item_TD = self._scratch.array("items", *query_TD.shape)
        gather(step.item_AD, batch.item_index_B[part], item_TD)
        row_C = np.concatenate([batch.negative_index_N, batch.item_index_B[chunk.mates]])
        query_C = batch.query.index_N[:0]
        if self._in_batch:
            query_C = np.concatenate([np.full(len(batch.negative_index_N), -1), batch.query.index_N[chunk.mates]])
        num_hard = None if self._num_hard is None else min(self._num_hard, negatives)
        step.loss_B[part], step.slope_B[part] = shared_pool_pass(
            *(slope_TC, query_TD, item_TD, _narrow(batch.item_index_B[part]), _narrow(batch.query.index_N[part])),
            *(step.weight_B[part], _narrow(row_C), _narrow(query_C), square_C, log_q_C),
            *(self._loss.code, self._loss.params(self._items, negatives), num_hard, *self._scales),
        )


def _narrow(index_N: IntArray) -> NDArray[np.int32]:
    """Convert active rows to int32, of which the kernels compare twice as many at a time."""
    return index_N.astype(np.int32)


def _split(part: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]


def _uses(active: ActiveRows) -> tuple[IntArray, IntArray, IntArray]:
    return active.index_N, active.order_N, active.starts_A1
