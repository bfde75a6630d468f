"""Name the kernels that a worker computes with: processors of another kind have others, which round differently.

    kernels = describe_kernels(engine="cpu")          # "OpenBLAS Zen, numpy AVX2, Numba znver3+avx2+fma"
    warn_if_unlike_first(kernels, store, on_event)    # every worker calls this

Runs repeat and resume bit for bit on equal kernels only, so reports and checkpoints name them.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.jit import compiled_for
from crossfade.kvstore.store import MAX_ALL_REDUCE_LENGTH, RowStore
from crossfade.trainer.runs.events import EventSink, KernelsDiffer

_BLAS_NAMES = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}


def describe_kernels(engine: str) -> str:
    """Describe the kernels of this process, whose gradients ``engine`` computes.

    Call it once the engine is loaded: PyTorch and MXNet have kernels of their own.
    """
    parts = [_blas("numpy"), f"numpy {_numpy_features()}", f"Numba {compiled_for()}"]
    if engine == "mxnet":
        parts.append(f"MXNet {_blas('mxnet')}")
    if engine == "torch":
        parts.append(f"PyTorch {sys.modules['torch'].backends.cpu.get_cpu_capability()}")
    return ", ".join(parts)


def _blas(package: str) -> str:
    """Describe the BLAS libraries in the folders of ``package``, or all where it has none of its own."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = [library for library in libraries if f"{os.sep}{package}" in library["filepath"]]
    found = set()
    for library in own or libraries:
        name = library["internal_api"]
        found.add(" ".join([_BLAS_NAMES.get(name, name), *filter(None, [library.get("architecture")])]))
    return "/".join(sorted(found)) or "BLAS unknown"


def _numpy_features() -> str:
    """Return the last of the extensions that numpy's own loops use here; the others follow from it."""
    show_config: Any = np.show_config  # numpy 1 declares neither its parameter nor its result
    extensions = show_config(mode="dicts")["SIMD Extensions"]
    return str((extensions.get("found") or extensions.get("baseline") or ["baseline"])[-1])


def warn_if_unlike_first(kernels: str, store: RowStore, on_event: EventSink) -> None:
    """Report a worker whose ``kernels`` are not those of rank 0. Every worker calls this."""
    first = bytes(store.all_reduce(_encoded(kernels if store.rank == 0 else "")).astype(np.uint8))
    if first != bytes(_encoded(kernels).astype(np.uint8)):
        expected = first.rstrip(b"\0").decode(errors="replace")
        on_event(KernelsDiffer(kernels=kernels, expected=expected, worker=store.rank, host=socket.gethostname()))


def _encoded(kernels: str) -> FloatArray:
    """Return the bytes of ``kernels`` as numbers, which workers can sum."""
    values_N = np.zeros(MAX_ALL_REDUCE_LENGTH)
    encoded = kernels.encode()[:MAX_ALL_REDUCE_LENGTH]
    values_N[: len(encoded)] = list(encoded)
    return values_N
