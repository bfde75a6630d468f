"""Sum the gradients of dense layers over workers, with Horovod; the only module that imports it.

    with closing(HorovodAllReduce(store.rank, store.workers, timeout_seconds=600)) as all_reduce:
        total_N = all_reduce.sum(values_N)              # float32 (N,), the same bits for every worker

Embeddings are rows of the key-value store; dense layers are arrays that every worker holds and every step changes,
which suits an all-reduce (Sergeev and Del Balso, Horovod, 2018). Gloo sums over TCP: each worker listens at the address
of the network interface ``HOROVOD_GLOO_IFACE`` and finds the others by the rendezvous server at
``HOROVOD_GLOO_RENDEZVOUS_ADDR`` (``deploy/cluster/rendezvous.py``). Ranks are those of the key-value store, which also
assign the examples, so the order of summation is the same in each run.

This is for jobs with servers. Workers that hold the tables sum over their own connections
(``kvstore/sharded/ranks.py``), without Horovod.
"""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Any, Protocol

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import ClusterError, MissingExtraError
from crossfade.kvstore.mxnet.imports import dense_view, import_mxnet

ADDRESS_VARIABLE = "HOROVOD_GLOO_RENDEZVOUS_ADDR"
PORT_VARIABLE = "HOROVOD_GLOO_RENDEZVOUS_PORT"
INTERFACE_VARIABLE = "HOROVOD_GLOO_IFACE"
_ERROR_DELAY_SECONDS = 2.0
"""Time that a worker waits before it reports the loss of a peer, so that the peer reports its own error first."""


class AllReduce(Protocol):
    """Sums arrays over all workers."""

    def sum(self, values_N: FloatArray) -> FloatArray:
        """Return the sum over all workers, float32 (N,). Every worker calls it, with the same N."""


def require_horovod() -> None:
    """Check that Horovod is installed and was built for MXNet, without importing either.

    Raises:
        MissingExtraError: it is not.
    """
    spec = importlib.util.find_spec("horovod")
    places = spec.submodule_search_locations if spec is not None else None
    if not any(Path(place).glob("mxnet/mpi_lib*.so") for place in places or ()):
        raise MissingExtraError(
            "horovod",
            extra="horovod",
            purpose="training dense layers (model.dense) with several workers",
            how="run 'make horovod', which builds it for MXNet",
        )


class HorovodAllReduce:
    """All-reduce with Horovod: CPU arrays over Gloo."""

    def __init__(self, rank: int, workers: int, timeout_seconds: float) -> None:
        """Join the other workers; return when all have joined. A later silence of ``timeout_seconds`` is an error.

        If they do not join, Horovod reports it on standard error and aborts the process.

        Raises:
            MissingExtraError: Horovod is not installed here.
            ClusterError: Horovod could not start.
        """
        require_horovod()
        # Horovod gets each worker as a separate host: its hierarchical sums are for GPUs.
        os.environ |= {
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_HOSTNAME": f"worker-{rank}",
            "HOROVOD_RANK": str(rank),
            "HOROVOD_SIZE": str(workers),
            "HOROVOD_LOCAL_RANK": "0",
            "HOROVOD_LOCAL_SIZE": "1",
            "HOROVOD_CROSS_RANK": str(rank),
            "HOROVOD_CROSS_SIZE": str(workers),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(max(1, round(timeout_seconds))),
        }
        self._mx = import_mxnet()
        import horovod.mxnet as horovod

        self._horovod: Any = horovod
        try:
            horovod.init()
        except ValueError as error:
            raise ClusterError(f"the gradients of dense layers cannot be summed over workers: {error}") from error

    def sum(self, values_N: FloatArray) -> FloatArray:
        """Return the sum over all workers, float32 (N,).

        Raises:
            ClusterError: another worker was lost.
        """
        # A dense array: Horovod does not check its storage type, and sums garbage for a sparse one.
        array = self._mx.nd.empty(values_N.shape)
        dense_view(array, values_N.shape, values_N.dtype)[:] = values_N
        try:
            self._horovod.allreduce_(array, op=self._horovod.Sum, name="dense")
            array.wait_to_read()
        except (ValueError, self._mx.base.MXNetError) as error:
            time.sleep(_ERROR_DELAY_SECONDS)
            raise ClusterError(f"the gradients of dense layers could not be summed over workers: {error}") from error
        total_N: FloatArray = array.asnumpy()
        return total_N

    def close(self) -> None:
        """Leave the other workers. Every worker calls it, after its last sum."""
        self._horovod.shutdown()
