"""The lift of co-occurrence: what it is for data whose lift follows from how they were made."""

from pathlib import Path

import numpy as np
import pytest

from crossfade.base.arrays import IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare.co_occurrence import co_occurrence_lift
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
    assert co_occurrence_lift(*communities(count)) == pytest.approx(count, rel=0.08)


def test_popularity_and_activity_alone_give_no_lift() -> None:
    generator = np.random.default_rng(1)
    customer_N, item_N = (np.floor(rows * generator.random(60_000) ** 1.3).astype(np.int64) for rows in (5_000, 3_000))
    assert co_occurrence_lift(customer_N, item_N) == pytest.approx(1, abs=0.1)


def test_names_and_order_of_rows_and_repeated_plays_change_nothing() -> None:
    customer_N, item_N = communities(4)
    order_N = np.random.default_rng(2).permutation(2 * len(customer_N))
    twice = (np.concatenate([ids_N, ids_N])[order_N] * 7 + 3 for ids_N in (customer_N, item_N))
    assert co_occurrence_lift(*twice) == co_occurrence_lift(customer_N, item_N)


@pytest.mark.parametrize("rows", [0, 1, 5, 500])
def test_without_pairs_or_items_in_common_it_is_one(rows: int) -> None:
    row_N = np.arange(rows)
    for customer_N in (row_N, row_N // 5, np.zeros_like(row_N)):
        assert co_occurrence_lift(customer_N, row_N) == 1


@pytest.mark.slow
def test_prepare_measures_the_lift_of_train(tmp_path: Path) -> None:
    customer_N, item_N = communities(4)
    lines = "".join(f"{customer},{item}\n" for customer, item in zip(customer_N, item_N, strict=True))
    (tmp_path / "plays.csv").write_text("customer,item\n" + lines)
    for threads in (1, 3):
        out = tmp_path / f"data-{threads}"
        prepare(PrepareOptions.of(train=[tmp_path / "plays.csv"], out=out, threads=threads))
        assert read_manifest(Folder(out)).co_occurrence_lift == pytest.approx(4, rel=0.08)
    assert (tmp_path / "data-1/manifest.json").read_text() == (tmp_path / "data-3/manifest.json").read_text()
