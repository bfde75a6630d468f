"""Interactions of a dataset and its base datasets: read together, in the rows of the newest, or refused."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from preparing import forget_dataset, prepare_files, vocabulary_tuples, write_parquet

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import LineageReader, _base_folder, refer_to_base
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.time_values import TimeSpan

pytestmark = pytest.mark.slow

Pair = tuple[str, int]
DAY_1, DAY_2, DAY_3 = ([("a", 1), ("a", 2), ("b", 1)], [("a", 3), ("c", 1)], [("b", 4), ("c", 1), ("d", 5)])


def day(folder: Path, name: str, plays: Sequence[Pair], base: str | None = None, **options: object) -> Path:
    """Prepare ``plays``, one a second from ``at`` on, as the dataset ``name`` that extends ``base``."""
    start = options.pop("at", None)
    columns: dict[str, list[object]] = {"customer": [one for one, _ in plays], "item": [item for _, item in plays]}
    if isinstance(start, int):
        columns["timestamp"] = [start + second for second in range(len(plays))]
        options["timestamp"] = "timestamp"
    raw = write_parquet(folder / f"{name}.parquet", **columns)
    location = None if base is None else str(folder / base)
    prepare_files(folder / name, raw, item="item", base=location, **{"hold_out_valid": "none", **options})  # type: ignore[arg-type]
    return folder / name


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days")
    day(folder, "day1", DAY_1)
    day(folder, "day2", DAY_2, "day1")
    return day(folder, "day3", DAY_3, "day2").parent


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """Copy three days, each on the one before; return the last."""
    return Path(shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)) / "day3"


def opened(data: Path | str, *, this_dataset_only: bool = False) -> LineageReader:
    folder = Folder(str(data))
    return LineageReader(folder, read_manifest(folder), this_dataset_only=this_dataset_only)


def ids(data: Path | str, entity: str) -> list[object]:
    return [row[1] for row in vocabulary_tuples(Folder(str(data)), entity)]


def known(
    data: Path | str, splits: Sequence[str] = ("train", "valid", "test"), *, this_dataset_only: bool = False
) -> list[Pair]:
    """Return what ``read_known`` yields, in order, with the IDs of ``data``."""
    customers, items = ids(data, "customer"), ids(data, "item")
    with closing(opened(data, this_dataset_only=this_dataset_only)) as lineage:
        parts = list(lineage.read_known(splits))
    return [(customers[q], items[i]) for part in parts for q, i in zip(part.query_N, part.item_N, strict=True)]  # type: ignore[misc]


def problem(data: Path, cause: str) -> str:
    with pytest.raises(InputError) as raised:
        known(data)
    assert cause in str(raised.value)
    return str(raised.value)


def test_interactions_of_three_days_are_read_from_the_oldest_on(data: Path) -> None:
    assert sorted(known(data)[:3]) == DAY_1
    assert sorted(known(data)[3:5]) == DAY_2
    assert sorted(known(data)[5:]) == DAY_3
    assert sorted(known(data, this_dataset_only=True)) == DAY_3
    with closing(opened(data)) as lineage:
        assert (lineage.known_rows(["train"]), lineage.train_rows()) == (8, 8)
        items, customers = ids(data, "item"), ids(data, "customer")
        assert dict(zip(items, lineage.counts("item").tolist(), strict=True)) == {1: 4, 2: 1, 3: 1, 4: 1, 5: 1}
        assert dict(zip(customers, lineage.counts("customer").tolist(), strict=True)) == {
            "a": 3,
            "b": 2,
            "c": 2,
            "d": 1,
        }


@pytest.mark.slow
def test_all_splits_of_base_datasets_are_known_and_only_train_counts(tmp_path: Path) -> None:
    test = write_parquet(tmp_path / "test.parquet", customer=["a"], item=[2])
    day(tmp_path, "day1", [("a", 1), ("b", 2)], test=[test])
    data = day(
        tmp_path, "day2", [("a", 3)], "day1", test=[write_parquet(tmp_path / "t2.parquet", customer=["b"], item=[1])]
    )
    assert sorted(known(data, ["train"])) == [("a", 1), ("a", 2), ("a", 3), ("b", 2)]
    assert known(data, []) == []
    customers, items = ids(data, "customer"), ids(data, "item")
    with closing(opened(data)) as lineage:
        pairs = [
            (customers[q], items[i])
            for part in lineage.read_train()
            for q, i in zip(part.query_N, part.item_N, strict=True)
        ]
    assert sorted(pairs) == [("a", 1), ("a", 3), ("b", 2)]


@pytest.mark.slow
def test_rows_that_were_forgotten_or_belong_to_another_id_now_are_left_out(tmp_path: Path) -> None:
    """Customer b and item 2 expire; x gets the row of b. Item 3 is forgotten in the newest dataset only."""
    age = {"customer": TimeSpan.parse("100"), "item": TimeSpan.parse("100")}
    day(tmp_path, "day1", [("a", 1), ("b", 1), ("b", 2), ("a", 3)], at=0, expire_after=age)
    data = day(tmp_path, "day2", [("a", 1), ("a", 3), ("x", 1)], "day1", at=90, expire_after=age)
    assert ids(data, "customer") == ["a", "b", "x"]
    data = day(tmp_path, "day3", [("x", 1), ("y", 1), ("a", 3), ("z", 9)], "day2", at=150, expire_after=age)
    assert set(ids(data, "customer")) == {"a", "x", "y", "z"}
    forget_dataset(Folder(data), pa.array(["3"]), "item", NullReporter())
    assert sorted(known(data)) == [("a", 1), ("a", 1), ("x", 1), ("x", 1), ("y", 1), ("z", 9)]
    with closing(opened(data)) as lineage:
        counts = dict(zip(ids(data, "customer"), lineage.counts("customer").tolist(), strict=True))
    # Plays of items that have expired since, or were forgotten in the newest dataset only, count.
    assert counts == {"a": 4, "x": 2, "y": 1, "z": 1}


@pytest.mark.parametrize(("first", "second"), [(10, 20), (None, 20), (10, None)])
def test_times_are_those_of_the_newest_dataset(tmp_path: Path, first: int | None, second: int | None) -> None:
    """A base dataset without times lies before all of them."""
    day(tmp_path, "day1", [("a", 1)], at=first)
    data = day(tmp_path, "day2", [("a", 2)], "day1", at=second)
    with closing(opened(data)) as lineage:
        times = [part.timestamp_N for part in lineage.read_train(timestamps=True)]
    if second is None:
        assert times == [None, None]
    else:
        earliest = np.iinfo(np.int64).min if first is None else first
        assert [time_N.tolist() for time_N in times if time_N is not None] == [[earliest], [second]]


def test_missing_base_dataset_is_an_error(tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "day1").rename(tmp_path / "elsewhere")
    assert f"{tmp_path / 'day1'}: cannot be used as the base dataset of {data}" in problem(
        data, "no such file; expected a folder written by"
    )
    assert sorted(known(data, this_dataset_only=True)) == DAY_3
    assert f"{data}: its history is read from this dataset only, without its base dataset ../day2" in caplog.text
    assert len(known(tmp_path / "elsewhere")) == 3


def test_base_dataset_that_was_prepared_again_is_an_error(tmp_path: Path, data: Path) -> None:
    day(tmp_path, "day2", [("a", 9), ("c", 1)], "day1", overwrite=True)
    assert str(tmp_path / "day2") in problem(data, "another dataset has replaced it since it was extended")


def test_corrupt_file_of_a_base_dataset_is_an_error(tmp_path: Path, data: Path) -> None:
    [part] = (tmp_path / "day1" / "train").iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    assert part.name in problem(data, "it was truncated or replaced")


def test_base_dataset_of_an_earlier_version_or_outside_the_lineage_ends_the_search(data: Path) -> None:
    """A manifest that refers to itself, or to a dataset that it does not list, is not followed."""
    folder, manifest = Folder(data), read_manifest(Folder(data))
    manifest.model_copy(update={"base": None}).write(folder)
    problem(data, "was prepared by an earlier version, which did not record where")
    manifest.model_copy(update={"lineage": manifest.lineage[:1]}).write(folder)
    assert "does not list it in its lineage" in problem(data, "does not list it in its lineage")


@pytest.mark.parametrize(
    ("base", "data", "moved", "found"),
    [
        ("/a/day1", "/b/day2", "/x/b/day2", "/x/a/day1"),
        ("/a/day1", "/b/day2", "s3://music/b/day2", "s3://music/a/day1"),
        ("s3://music/a/day1", "s3://music/a/day2", "/x/day2", "/x/day1"),
        ("s3://music/day1", "s3://other/day2", "/x/day2", "s3://music/day1"),
        ("/a/day1", "s3://music/day2", "s3://other/day2", "/a/day1"),
    ],
)
def test_base_dataset_is_found_beside_a_dataset_that_was_moved(base: str, data: str, moved: str, found: str) -> None:
    assert _base_folder(Folder(moved), refer_to_base(Folder(base), 1, Folder(data))).uri == found
