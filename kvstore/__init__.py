"""Row stores: embedding tables that are pulled and pushed by row, in this process, on the workers, or on MXNet servers.

Read ``store.py`` first (the protocol), then ``local.py`` (the shortest implementation), ``optimizers.py`` (what a push
does to a row), ``sharded/store.py`` (tables divided among the workers) and ``mxnet/server_protocol.py`` (which server
holds a row).
"""

import os
import sys

# OpenMP's threads start on a kernel sooner than those of Numba's workqueue layer, which poll. They would spin between
# kernels and take the cores from BLAS and from the thread that makes batches, so they wait passively, but only after
# about 50 µs: a kernel that follows another at once starts in 2 µs, not in 50. The library reads the variables when it
# is loaded. Background threads and forked processes run no parallel kernel: workqueue, the fallback without OpenMP,
# allows one calling thread, and OpenMP's threads do not survive a fork.
os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp workqueue tbb")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
if "numba" in sys.modules:
    sys.modules["numba"].config.THREADING_LAYER_PRIORITY = os.environ["NUMBA_THREADING_LAYER_PRIORITY"].split()

# The engine calls BLAS tile by tile from its own threads; more threads inside BLAS would compete with them, so that a
# step takes five times as long, and would round sums differently. So a number in the environment, where it is meant for
# any program, is overridden. OpenBLAS reads the variable once, when numpy is imported, which a program or a test may
# have done before.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if "numpy" in sys.modules:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")

__version__ = "0.1.0"
