"""Array types of the public interfaces.

Names of arrays end in the letters of their dimensions, as in ``block_AD``: A active rows, D columns. CONTRIBUTING.md
("Shape suffixes") lists the letters.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[Any]
"""float32, or float64 where the docstring states it."""
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
