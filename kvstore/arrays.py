"""Array types of the public interfaces, and the legend of shape suffixes.

Shape suffixes, used throughout: A active rows of a table, B examples of a batch, C negatives of a shared pool, D
columns of an embedding, E items of an evaluated block, K entries of a ranking, N elements of anything else, P table
shards, Q queries, R any rows of a table.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[Any]
"""float32, or float64 where the docstring states it."""
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
