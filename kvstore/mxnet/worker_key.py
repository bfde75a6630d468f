"""One key of a table as a worker uses it: pull rows of it, and push their gradients.

key = WorkerKey(store, number, shape)
key.request(positions_A)                            # returns at once
key.receive(out_RD, order_A)                        # into out_RD[order_A]
key.push(positions_A, gradient_RD, order_A)         # returns at once
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.grouping import copy_rows_from, copy_rows_to
from crossfade.kvstore.mxnet.imports import dense_view, int64_array, row_sparse_from, row_sparse_zeros

_NONE = np.empty(0, np.int64)


class WorkerKey:
    """Pulls and pushes rows of one key with a single array.

    A step pushes the rows that it pulled, so the array that received them already has their IDs and the memory for
    their gradients. MXNet has a buffer for each key, too: it copies what is pushed into it, and what is pulled from it.
    """

    def __init__(self, store: Any, number: int, shape: tuple[int, int]) -> None:
        """Use key ``number`` of ``shape`` in ``store``, where it has just been initialized: push no rows."""
        self._store, self._number, self._shape = store, number, shape
        self._array = row_sparse_zeros(shape, stored=False)
        self._pulled_A: IntArray = _NONE
        store.push(number, self._array)

    def request(self, positions_A: IntArray) -> None:
        """Request rows, int64 (A,), sorted and unique, and at least one. MXNet waits for the key's last push first."""
        self._pulled_A = positions_A
        self._store.row_sparse_pull(self._number, out=self._array, row_ids=int64_array(positions_A))

    def receive(self, out_RD: FloatArray, order_A: IntArray) -> None:
        """Wait for the rows of the last request, and copy them into ``out_RD[order_A]``."""
        copy_rows_to(out_RD, order_A, self._view())

    def _view(self) -> FloatArray:
        self._array.wait_to_read()
        view: FloatArray = dense_view(self._array, (len(self._pulled_A), self._shape[1]), np.float32)
        return view

    def push(self, positions_A: IntArray, values_RD: FloatArray, order_A: IntArray) -> None:
        """Push ``values_RD[order_A]`` as the gradients of ``positions_A``, int64, sorted and unique."""
        if len(positions_A) and np.array_equal(positions_A, self._pulled_A):
            copy_rows_from(self._view(), values_RD, order_A)
        else:
            self._array = row_sparse_from(positions_A, values_RD, order_A, self._shape)
        # The push still reads the array when this returns.
        self._pulled_A = _NONE
        self._store.push(self._number, self._array)
