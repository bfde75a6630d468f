"""Counter-based random numbers: the value at a counter, computed alone, whoever asks and in whatever order.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A counter of
four 32-bit words and a key of two give four 32-bit words. Every draw of Crossfade names its counter (a table's row, a
step's position), so a table is the same in any layout and a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import zlib

import numpy as np
from numba import njit, prange

from kvstore.arrays import FloatArray, IntArray

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_UNIT_24 = np.float32(2.0**-24)


@njit(cache=True, inline="always")
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """The four 32-bit words (in uint64s) at counter (c0, c1, c2, c3) under key (k0, k1), all uint64 below 2^32."""
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0 = (product_1 >> _SHIFT) ^ c1 ^ k0
        c1 = product_1 & _LOW
        c2 = (product_0 >> _SHIFT) ^ c3 ^ k1
        c3 = product_0 & _LOW
        k0 = (k0 + _WEYL_0) & _LOW
        k1 = (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@njit(cache=True, parallel=True)
def _fill_rows(out_AD, rows_A, seed, stream, limit):  # type: ignore[no-untyped-def]
    dim = out_AD.shape[1]
    k0, k1 = seed & _LOW, seed >> _SHIFT
    for a in prange(out_AD.shape[0]):
        row = np.uint64(rows_A[a])
        for block in range((dim + 3) // 4):
            words = philox(row & _LOW, row >> _SHIFT, np.uint64(block), stream, k0, k1)
            for lane in range(min(4, dim - block * 4)):
                unit = np.float32(words[lane] >> np.uint64(8)) * _UNIT_24
                out_AD[a, block * 4 + lane] = (np.float32(2.0) * unit - np.float32(1.0)) * limit


def init_rows(out_AD: FloatArray, rows_A: IntArray, *, seed: int, table: str, scale: float) -> None:
    """Write the initial values of ``rows_A`` of ``table`` into ``out_AD``, float32 (rows, dim), in place.

    Uniform on [-√3·scale, √3·scale), so ``scale`` is the standard deviation. A value depends on the seed, the table's
    name, the row and the column alone.
    """
    limit = np.float32(scale * 3.0**0.5)
    _fill_rows(out_AD, rows_A, np.uint64(seed), np.uint64(zlib.crc32(table.encode())), limit)


@njit(cache=True, nogil=True)
def _uniform_words(out_N, positions_N, slot, seed, stream, epoch, step):  # type: ignore[no-untyped-def]
    k0, k1 = seed & _LOW, (seed >> _SHIFT) ^ stream
    for n in range(out_N.shape[0]):
        word_0, word_1, _, _ = philox(np.uint64(positions_N[n]), np.uint64(slot), step, epoch, k0, k1)
        out_N[n] = ((word_0 << np.uint64(21)) ^ (word_1 & np.uint64(0x1FFFFF))) * 2.0**-53


def uniform(positions_N: IntArray, *, seed: int, stream: str, epoch: int, step: int, slot: int = 0) -> FloatArray:
    """The draws of a step at ``positions_N``, int64 below 2^32: float64 (N,), uniform on [0, 1) with 53 bits.

    ``stream`` names what the numbers are for, so that two uses never share a number; ``slot`` numbers the draws that
    belong to one position.
    """
    out_N = np.empty(len(positions_N), dtype=np.float64)
    name = np.uint64(zlib.crc32(stream.encode()))
    _uniform_words(out_N, positions_N, slot, np.uint64(seed), name, np.uint64(epoch), np.uint64(step))
    return out_N


def permutation(count: int, *, seed: int, stream: str, epoch: int, position: int) -> IntArray:
    """A permutation of ``range(count)``, int64, drawn at (seed, stream, epoch, position)."""
    bits = np.random.Philox(
        key=np.array([seed, zlib.crc32(stream.encode())], dtype=np.uint64),
        counter=np.array([0, 0, position, epoch], dtype=np.uint64),
    )
    return np.random.Generator(bits).permutation(count)
