"""Measure what the machine can do at most: memory, loopback, and matrix products, on ``threads`` threads.

The memory figures count the bytes that a program reads and writes: a copy 2, a triad a = b + s·c 3 times its array.
Random rows are what an embedding table is read by: rows of ``dim`` float32 in random order.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from multiprocessing import Process
from typing import Any

import numpy as np
from numba import njit, prange, set_num_threads

from crossfade.base.arrays import FloatArray, IntArray
from suite.matrix_products import Products
from suite.timing import median_seconds

VALUES = 1 << 26
GATHERED_ROWS = 1 << 18
TABLE_ROWS = 1 << 20
LOOPBACK_BYTES = 1 << 31
CHUNK_BYTES = 1 << 20


@njit(parallel=True)
def _triad(out_N: FloatArray, left_N: FloatArray, right_N: FloatArray, scale: np.float32) -> None:
    for n in prange(out_N.shape[0]):
        out_N[n] = left_N[n] + scale * right_N[n]


@njit(parallel=True)
def _gather(out_ND: FloatArray, table_RD: FloatArray, rows_N: IntArray) -> None:
    for n in prange(rows_N.shape[0]):
        out_ND[n] = table_RD[rows_N[n]]


def _receive(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    buffer = bytearray(CHUNK_BYTES)
    while connection.recv_into(buffer):
        pass


def loopback_gbytes() -> float:
    """Return the gigabytes per second from one process to another over loopback TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = Process(target=_receive, args=(listener,))
        receiver.start()
        with socket.create_connection(listener.getsockname()) as connection:
            chunk = bytes(CHUNK_BYTES)
            begin = time.perf_counter()
            for _ in range(LOOPBACK_BYTES // CHUNK_BYTES):
                connection.sendall(chunk)
        receiver.join()
        return LOOPBACK_BYTES / (time.perf_counter() - begin) / 1e9


def memory_gbytes(task: dict[str, Any]) -> dict[str, float]:
    """Return gigabytes per second of a triad and of random rows on all threads, and of numpy's copy on one."""
    arrays = [np.ones(VALUES, np.float32) for _ in range(3)]
    table_RD = np.ones((TABLE_ROWS, task["dim"]), np.float32)
    rows_N = np.random.default_rng(1).integers(0, TABLE_ROWS, GATHERED_ROWS)
    out_ND = np.empty((GATHERED_ROWS, task["dim"]), np.float32)
    triad, copy, gather = median_seconds(
        task["rounds"],
        lambda: _triad(*arrays, np.float32(2)),
        lambda: np.copyto(arrays[0], arrays[1]),
        lambda: _gather(out_ND, table_RD, rows_N),
    )
    array_bytes = 4 * VALUES / 1e9
    gathered = 2 * out_ND.nbytes / 1e9
    return {
        "triad_gbytes": 3 * array_bytes / triad,
        "copy_gbytes": 2 * array_bytes / copy,
        "gather_gbytes": gathered / gather,
    }


def main() -> None:
    """Print all limits."""
    task = json.loads(sys.argv[1])
    loopback = loopback_gbytes()  # before there are threads, since it forks
    set_num_threads(task["threads"])
    products = Products([(4096, 4096, 4096)], 1 << 22, task["threads"], backward=False)
    thin = Products([(16384, 4096, task["dim"])], 1 << 19, task["threads"], backward=False)
    seconds = median_seconds(task["rounds"], products, thin)
    peak, thin_peak = (work.flops / value / 1e9 for work, value in zip((products, thin), seconds, strict=True))
    print(
        json.dumps(
            {**memory_gbytes(task), "loopback_gbytes": loopback, "matmul_gflops": peak, "thin_matmul_gflops": thin_peak}
        )
    )


if __name__ == "__main__":
    main()
