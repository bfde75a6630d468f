"""Gradients by central differences, to check others against."""

from collections.abc import Callable

import numpy as np

from kvstore.arrays import FloatArray

_STEP = 1e-6


def numeric_gradient(loss: Callable[[], float], values: FloatArray) -> FloatArray:
    """The gradient of ``loss`` by ``values``, float64, which it is computed from; they are moved and put back."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + _STEP
        above = loss()
        values[index] = kept - _STEP
        gradient[index] = (above - loss()) / (2 * _STEP)
        values[index] = kept
    return gradient
