"""What the items of a query say about each other, for data of which that follows from how it was made."""

from pathlib import Path

import numpy as np
import pytest

from crossfade.base.arrays import IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare import co_occurrence as co_occurrence_module
from crossfade.trainer.prepare.co_occurrence import co_occurrence, with_co_occurrence
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.runs.job_inputs import load_inputs


def communities(count: int, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Return plays of 2,000 customers, 20 each, of the 400 tracks, divided among communities that share no track."""
    generator = np.random.default_rng(seed)
    customer_N = np.repeat(np.arange(2_000), 20)
    return customer_N, customer_N % count + count * generator.integers(400 // count, size=len(customer_N))


def lift_of(customer_N: IntArray, item_N: IntArray) -> float:
    found = co_occurrence(customer_N, item_N)
    assert found is not None
    return found.lift


@pytest.mark.parametrize("count", [1, 4, 20])
def test_lift_is_the_number_of_communities_that_share_nothing(count: int) -> None:
    """Customers of a track are those of one community, so they play its other tracks that many times as often."""
    customer_N, item_N = communities(count)
    found = co_occurrence(customer_N, item_N)
    assert found is not None
    pairs = len(np.unique(customer_N * 400 + item_N))
    assert found.lift == pytest.approx(count, rel=0.08)
    assert found.items_per_query == pytest.approx(pairs / 2_000, rel=0.01)


def test_popularity_and_activity_alone_give_no_lift() -> None:
    generator = np.random.default_rng(1)
    customer_N, item_N = (np.floor(rows * generator.random(60_000) ** 1.5).astype(np.int64) for rows in (5_000, 3_000))
    assert lift_of(customer_N, item_N) == pytest.approx(1, abs=0.1)


def test_queries_with_many_items_count_no_more_than_others() -> None:
    """Ten customers who played most of the tracks have nearly all pairs, and say nothing about them."""
    customer_N, item_N = communities(4)
    heavy_N, played_N = (ids_N.ravel() for ids_N in np.meshgrid(np.arange(2_000, 2_010), np.arange(0, 400, 2)))
    joined = np.concatenate([customer_N, heavy_N]), np.concatenate([item_N, played_N])
    assert lift_of(*joined) == pytest.approx(4, rel=0.15)


def test_names_and_order_of_rows_and_repeated_plays_change_nothing() -> None:
    customer_N, item_N = communities(4)
    order_N = np.random.default_rng(2).permutation(2 * len(customer_N))
    twice = (np.concatenate([ids_N, ids_N])[order_N] * 7 + 3 for ids_N in (customer_N, item_N))
    assert co_occurrence(*twice) == co_occurrence(customer_N, item_N)


@pytest.mark.parametrize("rows", [0, 1, 5, 500])
def test_too_few_items_in_common_say_nothing(rows: int) -> None:
    row_N = np.arange(rows)
    for customer_N in (row_N, row_N // 5, np.zeros_like(row_N)):
        assert co_occurrence(customer_N, row_N) is None


def write_plays(folder: Path, name: str, customer_N: IntArray, item_N: IntArray, weight: int = 1) -> Path:
    lines = (f"{customer},{item},{weight}\n" for customer, item in zip(customer_N, item_N, strict=True))
    (folder / name).write_text("customer,item,weight\n" + "".join(lines))
    return folder / name


@pytest.mark.slow
def test_prepare_measures_positive_interactions_of_train(tmp_path: Path) -> None:
    """Neither skips nor customers of test alone change it, nor the number of threads; a run's temperature follows."""
    customer_N, item_N = communities(4)
    many_N = np.tile(customer_N, 4), np.tile(item_N, 4)  # more than DuckDB gives to one thread
    train = [write_plays(tmp_path, "plays.csv", *many_N)]
    other_N = np.repeat(np.arange(2_000, 9_000), 2)
    test = [write_plays(tmp_path, "test.csv", other_N, other_N % 400)]
    skips = write_plays(
        tmp_path, "skips.csv", np.repeat(np.arange(9_000, 9_100), 400), np.tile(np.arange(400), 100), -1
    )
    found = []
    for name, options in {
        "plain": {"train": train, "threads": 1},
        "more": {"train": [*train, skips], "test": test, "threads": 3},
    }.items():
        prepare(PrepareOptions.of(weight="weight", hold_out_valid="none", out=tmp_path / name, **options))
        found.append(read_manifest(Folder(tmp_path / name)).co_occurrence)
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].lift == pytest.approx(4, rel=0.05)
    assert found[1].lift == pytest.approx(found[0].lift, rel=0.02)
    assert found[1].items_per_query == found[0].items_per_query
    job = make_job(f"{{name: plays, data: {{path: {tmp_path / 'plain'}}}}}", "a test", [])
    expected = 0.588 * found[0].lift ** -0.45 * found[0].items_per_query ** -0.25
    assert load_inputs(job).job.model.temperature == pytest.approx(expected, abs=0.006)


@pytest.mark.slow
def test_large_dataset_is_measured_on_whole_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One customer played everything, and counts no more than others; parts of queries would have fewer items."""
    for name, value in {"_MAX_INTERACTIONS": 10_000, "_MIN_QUERIES": 300, "_MAX_ITEMS": 30}.items():
        monkeypatch.setattr(co_occurrence_module, name, value)
    customer_N, item_N = communities(4)
    heavy_N = np.concatenate([customer_N, np.full(4_000, 2_000)]), np.concatenate([item_N, np.arange(4_000) % 400])
    plays = write_plays(tmp_path, "plays.csv", *heavy_N)
    prepare(PrepareOptions.of(train=[plays], hold_out_valid="none", out=tmp_path / "out"))
    found = read_manifest(Folder(tmp_path / "out")).co_occurrence
    assert found is not None
    assert found.lift == pytest.approx(4, rel=0.1)
    assert found.items_per_query == pytest.approx(18.2, rel=0.02)


@pytest.mark.slow
def test_sample_has_the_first_interactions_of_each_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One customer's plays beyond the first 30 neither count nor fill the sample, which has several row groups."""
    counts_Q = np.append(np.full(100, 20), 4_000)
    plays = write_plays(tmp_path, "plays.csv", np.repeat(np.arange(101), counts_Q), np.arange(6_000) % 4_000)
    prepare(PrepareOptions.of(train=[plays], hold_out_valid="none", out=tmp_path / "out"))
    manifest = read_manifest(Folder(tmp_path / "out")).model_copy(update={"co_occurrence": None})
    sampled: list[IntArray] = []
    monkeypatch.setattr(co_occurrence_module, "co_occurrence", lambda query_N, _: sampled.append(np.bincount(query_N)))
    monkeypatch.setattr(co_occurrence_module, "_MIN_QUERIES", 5)
    monkeypatch.setattr(co_occurrence_module, "_MAX_ITEMS", 30)
    for limit in (2_500, 10_000):
        monkeypatch.setattr(co_occurrence_module, "_MAX_INTERACTIONS", limit)
        with_co_occurrence(Folder(tmp_path / "out"), manifest, NullReporter())
        assert sorted(sampled.pop()) == [20] * 100 + [30]


@pytest.mark.slow
def test_dataset_has_the_co_occurrence_of_its_base(tmp_path: Path) -> None:
    plays = write_plays(tmp_path, "plays.csv", *communities(4))
    day = write_plays(tmp_path, "day.csv", *communities(20))
    prepare(PrepareOptions.of(train=[plays], out=tmp_path / "base"))
    prepare(PrepareOptions.of(train=[day], base=tmp_path / "base", out=tmp_path / "next"))
    base, after = (read_manifest(Folder(tmp_path / name)).co_occurrence for name in ("base", "next"))
    assert base is not None
    assert base == after
