"""The layout holds every row once, finds it again, and balances popular rows over servers."""

from itertools import product

import numpy as np
import pytest

from crossfade.kvstore.mxnet.server_protocol import ALL_REDUCE_KEY, TableLayout, make_layout, server_of, status_key
from crossfade.kvstore.store import VALUE_BYTES, TableSpec

DIM = 4
ROW_BYTES = DIM * VALUE_BYTES
ROWS = [1, 2, 3, 7, 64, 1000]
SERVERS = [1, 2, 3, 5]
MAX_KEY_BYTES = [ROW_BYTES, 10 * ROW_BYTES, 64 * ROW_BYTES, 2**20]


def layout_of(rows: int, servers: int, max_key_bytes: int) -> TableLayout:
    (layout,) = make_layout([TableSpec("track", rows, DIM, 0.1)], servers, max_key_bytes)
    return layout


LAYOUTS = [layout_of(*arguments) for arguments in product(ROWS, SERVERS, MAX_KEY_BYTES)]
every_layout = pytest.mark.parametrize(
    "layout", LAYOUTS, ids=[f"{layout.table.rows}r-{layout.servers}s-{layout.num_shards}k" for layout in LAYOUTS]
)


def requests_of(layout: TableLayout) -> list[np.ndarray]:
    rows = layout.table.rows
    some = np.flatnonzero(np.random.default_rng(rows).random(rows) < 0.3)
    return [np.arange(rows), some, np.arange(0, rows, 3), np.array([rows - 1]), np.empty(0, np.int64)]


@every_layout
def test_split_yields_every_row_of_a_request_exactly_once(layout: TableLayout) -> None:
    for rows_A in requests_of(layout):
        parts = list(layout.split(rows_A))
        assert [part.key for part in parts] == list(layout.key_numbers)
        assert sorted(np.concatenate([part.order_A for part in parts])) == list(range(len(rows_A)))
        for part in parts:
            assert len(part.order_A) == len(part.positions_A)
            assert (np.diff(part.positions_A) > 0).all(), "positions in a key are sorted and unique"
            assert ((part.positions_A >= 0) & (part.positions_A < layout.key_shape[0])).all()


@every_layout
def test_rows_of_shards_invert_split(layout: TableLayout) -> None:
    held_by_key = {key: layout.rows_of(layout.shard_of(key)) for key in layout.key_numbers}
    for rows_A in requests_of(layout):
        for part in layout.split(rows_A):
            np.testing.assert_array_equal(held_by_key[part.key][part.positions_A], rows_A[part.order_A])
    held = np.sort(np.concatenate(list(held_by_key.values())))
    np.testing.assert_array_equal(held, np.arange(len(held)))  # each row once, then the padding
    assert layout.table.rows <= len(held) < layout.table.rows + layout.num_shards


@every_layout
def test_servers_hold_equal_shares_of_keys_and_of_popular_rows(layout: TableLayout) -> None:
    keys_by_server = [
        [key for key in layout.key_numbers if server_of(key, layout.servers) == server]
        for server in range(layout.servers)
    ]
    assert {len(keys) for keys in keys_by_server} == {layout.keys_per_server}
    for popular in {1, 2, 10, layout.table.rows // 2, layout.table.rows}:
        counts = [
            sum(int((layout.rows_of(layout.shard_of(key)) < min(popular, layout.table.rows)).sum()) for key in keys)
            for keys in keys_by_server
        ]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("rows", "servers", "max_key_bytes"), list(product(ROWS, SERVERS, MAX_KEY_BYTES)))
def test_key_stays_within_max_key_bytes_or_has_one_row(rows: int, servers: int, max_key_bytes: int) -> None:
    layout = layout_of(rows, servers, max_key_bytes)
    rows_of_key, dim = layout.key_shape
    assert dim == DIM
    assert rows_of_key * ROW_BYTES <= max(max_key_bytes, ROW_BYTES)


def test_tables_share_no_key_and_no_reserved_key() -> None:
    tables = [TableSpec(name, rows, DIM, 0.1) for name, rows in (("customer", 100), ("track", 7), ("artist", 1))]
    layouts = make_layout(tables, servers=2, max_key_bytes=20 * ROW_BYTES)
    assert [layout.table for layout in layouts] == tables
    keys = [key for layout in layouts for key in layout.key_numbers]
    reserved = [ALL_REDUCE_KEY, *(status_key(server, servers=2) for server in range(2))]
    assert sorted([*reserved, *keys]) == list(range(len(keys) + 3))
