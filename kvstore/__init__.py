"""Row stores: embedding tables that are pulled and pushed by row, in this process or on MXNet servers.

Read ``store.py`` first (the protocol), then ``local.py`` (the shortest implementation), ``optimizers.py`` (what a push
does to a row) and ``layout.py`` (where a row lies on the servers).
"""

import os

# Numba's own thread pool: it sleeps between kernels, where an OpenMP one spins and takes the cores from BLAS. It must
# be used from one thread at a time, so background threads run no parallel kernel.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")

# BLAS computes tile by tile, in the engine's threads, and threads of its own would fight with those. It must be set
# before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
