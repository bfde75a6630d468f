"""Rows between hosts as bfloat16: the bits of a reference in numpy, repeatable, and without bias."""

import zlib
from functools import partial

import numpy as np
import pytest
from drive_store import SEED, optimizer
from sharded_ranks import running_ranks

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.philox import philox
from crossfade.kvstore.sharded import WireDtype
from crossfade.kvstore.sharded.ranks import Ranks
from crossfade.kvstore.sharded.store import ShardedStore
from crossfade.kvstore.store import RowGradient, TableSpec

WIDE, NARROW = TableSpec("customer", rows=700, dim=19, init_std=0.1), TableSpec("track", rows=80, dim=5, init_std=0.5)
TABLES = [WIDE, NARROW]
ROUNDED: tuple[WireDtype, WireDtype] = ("bfloat16", "stochastic_bfloat16")
STEPS = 3
FIRST_STEP = 41
SPECIAL_BITS = [
    *(0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x3F80_7FFF, 0xBF80_8000, 0x0000_0001, 0x8000_0000, 0x0001_8000),
    *(0x7F80_0000, 0xFF80_0000, 0x7F7F_FFFF, 0x7F7F_0000, 0x7F80_0001, 0xFFC0_0000, 0x7FFF_FFFF, 0xFF80_FFFF),
]
"""Ties, numbers next to them, denormals, infinity, the largest numbers, and kinds of NaN."""


def bits_of(values: FloatArray) -> IntArray:
    return np.ascontiguousarray(values).view(np.uint32).astype(np.int64)


def cut(sums: IntArray, values: FloatArray) -> FloatArray:
    """Return numbers with the upper half of the bits of ``sums``; NaN where ``values`` are, with the same sign."""
    bits = np.where(np.isnan(values), bits_of(values) | 0x40_0000, sums)
    return (bits & 0xFFFF_0000).astype(np.uint32).view(np.float32)


def nearest(values_AD: FloatArray) -> FloatArray:
    """Round to the nearest bfloat16, and between two to the even one."""
    bits = bits_of(values_AD)
    return cut(bits + 0x7FFF + (bits >> 16) % 2, values_AD)


def at_random(values_AD: FloatArray, rows_A: IntArray, stream: str, step: int) -> FloatArray:
    """Round by the numbers of rows and columns, 16 bits of a word each, those of an even column first."""
    addends_AD = np.zeros(values_AD.shape, np.int64)
    for (a, d), _ in np.ndenumerate(values_AD):
        counter = (rows_A[a], 0, d // 8, step, SEED, zlib.crc32(stream.encode()))
        word = int(philox(*map(np.uint64, counter))[d % 8 // 2])
        addends_AD[a, d] = word >> 16 if d % 2 else word & 0xFFFF
    return cut(bits_of(values_AD) + addends_AD, values_AD)


def rounded(dtype: WireDtype, values_AD: FloatArray, rows_A: IntArray, stream: str, step: int) -> FloatArray:
    return nearest(values_AD) if dtype == "bfloat16" else at_random(values_AD, rows_A, stream, step)


def some_rows(step: int, rank: int, table: TableSpec) -> IntArray:
    generator = np.random.default_rng((step, rank, table.dim))
    return np.sort(generator.choice(table.rows, table.rows // 3, replace=False))


def some_gradient(step: int, rank: int, table: TableSpec) -> RowGradient:
    rows_A = some_rows(step, rank, table)
    values_AD = np.random.default_rng((step, rank)).normal(size=(len(rows_A), table.dim)).astype(np.float32)
    return RowGradient(rows_A, values_AD)


def create(store: ShardedStore) -> None:
    store.first_step = FIRST_STEP
    store.create(TABLES, optimizer("sgd"), SEED)


def take_steps(store: ShardedStore) -> list[dict[str, FloatArray]]:
    """Return the rows that each step pulls, and all rows afterwards."""
    create(store)
    found = []
    for step in range(STEPS):
        gradients = {table.name: some_gradient(step, store.rank, table) for table in TABLES}
        found.append(store.pull({name: each.rows_A for name, each in gradients.items()}))
        store.push(gradients)
    found.append(store.pull({table.name: np.arange(table.rows) for table in TABLES}, exact=True))
    return found


def expected_steps(dtype: WireDtype, ranks: int) -> list[list[dict[str, FloatArray]]]:
    """Return what each of ``ranks`` ranks on hosts of their own finds in ``take_steps``, from a store in process."""
    local = LocalStore()
    local.create(TABLES, optimizer("sgd"), SEED)
    found: list[list[dict[str, FloatArray]]] = [[] for _ in range(ranks)]
    for step in range(STEPS):
        pushed = {}
        for table in TABLES:
            sums_RD, is_pushed_R = np.zeros((table.rows, table.dim), np.float32), np.zeros(table.rows, bool)
            for rank in range(ranks):
                gradient = some_gradient(step, rank, table)
                rows_A, values_AD = gradient.rows_A, gradient.values_AD
                held_AD = local.pull({table.name: rows_A})[table.name]
                is_own_A1 = rows_A[:, None] % ranks == rank
                pulled_AD = rounded(dtype, held_AD, rows_A, f"pull {table.name}", FIRST_STEP + step)
                found[rank] += [{}] if len(found[rank]) == step else []
                found[rank][step][table.name] = np.where(is_own_A1, held_AD, pulled_AD)
                sent_AD = rounded(dtype, values_AD, rows_A, f"push {rank} {table.name}", FIRST_STEP + step)
                sums_RD[rows_A] += np.where(is_own_A1, values_AD, sent_AD)
                is_pushed_R[rows_A] = True
            pushed[table.name] = RowGradient(np.flatnonzero(is_pushed_R), sums_RD[is_pushed_R])
        local.push(pushed)
    held = local.pull({table.name: np.arange(table.rows) for table in TABLES})
    return [[*steps, held] for steps in found]


def assert_same_bits(found: list[dict[str, FloatArray]], expected: list[dict[str, FloatArray]]) -> None:
    assert len(found) == len(expected)
    for step, (tables, others) in enumerate(zip(found, expected, strict=True)):
        for name, values_AD in others.items():
            assert tables[name].tobytes() == values_AD.tobytes(), (step, name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ROUNDED)
def test_rows_and_gradients_between_hosts_are_rounded_as_the_reference_rounds_them(dtype: WireDtype) -> None:
    with running_ranks(2, hosts=2, wire_dtype=dtype) as ranks:
        by_rank = ranks.each(take_steps)
        again = ranks.each(take_steps)
    for found, repeated, expected in zip(by_rank, again, expected_steps(dtype, 2), strict=True):
        assert_same_bits(found, expected)
        assert_same_bits(repeated, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ROUNDED)
def test_rows_in_shared_memory_are_not_rounded(dtype: WireDtype) -> None:
    with running_ranks(2) as ranks:
        expected = ranks.each(take_steps)
    with running_ranks(2, wire_dtype=dtype) as ranks:
        for found, plain in zip(ranks.each(take_steps), expected, strict=True):
            assert_same_bits(found, plain)
    with running_ranks(4, hosts=2, wire_dtype=dtype) as ranks:  # ranks 0 and 2 share a host
        held = ranks.each(lambda store: (create(store), pull_all(store, exact=True))[1])[0]
        mixed = ranks.each(pull_all)[0]
    own_R, other_R = (np.flatnonzero(np.isin(np.arange(WIDE.rows) % 4, owners)) for owners in ((0, 2), (1, 3)))
    np.testing.assert_array_equal(mixed[own_R], held[own_R])
    assert (mixed[other_R] != held[other_R]).mean() > 0.9


def pull_all(store: ShardedStore, *, exact: bool = False) -> FloatArray:
    return store.pull({WIDE.name: np.arange(WIDE.rows)}, exact=exact)[WIDE.name]


@pytest.mark.parametrize("dtype", ROUNDED)
def test_assigned_rows_arrive_whole_and_special_values_are_rounded_without_losing_nan(dtype: WireDtype) -> None:
    special = np.array([*SPECIAL_BITS, 0, 0, 0], np.uint32).view(np.float32)
    rows_A = np.array([2, 3])  # one of each rank

    def work(store: ShardedStore) -> tuple[FloatArray, FloatArray]:
        create(store)
        store.assign(WIDE.name, rows_A, np.stack([special, special]))
        return tuple(store.pull({WIDE.name: rows_A}, exact=exact)[WIDE.name] for exact in (True, False))

    with running_ranks(2, hosts=2, wire_dtype=dtype) as ranks:
        by_rank = ranks.each(work)
    for rank, (exact_AD, pulled_AD) in enumerate(by_rank):
        assert exact_AD.tobytes() == np.stack([special, special]).tobytes()
        sent_AD = rounded(dtype, exact_AD, rows_A, f"pull {WIDE.name}", FIRST_STEP)
        assert pulled_AD[1 - rank].tobytes() == sent_AD[1 - rank].tobytes()
        assert pulled_AD[rank].tobytes() == special.tobytes()
        np.testing.assert_array_equal(np.isnan(pulled_AD), np.isnan(exact_AD))


def test_random_rounding_has_no_bias_and_depends_on_seed_and_step() -> None:
    steps, ulp = 400, 2.0**-7
    table = TableSpec("track", rows=16, dim=16, init_std=0.1)
    rows_A = np.arange(1, 16, 2)  # those of rank 1
    values_AD = (1 + ulp * np.linspace(0, 1, 8 * 16, endpoint=False)).reshape(8, 16).astype(np.float32)

    def work(store: ShardedStore, seed: int) -> list[FloatArray]:
        store.create([table], optimizer("sgd"), seed)
        store.assign(table.name, rows_A, values_AD)
        pulled = []
        for step in range(steps):
            store.first_step = step
            pulled.append(store.pull({table.name: rows_A})[table.name])
        return pulled

    with running_ranks(2, hosts=2, wire_dtype="stochastic_bfloat16") as ranks:
        drawn, others = (np.stack(ranks.each(partial(work, seed=seed))[0]) for seed in (SEED, SEED + 1))
    assert set(np.unique(drawn)) == {np.float32(1), np.float32(1 + ulp)}
    up = (values_AD.astype(np.float64) - 1) / ulp
    deviation = np.sqrt(up * (1 - up) / steps) * ulp
    error = drawn.mean(axis=0, dtype=np.float64) - values_AD
    assert (np.abs(error) <= 5 * deviation).all()
    assert abs(error.mean()) < 5 * np.sqrt((deviation**2).sum()) / error.size
    by_step, by_row, by_column = (np.moveaxis(drawn, axis, 0) for axis in range(3))
    for a, b in ((drawn, others), *((each[:-1], each[1:]) for each in (by_step, by_row, by_column))):
        assert 0.3 < (a != b).mean() < 0.4  # a third of independent draws differ, an eighth at most of equal ones


def test_rounded_rows_take_half_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, int] = {}
    exchange = Ranks.exchange

    def count(ranks: Ranks, sent_W: IntArray, received_W: IntArray) -> list[np.ndarray]:
        sent[dtype] = max(sent.get(dtype, 0), int(sent_W.sum()))
        return exchange(ranks, sent_W, received_W)

    monkeypatch.setattr(Ranks, "exchange", count)
    dtypes: tuple[WireDtype, ...] = ("float32", *ROUNDED)
    for dtype in dtypes:
        with running_ranks(2, hosts=2, wire_dtype=dtype) as ranks:
            ranks.each(lambda store: (create(store), pull_all(store)))
    assert sent["float32"] == 350 * 19 * 4
    assert sent["bfloat16"] == sent["stochastic_bfloat16"] == 350 * 19 * 2
