"""Share the iterations of a loop among threads of a parallel kernel, chunk by chunk.

    size = chunk_size(count, get_num_threads())
    for thread in prange(get_num_threads()):
        begin = claim_chunk(next_1, size)
        while begin < count:
            ...                                         # iterations begin to begin + size
            begin = claim_chunk(next_1, size)

Numba divides a ``prange`` evenly beforehand, so that all threads wait for one that another process, or a background
thread, slows down.
"""

from __future__ import annotations

from typing import Any

from numba import types

from crossfade.kvstore.jit import inner_kernel, intrinsic

MIN_PARALLEL_VALUES = 1 << 18
"""Values from which on a kernel that reads and writes rows once shares them among threads.

Fewer take one thread a few tenths of a millisecond, a millisecond if they are scattered over memory. To wake the others
takes as long where cores are busy, and they poll for more work afterwards.
"""
_LARGEST_CHUNK = 256
"""Long enough that what a thread prefetches ahead in its own chunk covers almost all of it."""
_CHUNKS_PER_THREAD = 8


@inner_kernel()
def chunk_size(count, threads):  # type: ignore[no-untyped-def]
    """Return the iterations of a chunk, of ``count`` in all."""
    return max(1, min(_LARGEST_CHUNK, count // (threads * _CHUNKS_PER_THREAD)))


@intrinsic
def claim_chunk(_context: Any, next_1: Any, size: Any) -> Any:
    """Add ``size`` to ``next_1[0]``, int64, as one atomic operation, and return what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        step = context.cast(builder, arguments[1], signature.args[1], types.int64)
        return builder.atomic_rmw("add", array.data, step, "seq_cst")

    return types.int64(next_1, size), generate
