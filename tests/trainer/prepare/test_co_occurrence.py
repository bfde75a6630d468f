"""What the items of a query say about each other, for data of which that follows from how it was made."""

from pathlib import Path

import numpy as np
import pytest

from crossfade.base.arrays import IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import CoOccurrence, read_manifest
from crossfade.trainer.prepare.co_occurrence import co_occurrence
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare


def communities(count: int, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Return plays of 2,000 customers, 20 each, of the 400 tracks, divided among communities that share no track."""
    generator = np.random.default_rng(seed)
    customer_N = np.repeat(np.arange(2_000), 20)
    return customer_N, customer_N % count + count * generator.integers(400 // count, size=len(customer_N))


@pytest.mark.parametrize("count", [1, 4, 20])
def test_lift_is_the_number_of_communities_that_share_nothing(count: int) -> None:
    """Customers of a track are those of one community, so they play its other tracks that many times as often."""
    customer_N, item_N = communities(count)
    found = co_occurrence(customer_N, item_N)
    pairs = len(np.unique(customer_N * 400 + item_N))
    assert found.lift == pytest.approx(count, rel=0.08)
    assert found.items_per_query == pytest.approx(pairs / 2_000, rel=0.01)


def test_popularity_and_activity_alone_give_no_lift() -> None:
    generator = np.random.default_rng(1)
    customer_N, item_N = (np.floor(rows * generator.random(60_000) ** 1.5).astype(np.int64) for rows in (5_000, 3_000))
    assert co_occurrence(customer_N, item_N).lift == pytest.approx(1, abs=0.1)


def test_queries_with_many_items_count_no_more_than_others() -> None:
    """Ten customers who played most of the tracks have nearly all pairs, and say nothing about them."""
    customer_N, item_N = communities(4)
    heavy_N, played_N = (ids_N.ravel() for ids_N in np.meshgrid(np.arange(2_000, 2_010), np.arange(0, 400, 2)))
    joined = np.concatenate([customer_N, heavy_N]), np.concatenate([item_N, played_N])
    assert co_occurrence(*joined).lift == pytest.approx(4, rel=0.15)


def test_names_and_order_of_rows_and_repeated_plays_change_nothing() -> None:
    customer_N, item_N = communities(4)
    order_N = np.random.default_rng(2).permutation(2 * len(customer_N))
    twice = (np.concatenate([ids_N, ids_N])[order_N] * 7 + 3 for ids_N in (customer_N, item_N))
    assert co_occurrence(*twice) == co_occurrence(customer_N, item_N)


@pytest.mark.parametrize("rows", [0, 1, 5, 500])
def test_without_pairs_or_items_in_common_lift_is_one(rows: int) -> None:
    row_N = np.arange(rows)
    for customer_N, items in ((row_N, 1), (row_N // 5, 5), (np.zeros_like(row_N), rows)):
        expected = CoOccurrence(lift=1, items_per_query=max(min(items, rows), 1))
        assert co_occurrence(customer_N, row_N) == expected


@pytest.mark.slow
def test_prepare_measures_train(tmp_path: Path) -> None:
    customer_N, item_N = communities(4)
    lines = "".join(f"{customer},{item}\n" for customer, item in zip(customer_N, item_N, strict=True))
    (tmp_path / "plays.csv").write_text("customer,item\n" + lines)
    for threads in (1, 3):
        out = tmp_path / f"data-{threads}"
        prepare(PrepareOptions.of(train=[tmp_path / "plays.csv"], out=out, threads=threads))
    found = read_manifest(Folder(tmp_path / "data-1")).co_occurrence
    assert found is not None
    assert found.lift == pytest.approx(4, rel=0.05)
    assert found == read_manifest(Folder(tmp_path / "data-3")).co_occurrence
