"""Softmax gradients where all items are negatives: each query is scored once for all its examples.

    loss_N, query_gradient_AD, item_gradient_AD = AllItemsGradients(score).compute(batch, weight_B, query_AD, item_AD)

A chunk of queries is the work of one thread, as in ``pools.py``.

Shapes: A active rows, B or N examples, C items, K chunks, T queries of a tile, D columns.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from crossfade.kvstore.arrays import FloatArray
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.scratch import Scratch
from crossfade.trainer.model.pool_kernels import fill_squares, scale_rows, sum_chunks
from crossfade.trainer.model.softmax_kernels import all_items_softmax_pass
from crossfade.trainer.model.spec import Score

_TILE_SCORES = 1 << 19
"""Scores of a tile, 2 MiB, which stay in the cache."""
_MIN_TILE = 128
"""Queries of a tile at least: products with fewer rows are slow."""
_CHUNK_QUERIES = 256
_MIN_CHUNK_QUERIES = 32
"""Queries of a chunk at least, where a step has so few that they would all be of one chunk, the work of one thread."""
_SUMS_BYTES = 64 << 20
"""Memory of the sums of all chunks, each of which is as large as the table of items."""
_MIN_CHUNKS, _MAX_CHUNKS = 8, 64


class AllItemsGradients:
    """Computes losses and gradients of batches whose examples have all items as negatives."""

    def __init__(self, score: Score) -> None:
        """Prepare for ``score``."""
        self._scales = np.float32(score.dot_scale), np.float32(score.norm_scale)
        self._threads = ThreadPoolExecutor(get_num_threads(), thread_name_prefix="engine")
        self._scratch = Scratch()

    def compute(
        self, batch: Batch, weight_B: FloatArray, query_AD: FloatArray, item_AD: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the losses, in the order of ``batch.query.order_N``, and the gradients of both sides' vectors."""
        order_B = batch.query.order_N
        examples = batch.item_index_B[order_B], weight_B[order_B], batch.query.starts_A1
        dot_scale, norm_scale = self._scales
        offset_C = self._scratch.array("offsets", len(item_AD))
        fill_squares(item_AD, norm_scale, offset_C)
        max_chunks = min(max(_SUMS_BYTES // item_AD.nbytes, _MIN_CHUNKS), _MAX_CHUNKS)
        chunk_size = max(_CHUNK_QUERIES, -(-len(query_AD) // max_chunks))
        if len(query_AD) <= chunk_size:
            chunk_size = max(_MIN_CHUNK_QUERIES, -(-len(query_AD) // _MIN_CHUNKS))
        chunks = [slice(start, start + chunk_size) for start in range(0, len(query_AD), chunk_size)]
        loss_N, factor_A = np.empty(len(order_B), np.float32), self._scratch.array("factors", len(query_AD))
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
                all_items_softmax_pass(slope_TC, query_TD, start, offset_C, *examples, dot_scale, loss_N, factor_A)
                np.matmul(slope_TC, item_AD, out=query_gradient_AD[part])
                is_first = start == chunks[chunk].start
                self._scratch.sum_product(sums_KCD[chunk], slope_TC, query_TD, first=is_first)
                if norm_scale:
                    tile_C = factor_A[part] @ slope_TC
                    slope_KC[chunk] = tile_C if is_first else slope_KC[chunk] + tile_C

        for _ in self._threads.map(compute_chunk, range(len(chunks))):
            pass
        # The slopes of a query add up to 0, so its squared norm, a term of all its scores, gets no gradient.
        scale_rows(query_gradient_AD, factor_A, dot_scale)
        return loss_N, query_gradient_AD, sum_chunks(sums_KCD, slope_KC, item_AD, dot_scale, norm_scale)
