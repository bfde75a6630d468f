"""Row stores: embedding tables that are pulled and pushed by row, in this process or on MXNet servers.

Read ``store.py`` first (the protocol), then ``local.py`` (the shortest implementation), ``optimizers.py`` (what a push
does to a row) and ``layout.py`` (which server holds a row).
"""

import os
import sys

from threadpoolctl import threadpool_limits

# Numba's workqueue layer sleeps between kernels; an OpenMP pool would spin and take the cores from BLAS. It supports
# one calling thread at a time, so background threads run no parallel kernel.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")

# The engine calls BLAS tile by tile from its own threads; more threads inside BLAS would compete with them, and would
# round sums differently. OpenBLAS reads the variable once, when numpy is imported, which a program or a test may have
# done before.
if "OPENBLAS_NUM_THREADS" not in os.environ:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if "numpy" in sys.modules:
        threadpool_limits(1, user_api="blas")

__version__ = "0.1.0"
