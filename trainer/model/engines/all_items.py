"""Softmax gradients where all items are negatives: each query is scored once for all its examples.

    loss_N, query_gradient_AD, item_gradient_AD = AllItemsGradients(score).compute(batch, weight_B, query_AD, item_AD)

A chunk of queries is the work of one thread, as in ``pools.py``.

Shapes: A active rows, B or N examples, C items, K chunks, T queries of a tile, D columns.
"""

from __future__ import annotations

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.scratch import Scratch
from crossfade.trainer.model.engines.sharing import WorkSharing
from crossfade.trainer.model.pool_kernels import fill_squares, scale_rows, sum_chunks
from crossfade.trainer.model.softmax_kernels import all_items_softmax_pass
from crossfade.trainer.model.spec import Score

_TILE_SCORES = 1 << 19
"""Scores of a tile, 2 MiB, which stay in the cache."""
_MIN_TILE = 128
"""Queries of a tile at least: products with fewer rows are slow."""
_CHUNK_QUERIES = 256
_MIN_CHUNK_QUERIES = 32
"""Queries of a chunk at least, where a step has too few for chunks of the usual size to be the work of all threads."""
_SUMS_BYTES = 64 << 20
"""Memory of the sums of all chunks, each of which is as large as the table of items."""
_MIN_CHUNKS, _MAX_CHUNKS = 8, 64


class AllItemsGradients:
    """Computes losses and gradients of batches whose examples have all items as negatives."""

    def __init__(self, score: Score) -> None:
        """Prepare for ``score``."""
        self._scales = np.float32(score.dot_scale), np.float32(score.norm_scale)
        self._sharing = WorkSharing()
        self._scratch = Scratch()

    def compute(
        self, batch: Batch, weight_B: FloatArray, query_AD: FloatArray, item_AD: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the losses, in the order of ``batch.query.order_N``, and the gradients of both sides' vectors."""
        examples = batch.item_index_B, weight_B, batch.query.order_N, batch.query.starts_A1
        dot_scale, norm_scale = self._scales
        offset_C = self._scratch.array("offsets", len(item_AD))
        fill_squares(item_AD, norm_scale, offset_C)
        chunk_size = _chunk_size(len(query_AD), item_AD.nbytes)
        chunks = [slice(start, start + chunk_size) for start in range(0, len(query_AD), chunk_size)]
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
                all_items_softmax_pass(slope_TC, query_TD, start, offset_C, *examples, dot_scale, loss_N, factor_A)
                np.matmul(slope_TC, item_AD, out=query_gradient_AD[part])
                # The slopes of a query add up to 0, so its squared norm, a term of all its scores, gets no gradient.
                scale_rows(query_gradient_AD[part], factor_A[part], dot_scale)
                is_first = start == chunks[chunk].start
                self._scratch.sum_product(sums_KCD[chunk], slope_TC, query_TD, first=is_first)
                if norm_scale:
                    tile_C = factor_A[part] @ slope_TC
                    slope_KC[chunk] = tile_C if is_first else slope_KC[chunk] + tile_C

        self._sharing.run(compute_chunk, range(len(chunks)))
        return loss_N, query_gradient_AD, sum_chunks(sums_KCD, slope_KC, item_AD, dot_scale, norm_scale)


def _chunk_size(queries: int, sums_bytes: int) -> int:
    """Return the queries of a chunk. Chunks are about equally large, and their number is even, like that of cores."""
    most = min(max(_SUMS_BYTES // sums_bytes, _MIN_CHUNKS), _MAX_CHUNKS)
    chunks = min(max(-(-queries // _CHUNK_QUERIES), min(queries // _MIN_CHUNK_QUERIES, _MIN_CHUNKS)), most)
    return -(-queries // max(chunks - chunks % 2, 1))
