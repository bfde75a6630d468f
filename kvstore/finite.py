"""Find values that are not finite, or too large to train on, in arrays whose first axis is rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def find_non_finite_row(values: NDArray[Any]) -> int | None:
    """Return the first row of ``values`` with a value that is NaN or infinite; None if there is none.

    Arrays without such values, which nearly all are, take two passes that allocate nothing.
    """
    if values.dtype.kind != "f" or not values.size:
        return None
    with np.errstate(invalid="ignore"):
        if math.isfinite(values.min()) and math.isfinite(values.max()):
            return None
    return int(np.isfinite(values).reshape(len(values), -1).all(axis=1).argmin())


def find_largest_row(values: NDArray[Any], bound: float) -> int | None:
    """Return the row of ``values`` with the largest magnitude, NaN being larger than any; None if within ``bound``."""
    if not values.size:
        return None
    with np.errstate(invalid="ignore"):
        largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    largest[np.isnan(largest)] = np.inf
    row = int(largest.argmax())
    return row if largest[row] > bound else None
