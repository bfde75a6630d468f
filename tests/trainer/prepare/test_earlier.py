"""A dataset carries the interactions of the datasets that it extends, and is read, moved, and deleted by itself."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import forget_dataset, prepare_files, vocabulary_tuples, write_parquet

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DataFile, read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare import earlier
from crossfade.trainer.prepare.earlier import BEFORE_ALL
from crossfade.trainer.prepare.options import ValidateOptions
from crossfade.trainer.prepare.validate import validate

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


def opened(data: Path) -> LineageReader:
    return LineageReader(Folder(data), read_manifest(Folder(data)))


def ids(data: Path, entity: str) -> list[object]:
    return [row[1] for row in vocabulary_tuples(data, entity)]


def known(data: Path, splits: Sequence[str] = ALL_SPLITS, lineage: LineageReader | None = None) -> list[Pair]:
    """Return what ``read_known`` yields, in order, with the IDs of ``data``."""
    customers, items = ids(data, "customer"), ids(data, "item")
    with closing(lineage or opened(data)) as reader:
        parts = list(reader.read_known(splits))
    return [(customers[q], items[i]) for part in parts for q, i in zip(part.query_N, part.item_N, strict=True)]  # type: ignore[misc]


def counts(data: Path, entity: str) -> dict[object, int]:
    with closing(opened(data)) as lineage:
        return dict(zip(ids(data, entity), lineage.counts(entity).tolist(), strict=True))


def problems(data: Path) -> list[str]:
    return validate(ValidateOptions.of(data=data), NullReporter()).problems.listed


def earlier_files(data: Path) -> list[DataFile]:
    return [file for split in read_manifest(Folder(data)).earlier.values() for file in split.files]


def test_dataset_reads_all_days_from_the_earliest_on_and_needs_none_of_them(tmp_path: Path, data: Path) -> None:
    for name in ("day1", "day2"):
        shutil.rmtree(tmp_path / name)
    moved = data.rename(tmp_path / "moved")
    assert sorted(known(moved)[:3]) == DAY_1
    assert sorted(known(moved)[3:5]) == DAY_2
    assert sorted(known(moved)[5:]) == DAY_3
    with closing(opened(moved)) as lineage:
        assert (lineage.known_rows(["train"]), lineage.train_rows()) == (8, 8)
    assert counts(moved, "item") == {1: 4, 2: 1, 3: 1, 4: 1, 5: 1}
    assert counts(moved, "customer") == {"a": 3, "b": 2, "c": 2, "d": 1}
    assert problems(moved) == []
    day(tmp_path, "day4", [("e", 1)], "moved")
    assert len(known(tmp_path / "day4")) == 9


def test_files_are_linked_and_a_deletion_leaves_those_of_other_datasets(tmp_path: Path, prepared: Path) -> None:
    shutil.copytree(prepared / "day1", tmp_path / "day1")
    data = day(tmp_path, "day2", DAY_2, "day1")
    [file] = earlier_files(data)
    assert (data / file.path).samefile(tmp_path / "day1/train/part-00000.parquet")
    report = forget_dataset(Folder(data), pa.array(["b"]), "customer", NullReporter())
    assert report.interactions == {"train": 0, "earlier/train": 1}
    assert sorted(known(data)) == sorted([*DAY_1[:2], *DAY_2])
    assert counts(data, "item") == {1: 2, 2: 1, 3: 1}
    assert problems(data) == problems(tmp_path / "day1") == []
    assert sorted(known(tmp_path / "day1")) == DAY_1
    forget_dataset(Folder(data), pa.array(["a"]), "customer", NullReporter())
    assert (known(data), counts(data, "item")) == ([("c", 1)], {1: 1, 2: 0, 3: 0})


def test_all_splits_of_earlier_datasets_are_known_and_only_train_counts(tmp_path: Path) -> None:
    test = write_parquet(tmp_path / "test.parquet", customer=["a"], item=[2])
    day(tmp_path, "day1", [("a", 1), ("b", 2)], test=[test])
    data = day(
        tmp_path, "day2", [("a", 3)], "day1", test=[write_parquet(tmp_path / "t2.parquet", customer=["b"], item=[1])]
    )
    assert sorted(known(data, ["train"])) == [("a", 1), ("a", 2), ("a", 3), ("b", 2)]
    assert known(data, []) == []
    customers, items = ids(data, "customer"), ids(data, "item")
    with closing(opened(data)) as lineage:
        pairs = [(customers[p.query_N[n]], items[p.item_N[n]]) for p in lineage.read_train() for n in range(len(p))]
    assert sorted(pairs) == [("a", 1), ("a", 3), ("b", 2)]  # type: ignore[type-var]


def test_interactions_of_expired_and_forgotten_ids_are_left_out(tmp_path: Path) -> None:
    """Customer b and item 2 expire; x gets the row of b. Item 3 is forgotten in the newest dataset only."""
    age = "100"
    day(tmp_path, "day1", [("a", 1), ("b", 1), ("b", 2), ("a", 3)], at=0, expire_after=age)
    data = day(tmp_path, "day2", [("a", 1), ("a", 3), ("x", 1)], "day1", at=90, expire_after=age)
    assert ids(data, "customer") == ["a", "b", "x"]
    data = day(tmp_path, "day3", [("x", 1), ("y", 1), ("a", 3), ("z", 9)], "day2", at=150, expire_after=age)
    assert set(ids(data, "customer")) == {"a", "x", "y", "z"}
    # Plays of items that have expired since count.
    assert counts(data, "customer") == {"a": 5, "x": 2, "y": 1, "z": 1}
    forget_dataset(Folder(data), pa.array(["3"]), "item", NullReporter())
    assert sorted(known(data)) == [("a", 1), ("a", 1), ("x", 1), ("x", 1), ("y", 1), ("z", 9)]
    assert counts(data, "customer") == {"a": 2, "x": 2, "y": 1, "z": 1}
    assert problems(data) == []


@pytest.mark.parametrize(("first", "second"), [(10, 20), (None, 20), (10, None)])
def test_times_and_context_are_those_of_the_newest_dataset(
    tmp_path: Path, first: int | None, second: int | None
) -> None:
    """A base dataset without times lies before all of them; one without context has none."""
    day(tmp_path, "day1", [("a", 1)], at=first)
    data = day(tmp_path, "day2", [("a", 2)], "day1", at=second, context="again=item")
    with closing(opened(data)) as lineage:
        times = [part.timestamp_N for part in lineage.read_train(timestamps=True)]
    if second is None:
        assert times == [None, None]
    else:
        earliest = BEFORE_ALL if first is None else first
        assert [time_N.tolist() for time_N in times if time_N is not None] == [[earliest], [second]]
    [file] = earlier_files(data)
    assert pq.read_table(data / file.path)["again"].to_pylist() == [-1]
    assert problems(data) == []


@pytest.mark.parametrize("reason", ["expiry", "small files", "another context"])
def test_files_that_are_written_anew_keep_their_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    options: dict[str, object] = {"context": "again=item"}
    if reason == "expiry":
        options["expire_after"] = "customer=100"
    elif reason == "small files":
        monkeypatch.setattr(earlier, "_MAX_SMALL_FILES", 1)
    day(tmp_path, "day1", [("a", 1), ("b", 2)], at=0, **options)
    day(tmp_path, "day2", [("a", 2)], "day1", at=90, **options)
    if reason == "another context":
        options["context"] = {"again": "item", "hour": "timestamp:hour"}
    data = day(tmp_path, "day3", [("a", 1)], "day2", at=150, **options)
    (file,) = earlier_files(data)
    found, rows = (
        pq.read_table(data / file.path).to_pydict(),
        {row[1]: row[0] for row in vocabulary_tuples(data, "again")},
    )
    items = [ids(data, "item")[row] for row in found["item"]]
    assert len(items) == (2 if reason == "expiry" else 3)
    assert found["again"] == [rows[item] for item in items]
    assert set(found.get("hour", [-1])) == {-1}
    assert problems(data) == []


def test_corrupt_file_of_a_base_dataset_is_an_error(tmp_path: Path, data: Path) -> None:
    [part] = (data / "train").iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{part}.*truncated or replaced"):
        day(tmp_path, "day4", DAY_1, "day3")
    assert not (tmp_path / "day4").exists()
