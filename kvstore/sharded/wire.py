"""Messages with rows: as float32, or between hosts as bfloat16, which is half as long.

    wire = Wire(ranks, "stochastic_bfloat16", seed=1)
    message = wire.message(dim, sent_W, is_exact_W)
    message.add(rank, values_RD, from_A, positions_A, draw)     # values_RD[from_A], for the ranks in order
    rows = message.exchange(received_W, is_exact)               # float32 (R, D) of each rank

A bfloat16 is the upper half of a float32: its sign, its exponent, and seven bits of its fraction. Rounding at random
rounds up with the probability that keeps the mean: its numbers come from a counter of table, row, column, and step,
so a run repeats bit for bit. Rows that ranks of one host read in each other's memory are never rounded, nor are those
of an exact message. NaN stays NaN.

Shapes: W ranks, A rows of a part of a message, R rows of an array, D columns.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.cache_prefetch import AHEAD, prefetch_row
from crossfade.kvstore.jit import allocating_kernel, inner_kernel, njit
from crossfade.kvstore.philox import philox
from crossfade.kvstore.sharded import WireDtype
from crossfade.kvstore.sharded.kernels import gather_rows
from crossfade.kvstore.sharded.ranks import Bytes, Ranks
from crossfade.kvstore.store import VALUE_BYTES
from crossfade.kvstore.threads import chunk_size, for_chunks

_HALF_BYTES = 2
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_BLOCK = 8
"""Columns that share a counter, each with 16 bits of its four words."""


class Draw(NamedTuple):
    """Where the random numbers of a part of a message begin: the key of the generator, the step, and the rows.

    The row at position p has number ``first_row + p * num_ranks`` in its table.
    """

    key_0: np.uint64
    key_1: np.uint64
    step: np.uint64
    first_row: np.uint64
    num_ranks: np.uint64


@inner_kernel()
def _rounded(bits, addend):  # type: ignore[no-untyped-def]
    """Return the upper half of the bits of a float32 plus a number below 2^16; a NaN becomes a quiet NaN."""
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))
    return np.uint16((bits + addend) >> np.uint32(16))


@inner_kernel()
def _round_chunk(begin, end, out_AD, bits_RD, from_A):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        if a + AHEAD < end:
            prefetch_row(bits_RD, from_A[a + AHEAD])
        row = from_A[a]
        for d in range(out_AD.shape[1]):
            bits = bits_RD[row, d]
            out_AD[a, d] = _rounded(bits, np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))


@njit(cache=True, error_model="numpy", nogil=True)
def _round(out_AD, bits_RD, from_A):  # type: ignore[no-untyped-def]
    size = chunk_size(from_A.shape[0], out_AD.size)
    for_chunks(_round_chunk, from_A.shape[0], size, (out_AD, bits_RD, from_A))


@allocating_kernel()
def _round_at_random_chunk(begin, end, out_AD, bits_RD, from_A, positions_A, draw):  # type: ignore[no-untyped-def]
    blocks = (out_AD.shape[1] + _BLOCK - 1) // _BLOCK
    words = np.empty(4 * blocks, np.uint32)
    for a in range(begin, end):
        if a + AHEAD < end:
            prefetch_row(bits_RD, from_A[a + AHEAD])
        row = draw.first_row + np.uint64(positions_A[a]) * draw.num_ranks
        for b in range(blocks):
            w0, w1, w2, w3 = philox(row & _LOW, row >> _SHIFT, np.uint64(b), draw.step, draw.key_0, draw.key_1)
            words[4 * b], words[4 * b + 1], words[4 * b + 2], words[4 * b + 3] = w0, w1, w2, w3
        source = from_A[a]
        for d in range(out_AD.shape[1]):
            addend = (words[d >> 1] >> np.uint32((d & 1) << 4)) & np.uint32(0xFFFF)
            out_AD[a, d] = _rounded(bits_RD[source, d], addend)


@njit(cache=True, error_model="numpy", nogil=True)
def _round_at_random(out_AD, bits_RD, from_A, positions_A, draw):  # type: ignore[no-untyped-def]
    # A value takes several times as long as one that is copied, so that fewer of them are worth threads.
    rows = from_A.shape[0]
    size = chunk_size(rows, 4 * out_AD.size)
    for_chunks(_round_at_random_chunk, rows, size, (out_AD, bits_RD, from_A, positions_A, draw))


@inner_kernel()
def _expand_chunk(begin, end, out_AD, halves_AD):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        for d in range(halves_AD.shape[1]):
            out_AD[a, d] = np.uint32(halves_AD[a, d]) << np.uint32(16)


@njit(cache=True, error_model="numpy", nogil=True)
def expand(out_AD, halves_AD):  # type: ignore[no-untyped-def]
    """Set ``out_AD``, the bits of float32, to the values of ``halves_AD``, the bits of bfloat16."""
    size = chunk_size(halves_AD.shape[0], halves_AD.size)
    for_chunks(_expand_chunk, halves_AD.shape[0], size, (out_AD, halves_AD))


class Wire:
    """Packs rows for other ranks, and unpacks those that they send."""

    def __init__(self, ranks: Ranks, dtype: WireDtype, seed: int) -> None:
        """Send rows to ``ranks`` of other hosts as ``dtype``, which all ranks have in common, as they do ``seed``."""
        self.ranks, self._dtype, self._seed = ranks, dtype, seed
        is_remote_W = [dtype != "float32" and not ranks.is_local(rank) for rank in range(ranks.num_ranks)]
        self._is_rounded_W = np.array(is_remote_W)
        self._expanded = [np.empty(0, np.uint32) for _ in is_remote_W]

    def draw(self, stream: str, step: int, owner: int) -> Draw:
        """Return the draws of a step for rows that rank ``owner`` has; a stream is a purpose and its table."""
        key_1 = (self._seed >> 32) ^ zlib.crc32(stream.encode())
        counter = (self._seed & 0xFFFFFFFF, key_1, step & 0xFFFFFFFF, owner, self.ranks.num_ranks)
        return Draw(*(np.uint64(value) for value in counter))

    def message(self, dim: int, rows_W: IntArray, is_exact_W: NDArray[np.bool_]) -> RowMessage:
        """Begin a message with ``rows_W`` rows of ``dim`` columns for each rank, unrounded where they are exact."""
        return RowMessage(self, dim, rows_W, self._is_rounded_W & ~is_exact_W)

    def sections(self, dim: int, rows_W: IntArray, is_rounded_W: NDArray[np.bool_]) -> IntArray:
        """Return the bytes of the section of each rank, multiples of ``VALUE_BYTES`` so that all are aligned."""
        halves_W = -(-rows_W * dim // 2) * 2 * _HALF_BYTES
        sizes_W: IntArray = np.where(is_rounded_W, halves_W, rows_W * dim * VALUE_BYTES)
        return sizes_W

    def pack(self, out: Bytes, values_RD: FloatArray, from_A: Any, positions_A: Any, draw: Draw) -> None:
        """Write rows as bfloat16."""
        out_AD, bits_RD = out.view(np.uint16).reshape(-1, values_RD.shape[1]), values_RD.view(np.uint32)
        if self._dtype == "stochastic_bfloat16":
            _round_at_random(out_AD, bits_RD, from_A, positions_A, draw)
        else:
            _round(out_AD, bits_RD, from_A)

    def unpack(self, rank: int, section: Bytes, rows: int, dim: int) -> FloatArray:
        """Return ``rows`` rows that were sent as bfloat16, in memory that is reused for the next of ``rank``."""
        if len(self._expanded[rank]) < rows * dim:
            self._expanded[rank] = np.empty(rows * dim + rows * dim // 8, np.uint32)
        out_RD = self._expanded[rank][: rows * dim].reshape(rows, dim)
        expand(out_RD, section[: rows * dim * _HALF_BYTES].view(np.uint16).reshape(rows, dim))
        return out_RD.view(np.float32)

    def rounded(self, is_exact: bool) -> NDArray[np.bool_]:
        """Return which ranks send rounded rows to this one."""
        return self._is_rounded_W & (not is_exact)


class RowMessage:
    """A message with rows of one width for each of the other ranks."""

    def __init__(self, wire: Wire, dim: int, rows_W: IntArray, is_rounded_W: NDArray[np.bool_]) -> None:
        self._wire, self._dim, self._is_rounded_W = wire, dim, is_rounded_W
        self._sizes_W = wire.sections(dim, rows_W, is_rounded_W)
        self._places_W = np.cumsum(self._sizes_W) - self._sizes_W
        self._message = wire.ranks.buffer(int(self._sizes_W.sum()))

    def add(
        self, rank: int, values_RD: FloatArray, from_A: NDArray[Any], positions_A: NDArray[Any], draw: Draw
    ) -> None:
        """Write ``values_RD[from_A]`` for ``rank``, after its rows so far; ``positions_A`` are theirs in the table."""
        is_rounded = self._is_rounded_W[rank]
        begin = self._places_W[rank]
        size = len(from_A) * self._dim * (_HALF_BYTES if is_rounded else VALUE_BYTES)
        self._places_W[rank] += size
        out = self._message[begin : begin + size]
        if is_rounded:
            self._wire.pack(out, values_RD, from_A, positions_A, draw)
        else:
            gather_rows(out.view(np.float32).reshape(-1, self._dim), values_RD, from_A)

    def exchange(self, rows_W: IntArray, *, is_exact: bool) -> list[FloatArray]:
        """Send the message; return the ``rows_W`` rows that each rank has sent, which the next exchange overwrites."""
        is_rounded_W = self._wire.rounded(is_exact)
        sizes_W = self._wire.sections(self._dim, rows_W, is_rounded_W)
        sections = self._wire.ranks.exchange(self._sizes_W, sizes_W)
        return [
            self._wire.unpack(rank, section, int(rows_W[rank]), self._dim)
            if is_rounded_W[rank]
            else section.view(np.float32).reshape(-1, self._dim)
            for rank, section in enumerate(sections)
        ]
