"""Counter-based random numbers match published vectors and depend only on their counter."""

from itertools import product

import numpy as np
import pytest

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.philox import init_rows, permutation, philox, uniform

ALL_ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_matches_the_vectors_of_random123(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert philox(*map(np.uint64, counter), *map(np.uint64, key)) == expected


def initial_rows(rows_A: np.ndarray, dim: int = 6, seed: int = 1, table: str = "track", std: float = 0.1) -> FloatArray:
    out_AD = np.full((len(rows_A), dim), np.nan, dtype=np.float32)
    init_rows(out_AD, rows_A, seed=seed, table=table, std=std)
    return out_AD


@pytest.mark.slow
def test_initial_row_is_the_same_in_any_order_and_subset() -> None:
    all_ND = initial_rows(np.arange(500))
    for rows_A in (
        np.arange(500)[::-1],
        np.arange(3, 500, 7),
        np.random.default_rng(0).permutation(500),
        np.array([42]),
    ):
        np.testing.assert_array_equal(initial_rows(rows_A), all_ND[rows_A])


@pytest.mark.parametrize("dim", [1, 3, 4, 5, 8])
def test_initial_column_is_the_same_in_tables_of_any_width(dim: int) -> None:
    rows = np.arange(50)
    np.testing.assert_array_equal(initial_rows(rows, dim), initial_rows(rows, 16)[:, :dim])


def test_initial_values_differ_by_row_column_seed_and_table() -> None:
    base = initial_rows(np.arange(100))
    assert len(np.unique(base)) > 590  # of 600: values of 24 bits rarely repeat
    assert not np.isin(initial_rows(np.arange(100) + 2**32), base).any()
    assert (initial_rows(np.arange(100), seed=2) != base).mean() > 0.99
    assert (initial_rows(np.arange(100), seed=1 + 2**32) != base).mean() > 0.99
    assert (initial_rows(np.arange(100), table="artist") != base).mean() > 0.99


def test_initial_values_are_uniform_with_the_given_standard_deviation() -> None:
    values = initial_rows(np.arange(100_000), dim=5, std=0.25).astype(np.float64)
    limit = 0.25 * 3**0.5
    assert abs(values.mean()) < 5 * 0.25 / values.size**0.5
    assert values.std() == pytest.approx(0.25, rel=0.005)
    assert -limit * 1.000001 <= values.min() < -limit * 0.9999
    assert limit * 0.9999 < values.max() <= limit * 1.000001
    quarters, _ = np.histogram(values, bins=4, range=(-limit, limit))
    np.testing.assert_allclose(quarters / values.size, 0.25, atol=0.003)


def draw(positions_N: np.ndarray, **changes: object) -> FloatArray:
    arguments = {"seed": 1, "stream": "negatives", "epoch": 2, "step": 3, "slot": 0}
    return uniform(positions_N, **{**arguments, **changes})


def test_uniform_draws_have_53_bits() -> None:
    words_N = draw(np.arange(1000)) * 2.0**53
    np.testing.assert_array_equal(words_N, np.floor(words_N))
    for bit in range(53):
        assert 400 < ((words_N.astype(np.uint64) >> np.uint64(bit)) & np.uint64(1)).sum() < 600, f"bit {bit}"


def test_draws_differ_by_every_part_of_the_counter() -> None:
    changes = [
        {"seed": seed, "stream": stream, "epoch": epoch, "step": step, "slot": slot}
        for seed, stream, epoch, step, slot in product((1, 2, 2**32 + 1), ("negatives", "deal"), *[(0, 1)] * 3)
    ]
    draws = np.concatenate([draw(np.arange(200), **change) for change in changes])
    assert len(np.unique(draws)) == len(draws) == 48 * 200


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_permutation_has_every_number_once_and_repeats(count: int) -> None:
    first_N, second_N = (permutation(count, seed=5, stream="deal", epoch=1, position=2) for _ in range(2))
    assert first_N.dtype == np.int64
    np.testing.assert_array_equal(np.sort(first_N), np.arange(count))
    np.testing.assert_array_equal(first_N, second_N)
