"""Normalize rows for scores of unit vectors, and pass gradients back through the normalization, compiled.

Gradients are passed back partition by partition, before they are added: sums of the results, unlike results of sums,
have the same bits however the partitions are divided among workers.

Shapes: A active rows, X rows of an array of gradients, D columns.
"""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.row_kernels import dot
from crossfade.kvstore.threads import chunk_size, for_chunks

_MIN_NORM = np.float32(1e-12)


@inner_kernel()
def _normalize_chunk(begin, end, rows_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        norm_A[a] = max(np.sqrt(dot(rows_AD, a, rows_AD, a)), _MIN_NORM)
        for d in range(rows_AD.shape[1]):
            unit_AD[a, d] = rows_AD[a, d] / norm_A[a]


@njit(cache=True, error_model="numpy", nogil=True)
def normalize(rows_AD):  # type: ignore[no-untyped-def]
    """Return the unit vectors of rows, and the norms of the rows."""
    unit_AD, norm_A = np.empty_like(rows_AD), np.empty(rows_AD.shape[0], np.float32)
    size = chunk_size(rows_AD.shape[0], rows_AD.size)
    for_chunks(_normalize_chunk, rows_AD.shape[0], size, (rows_AD, unit_AD, norm_A))
    return unit_AD, norm_A


@inner_kernel(forceinline=False)
def row_through_normalize(gradient_XD, x, unit_AD, a, norm):  # type: ignore[no-untyped-def]
    """Turn the gradient of a unit row u into that of the row, of length ``norm``, in place: (g − (g·u)u) / norm."""
    along = dot(gradient_XD, x, unit_AD, a)
    for d in range(gradient_XD.shape[1]):
        gradient_XD[x, d] = (gradient_XD[x, d] - along * unit_AD[a, d]) / norm


@inner_kernel()
def _through_normalize_chunk(begin, end, gradient_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        row_through_normalize(gradient_AD, a, unit_AD, a, norm_A[a])


@njit(cache=True, error_model="numpy", nogil=True)
def through_normalize(gradient_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    """Do so for each row of ``gradient_AD``."""
    size = chunk_size(gradient_AD.shape[0], gradient_AD.size)
    for_chunks(_through_normalize_chunk, gradient_AD.shape[0], size, (gradient_AD, unit_AD, norm_A))
