"""Counter-based random numbers: the published vectors, and that a value depends on its counter alone."""

from itertools import product

import numpy as np
import pytest

from kvstore.arrays import FloatArray
from kvstore.philox import init_rows, permutation, philox, uniform

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
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert philox(*map(np.uint64, counter), *map(np.uint64, key)) == expected


def filled(rows_A: np.ndarray, dim: int = 6, seed: int = 1, table: str = "track", scale: float = 0.1) -> FloatArray:
    out_AD = np.full((len(rows_A), dim), np.nan, dtype=np.float32)
    init_rows(out_AD, rows_A, seed=seed, table=table, std=scale)
    return out_AD


def test_a_filled_row_is_the_same_in_any_order_and_any_subset() -> None:
    whole_ND = filled(np.arange(500))
    for rows_A in (
        np.arange(500)[::-1],
        np.arange(3, 500, 7),
        np.random.default_rng(0).permutation(500),
        np.array([42]),
    ):
        np.testing.assert_array_equal(filled(rows_A), whole_ND[rows_A])


@pytest.mark.parametrize("dim", [1, 3, 4, 5, 8])
def test_a_filled_column_is_the_same_in_tables_of_any_width(dim: int) -> None:
    rows = np.arange(50)
    np.testing.assert_array_equal(filled(rows, dim), filled(rows, 16)[:, :dim])


def test_filled_values_differ_by_row_column_seed_and_table() -> None:
    base = filled(np.arange(100))
    assert len(np.unique(base)) > 590  # of 600: 24 bits seldom repeat
    assert not np.isin(filled(np.arange(100) + 2**32), base).any()
    assert (filled(np.arange(100), seed=2) != base).mean() > 0.99
    assert (filled(np.arange(100), seed=1 + 2**32) != base).mean() > 0.99
    assert (filled(np.arange(100), table="artist") != base).mean() > 0.99


def test_filled_values_are_uniform_with_the_scale_as_standard_deviation() -> None:
    values = filled(np.arange(100_000), dim=5, scale=0.25).astype(np.float64)
    limit = 0.25 * 3**0.5
    assert abs(values.mean()) < 5 * 0.25 / values.size**0.5
    assert values.std() == pytest.approx(0.25, rel=0.005)
    assert -limit * 1.000001 <= values.min() < -limit * 0.9999
    assert limit * 0.9999 < values.max() <= limit * 1.000001
    quarters, _ = np.histogram(values, bins=4, range=(-limit, limit))
    np.testing.assert_allclose(quarters / values.size, 0.25, atol=0.003)


def drawn(positions_N: np.ndarray, **changes: object) -> FloatArray:
    arguments = {"seed": 1, "stream": "negatives", "epoch": 2, "step": 3, "slot": 0}
    return uniform(positions_N, **{**arguments, **changes})


def test_uniform_draws_fill_the_unit_interval() -> None:
    draws_N = drawn(np.arange(200_000))
    assert draws_N.dtype == np.float64
    assert 0.0 <= draws_N.min() < 1e-4
    assert 1.0 - 1e-4 < draws_N.max() < 1.0
    assert draws_N.mean() == pytest.approx(0.5, abs=0.004)
    assert draws_N.var() == pytest.approx(1 / 12, rel=0.01)


def test_uniform_draws_have_53_bits() -> None:
    words_N = drawn(np.arange(1000)) * 2.0**53
    np.testing.assert_array_equal(words_N, np.floor(words_N))
    for bit in range(53):
        assert 400 < ((words_N.astype(np.uint64) >> np.uint64(bit)) & np.uint64(1)).sum() < 600, f"bit {bit}"


def test_uniform_draws_in_chunks_are_those_drawn_at_once() -> None:
    positions_N = np.random.default_rng(0).permutation(1000)
    whole_N = drawn(positions_N)
    chunks = [drawn(chunk) for chunk in np.array_split(positions_N, 7)]
    np.testing.assert_array_equal(np.concatenate(chunks), whole_N)
    np.testing.assert_array_equal(drawn(np.arange(1000))[positions_N], whole_N)


def test_every_part_of_the_counter_gives_other_draws() -> None:
    changes = [
        {"seed": seed, "stream": stream, "epoch": epoch, "step": step, "slot": slot}
        for seed, stream, epoch, step, slot in product((1, 2, 2**32 + 1), ("negatives", "deal"), *[(0, 1)] * 3)
    ]
    draws = np.concatenate([drawn(np.arange(200), **change) for change in changes])
    assert len(np.unique(draws)) == len(draws) == 48 * 200


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_permutation_holds_every_number_once_and_repeats(count: int) -> None:
    first_N, second_N = (permutation(count, seed=5, stream="deal", epoch=1, position=2) for _ in range(2))
    assert first_N.dtype == np.int64
    np.testing.assert_array_equal(np.sort(first_N), np.arange(count))
    np.testing.assert_array_equal(first_N, second_N)


@pytest.mark.parametrize("change", [{"seed": 6}, {"stream": "shuffle"}, {"epoch": 2}, {"position": 3}])
def test_permutations_at_different_counters_differ(change: dict[str, object]) -> None:
    arguments = {"seed": 5, "stream": "deal", "epoch": 1, "position": 2}
    same_places = permutation(1000, **arguments) == permutation(1000, **{**arguments, **change})
    assert same_places.sum() < 20
