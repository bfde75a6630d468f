"""Compute gradients by central differences, as a reference for closed forms."""

from collections.abc import Callable

import numpy as np

from crossfade.base.arrays import FloatArray

_STEP = 1e-6


def numeric_gradient(loss: Callable[[], float], values: FloatArray) -> FloatArray:
    """Compute the gradient of ``loss`` with respect to ``values``, float64, which are varied and restored."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        original = values[index]
        values[index] = original + _STEP
        above = loss()
        values[index] = original - _STEP
        gradient[index] = (above - loss()) / (2 * _STEP)
        values[index] = original
    return gradient
