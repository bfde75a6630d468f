"""A device that MXNet computes on: the copies to and from it, and when work for it is queued.

    device = MXNetDevice(mx, mx.gpu(1), mx.cpu_pinned(1))
    rows_AD = device.upload("rows", values_AD)
    result = device.download("result", compute(rows_AD))        # nothing has waited for the device yet
    result.asnumpy()

A GPU copies from and to pinned memory while it computes. Pinned memory takes long to allocate, so each array of a step
has a buffer, which the next step uses again.

MXNet starts whatever is queued and has its inputs, so the arrays of all tiles of a computation might be in memory at
once. A computation is therefore a generator: it yields an array of the tile that it has queued, and goes on when that
has been computed. ``in_turns`` runs those of several devices.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from crossfade.base.arrays import FloatArray, IntArray

T = TypeVar("T")
Queued = Generator[Any, None, T]
"""Queues work that results in T. Yields arrays to wait for."""


def in_turns(computations: Sequence[Queued[T]]) -> list[T]:
    """Run ``computations``, of which each queues a tile in its turn, and return their results."""
    awaited: dict[int, Any] = {}
    results: dict[int, T] = {}
    while len(results) < len(computations):
        for number, computation in enumerate(computations):
            if number in results:
                continue
            if number in awaited:
                awaited[number].wait_to_read()
            try:
                awaited[number] = next(computation)
            except StopIteration as end:
                results[number] = end.value
    return [results[number] for number in range(len(computations))]


class MXNetDevice:
    """A context, and buffers in host memory."""

    def __init__(self, mx: Any, context: Any, host: Any) -> None:
        """Prepare to compute in ``context``, and to copy from and to the context ``host``, which may be the same."""
        self._mx = mx
        self.context = context
        self._host = host
        self._buffers: dict[str, Any] = {}

    @property
    def is_gpu(self) -> bool:
        """Whether the device has memory other than the host's."""
        return bool(self._host != self.context)

    def upload(self, name: str, values: FloatArray | IntArray) -> Any:
        """Queue the copy of float32 or int32 ``values``, which may be changed afterwards, to the device.

        The result of the last upload of this ``name`` must not be in use any more.
        """
        buffer = self._buffer(name, values.shape, values.dtype)
        buffer[:] = values
        return buffer.as_in_context(self.context)

    def download(self, name: str, array: Any) -> Any:
        """Queue the copy of ``array`` to the host, and return an array there, valid until the next one of this name."""
        return array.copyto(self._buffer(name, array.shape, array.dtype)) if self.is_gpu else array

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return the buffer of ``name`` with ``shape``. It grows by more than is needed, as sizes vary by step."""
        size = math.prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = self._mx.nd.empty(size + size // 4, ctx=self._host, dtype=dtype)
        return self._buffers[name][:size].reshape(shape)
