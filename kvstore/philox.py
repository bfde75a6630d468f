"""Counter-based random numbers: each value depends only on its counter, not on who draws it or in which order.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A counter of
four 32-bit words and a key of two give four 32-bit words. Every draw of Crossfade has its own counter (a table's
row, a step's position), so a table has the same values in any layout, and a resumed run repeats the draws of a run that
never stopped.

    init_rows(out_RD, rows_R, seed=1, table="customer", std=0.1)
    uniform(positions_N, seed=1, stream="negatives", epoch=0, step=12)     # float64 (N,) on [0, 1)
"""

from __future__ import annotations

import zlib

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.threads import balanced_chunk_size, for_chunks

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_UNIT_24 = np.float32(2.0**-24)
_CHUNK_ROWS = 1 << 16


@njit(cache=True, inline="always")
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Return the four 32-bit words at counter (c0, c1, c2, c3) under key (k0, k1); all are uint64 below 2^32."""
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


@inner_kernel()
def _fill_chunk(begin, end, out_RD, rows_R, seed, stream, limit):  # type: ignore[no-untyped-def]
    dim = out_RD.shape[1]
    k0, k1 = seed & _LOW, seed >> _SHIFT
    for r in range(begin, end):
        row = np.uint64(rows_R[r])
        for block in range((dim + 3) // 4):
            words = philox(row & _LOW, row >> _SHIFT, np.uint64(block), stream, k0, k1)
            for lane in range(min(4, dim - block * 4)):
                unit = np.float32(words[lane] >> np.uint64(8)) * _UNIT_24
                out_RD[r, block * 4 + lane] = (np.float32(2.0) * unit - np.float32(1.0)) * limit


@njit(cache=True, error_model="numpy")
def _fill_rows(out_RD, rows_R, seed, stream, limit):  # type: ignore[no-untyped-def]
    size = balanced_chunk_size(out_RD.shape[0])
    for_chunks(_fill_chunk, out_RD.shape[0], size, (out_RD, rows_R, seed, stream, limit))


def init_rows(out_RD: FloatArray, rows_R: IntArray, *, seed: int, table: str, std: float) -> None:
    """Write the initial values of ``rows_R`` of ``table`` into ``out_RD``, float32 (R, D), in place.

    Values are uniform on [-√3·std, √3·std), so ``std`` is their standard deviation. A value depends only on the seed,
    the table's name, the row and the column.
    """
    limit = np.float32(std * 3.0**0.5)
    _fill_rows(out_RD, rows_R, np.uint64(seed), np.uint64(zlib.crc32(table.encode())), limit)


def init_rows_at(
    weights_ND: FloatArray, positions_R: IntArray, rows_R: IntArray, *, seed: int, table: str, std: float
) -> None:
    """Write the initial values of ``rows_R`` of ``table`` to ``weights_ND[positions_R]``, in chunks of bounded size."""
    for start in range(0, len(rows_R), _CHUNK_ROWS):
        chunk_R = rows_R[start : start + _CHUNK_ROWS]
        values_RD = np.empty((len(chunk_R), weights_ND.shape[1]), dtype=np.float32)
        init_rows(values_RD, chunk_R, seed=seed, table=table, std=std)
        weights_ND[positions_R[start : start + _CHUNK_ROWS]] = values_RD


@njit(cache=True, nogil=True)
def _uniform_words(out_N, positions_N, slot, seed, stream, epoch, step):  # type: ignore[no-untyped-def]
    k0, k1 = seed & _LOW, (seed >> _SHIFT) ^ stream
    for n in range(out_N.shape[0]):
        word_0, word_1, _, _ = philox(np.uint64(positions_N[n]), np.uint64(slot), step, epoch, k0, k1)
        out_N[n] = ((word_0 << np.uint64(21)) ^ (word_1 & np.uint64(0x1FFFFF))) * 2.0**-53


def uniform(positions_N: IntArray, *, seed: int, stream: str, epoch: int, step: int, slot: int = 0) -> FloatArray:
    """Draw the numbers of a step at ``positions_N``, int64 below 2^32: float64 (N,), uniform on [0, 1) with 53 bits.

    ``stream`` labels the purpose of the draws, so that two purposes never share a number; ``slot`` distinguishes the
    draws of one position.
    """
    out_N = np.empty(len(positions_N), dtype=np.float64)
    name = np.uint64(zlib.crc32(stream.encode()))
    _uniform_words(out_N, positions_N, slot, np.uint64(seed), name, np.uint64(epoch), np.uint64(step))
    return out_N


def permutation(count: int, *, seed: int, stream: str, epoch: int, position: int) -> IntArray:
    """Draw a permutation of ``range(count)``, int64, at counter (seed, stream, epoch, position)."""
    bits = np.random.Philox(
        key=np.array([seed, zlib.crc32(stream.encode())], dtype=np.uint64),
        counter=np.array([0, 0, position, epoch], dtype=np.uint64),
    )
    return np.random.Generator(bits).permutation(count)
