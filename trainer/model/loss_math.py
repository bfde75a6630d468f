"""float32 arithmetic for the loss kernels: eˣ, log(1 + eˣ) for x ≤ 0, −log σ(x), sums, maxima and dot products.

    loss, pull = log_sigmoid_loss(x)        # −log σ(x), σ(−x)

No function uses fastmath (see ``kvstore/optimizers.py``), so results repeat bit for bit. To vectorize all the same,
``sum_lanes`` has eight partial sums and ``largest`` four maxima, in a fixed order; ``dot`` adds one product after the
other.

Shapes: C values, D columns.
"""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.jit import njit

ZERO, ONE = np.float32(0.0), np.float32(1.0)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_ARTANH_COEFFICIENTS = tuple(np.float32(1.0 / n) for n in (1, 3, 5, 7, 9, 11, 13, 15))
_LOWEST_EXPONENT = np.float32(-87.0)


@njit(cache=True, error_model="numpy")
def exp(x):  # type: ignore[no-untyped-def]
    """Compute e^x for x of at most 88, to one unit in the last place; below -87, e^-87.

    eˣ = 2ⁿ·eʳ with |r| ≤ ln 2 / 2 and a minimax polynomial for eʳ (coefficients of Moshier's Cephes library, expf).
    Unlike ``math.exp`` it compiles to vector instructions, ten times as fast.
    """
    x = max(x, _LOWEST_EXPONENT)
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = _EXP_COEFFICIENTS[0]
    for c in _EXP_COEFFICIENTS[1:]:
        p = p * r + c
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return (p * r * r + r + ONE) * power.view(np.float32)


@njit(cache=True, error_model="numpy")
def log1p_of_exp(power):  # type: ignore[no-untyped-def]
    """Compute log(1 + p) for a power p = eˣ in [0, 1]: 2·artanh(z) with z = p / (2 + p) ≤ 1/3, by artanh's series."""
    z = power / (np.float32(2.0) + power)
    square = z * z
    # Unrolled: a loop over the coefficients would remain a loop, which does not vectorize.
    series = _ARTANH_COEFFICIENTS[7] * square + _ARTANH_COEFFICIENTS[6]
    series = series * square + _ARTANH_COEFFICIENTS[5]
    series = series * square + _ARTANH_COEFFICIENTS[4]
    series = series * square + _ARTANH_COEFFICIENTS[3]
    series = series * square + _ARTANH_COEFFICIENTS[2]
    series = series * square + _ARTANH_COEFFICIENTS[1]
    series = series * square + _ARTANH_COEFFICIENTS[0]
    return np.float32(2.0) * z * series


@njit(cache=True, error_model="numpy", inline="always")
def largest(values_C):  # type: ignore[no-untyped-def]
    """Return the largest of ``values_C``, of which there is at least one."""
    a = b = c = d = values_C[0]
    whole = values_C.shape[0] // 4 * 4
    for n in range(0, whole, 4):
        a, b = max(a, values_C[n]), max(b, values_C[n + 1])
        c, d = max(c, values_C[n + 2]), max(d, values_C[n + 3])
    for n in range(whole, values_C.shape[0]):
        a = max(a, values_C[n])
    return max(a, b, c, d)


@njit(cache=True, error_model="numpy", inline="always")
def sum_lanes(values_C):  # type: ignore[no-untyped-def]
    """Return the sum of ``values_C``, added up as eight partial sums."""
    a = b = c = d = e = f = g = h = ZERO
    whole = values_C.shape[0] // 8 * 8
    for n in range(0, whole, 8):
        a, b = a + values_C[n], b + values_C[n + 1]
        c, d = c + values_C[n + 2], d + values_C[n + 3]
        e, f = e + values_C[n + 4], f + values_C[n + 5]
        g, h = g + values_C[n + 6], h + values_C[n + 7]
    for n in range(whole, values_C.shape[0]):
        a += values_C[n]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@njit(cache=True, error_model="numpy", inline="always")
def log_sigmoid_loss(x):  # type: ignore[no-untyped-def]
    """Return −log σ(x), and minus its derivative, σ(−x)."""
    power = exp(-abs(x))
    tail = ONE / (ONE + power)
    loss = log1p_of_exp(power) - min(x, ZERO)
    return loss, (power * tail if x >= ZERO else tail)


@njit(cache=True, error_model="numpy", inline="always")
def dot(x_D, y_D):  # type: ignore[no-untyped-def]
    """Return x·y."""
    total = np.float32(0.0)
    for d in range(x_D.shape[0]):
        total += x_D[d] * y_D[d]
    return total
