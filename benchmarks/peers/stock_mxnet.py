"""MXNet as it is imported without Crossfade. With ``DMLC_ROLE`` server or scheduler, the import runs its loop.

.venv/bin/python -m peers.stock_mxnet       # a server or a scheduler
"""

from __future__ import annotations

import warnings

import numpy as np

np.bool = np.bool_  # type: ignore[attr-defined]  # an alias that MXNet 1.9.1 uses and numpy has removed
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mxnet as mx

__all__ = ["mx"]
