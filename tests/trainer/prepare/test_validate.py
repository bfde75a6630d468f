"""Validating a dataset: each problem has its file, row group and row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import running_object_store
from preparing import forget_dataset

from crossfade.base.io.folder import Folder
from crossfade.cli.main import main
from crossfade.trainer.data.manifest import DatasetManifest, Entity, Split, read_manifest
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare.options import ValidateOptions
from crossfade.trainer.prepare.validate import MAX_LISTED, ValidationReport, validate

pytestmark = pytest.mark.slow

CUSTOMERS, TRACKS = 12, 6
TRAIN = "train/part-0.parquet"


class ForeignDataset:
    """A dataset as another tool would write it: tables that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = Folder(folder)
        draw = np.random.default_rng(1)
        self.shards: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
        counts = {"customer": np.zeros(CUSTOMERS, np.int64), "track": np.zeros(TRACKS, np.int64)}
        for split, size in (("train", 40), ("train", 30), ("test", 9)):
            table = {
                "customer": draw.integers(0, CUSTOMERS, size),
                "track": draw.integers(0, TRACKS, size),
                "weight": np.where(np.arange(size) % 10 == 0, -1.0, 1.5).astype(np.float32),
            }
            self.shards[split].append(table)
            if split == "train":
                for name, count_N in counts.items():
                    np.add.at(count_N, table[name][table["weight"] > 0], 1)
        self.vocabularies: dict[str, list[dict[str, Any]]] = {}
        for name, ids in (("customer", [f"c{row}" for row in range(CUSTOMERS)]), ("track", list(range(100, 106)))):
            columns = {"row": np.arange(len(ids)), "id": ids, "count": counts[name]}
            parts = (slice(0, len(ids) // 2), slice(len(ids) // 2, None))
            self.vocabularies[name] = [{name: values[part] for name, values in columns.items()} for part in parts]

    def write(self, **changes: dict[str, Any]) -> Folder:
        """Write files and the manifest, of which the entity ``customer`` gets ``changes``."""
        files = {f"{split}/{split}": tables for split, tables in self.shards.items()}
        files |= {f"vocabulary/{name}": tables for name, tables in self.vocabularies.items()}
        entries = {}
        for place, tables in files.items():
            folder = place.split("/")[0] if place.split("/")[0] in self.shards else place
            for number, table in enumerate(tables):
                path = self.folder.path / folder / f"part-{number}.parquet"  # type: ignore[operator]
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.table(table), path, row_group_size=16)
            entries[folder] = [
                file_entry(self.folder, f"{folder}/part-{number}.parquet") for number in range(len(tables))
            ]
        rows = {"customer": CUSTOMERS, "track": TRACKS}
        DatasetManifest(
            query="customer",
            item="track",
            entities={
                name: Entity(
                    rows=rows[name],
                    id_type="string" if name == "customer" else "int64",
                    files=entries[f"vocabulary/{name}"],
                    **(changes if name == "customer" else {}),  # type: ignore[arg-type]
                )
                for name in rows
            },
            splits={split: Split(files=entries[split]) for split in self.shards},
            has_timestamp=False,
        ).write(self.folder)
        return self.folder


@pytest.fixture
def dataset(tmp_path: Path) -> ForeignDataset:
    return ForeignDataset(tmp_path / "dataset")


def run_validation(folder: Folder) -> ValidationReport:
    return validate(ValidateOptions.of(data=folder.uri), NullReporter())


def problems(folder: Folder) -> list[str]:
    return run_validation(folder).problems.listed


def set_value(table: dict[str, Any], column: str, row: int, value: Any) -> None:
    values = list(table[column])
    values[row] = value
    table[column] = pa.array(values, pa.float32() if column == "weight" else None)


def cast_column(table: dict[str, Any], column: str, kind: pa.DataType) -> None:
    table[column] = pa.array(table[column]).cast(kind)


def train(column: str, row: int, value: Any, part: str = "train") -> Callable[[ForeignDataset], None]:
    return lambda dataset: set_value(dataset.shards[part][0], column, row, value)


def vocabulary(name: str, number: int, column: str, row: int, value: Any) -> Callable[[ForeignDataset], None]:
    return lambda dataset: set_value(dataset.vocabularies[name][number], column, row, value)


PROBLEMS: list[tuple[Callable[[ForeignDataset], Any], str]] = [
    (train("track", 17, None), f"{TRAIN}, row group 1, row 1: column 'track' is null; expected none"),
    (
        train("customer", 33, CUSTOMERS),
        f"{TRAIN}, row group 2, row 1: column 'customer' is 12, but the vocabulary has rows 0 to 11",
    ),
    (
        train("track", 0, -1, "test"),
        "test/part-0.parquet, row group 0, row 0: column 'track' is -1, but the vocabulary has rows 0 to 5",
    ),
    (train("weight", 3, float("nan")), f"{TRAIN}, row group 0, row 3: the weight is nan; expected a finite one"),
    (train("weight", 39, float("inf")), f"{TRAIN}, row group 2, row 7: the weight is inf; expected a finite one"),
    (
        lambda dataset: cast_column(dataset.shards["train"][0], "weight", pa.float64()),
        f"{TRAIN}: column 'weight' has the type double; expected float: cast it",
    ),
    (
        lambda dataset: cast_column(dataset.vocabularies["track"][0], "row", pa.int32()),
        "vocabulary/track/part-0.parquet: column 'row' has the type int32; expected int64: cast it",
    ),
    (
        lambda dataset: dataset.shards["test"][0].update(artist=dataset.shards["test"][0].pop("track")),
        "test/part-0.parquet: has no column 'track'; its columns are customer, weight, artist",
    ),
    (
        vocabulary("customer", 1, "row", 2, 9),
        "vocabulary/customer/part-1.parquet, row group 0, row 2: column 'row' is 9; expected 0, 1, 2 … through all "
        "files, here from 6 on",
    ),
    (vocabulary("customer", 1, "id", 1, "c2"), "vocabulary/customer: the id 'c2' has 2 rows, 2 and 7; expected one"),
    (
        vocabulary("customer", 0, "id", 1, None),
        "vocabulary/customer/part-0.parquet, row group 0, row 1: row 1 has no id",
    ),
    (
        vocabulary("customer", 0, "id", 5, ""),
        "vocabulary/customer/part-0.parquet, row group 0, row 5: row 5 has an empty id",
    ),
    (vocabulary("track", 0, "count", 0, 99), "vocabulary/track, row 0: the count is 99, but train has"),
]


def test_problem_of_any_part_is_reported_with_its_place(tmp_path: Path) -> None:
    for number, (corrupt, message) in enumerate(PROBLEMS):
        dataset = ForeignDataset(tmp_path / str(number))
        corrupt(dataset)
        folder = dataset.write()
        listed = problems(folder)
        assert any(problem.startswith(f"{folder.uri}/{message}") for problem in listed)


def test_dataset_on_s3_is_validated(dataset: ForeignDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_object_store(tmp_path) as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        local, remote = dataset.write(), Folder(server.uri("check/data"))
        for path in local.sizes():
            remote.write(path, local.read(path))
        assert problems(remote) == []
        remote.write("test/part-0.parquet", b"PAR1 no more PAR1")
        [problem] = problems(remote)
    assert problem.startswith(f"{remote.uri}/test/part-0.parquet: has 17 bytes, but the manifest lists")


def test_all_problems_are_counted_and_the_first_are_listed(dataset: ForeignDataset) -> None:
    for table in dataset.shards["train"]:
        table["weight"] = np.full(len(table["weight"]), np.nan, np.float32)
    dataset.shards["train"] = [dataset.shards["train"][0]] * 10
    result = run_validation(dataset.write())
    assert result.problems.count == 30
    assert len(result.problems.listed) == MAX_LISTED
    assert result.problems.listed[0].endswith("expected a finite one (and 15 more in this row group)")


def test_vacant_rows_with_id_or_interactions_are_reported(dataset: ForeignDataset) -> None:
    listed = problems(dataset.write(vacant_rows=[3]))  # type: ignore[arg-type]
    assert [problem for problem in listed if "row 3: row 3 is vacant, but has an id" in problem]
    assert [problem for problem in listed if "column 'customer' is 3, a vacant row; delete its interactions" in problem]


def test_wrong_pending_ids_and_lineage_are_reported(dataset: ForeignDataset) -> None:
    path = dataset.folder.path / "pending/customer/part-0.parquet"  # type: ignore[operator]
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["c1", "x", "x"], "count": [1, 0, 1], "last_seen": [5, 5, 5]}), path)
    for table in dataset.vocabularies["customer"]:
        table |= {"last_seen": np.zeros(6, np.int64), "lineage_index": np.array([0] * 5 + [7])}
    pending = [file_entry(dataset.folder, "pending/customer/part-0.parquet")]
    folder = dataset.write(has_last_seen=True, pending=pending)  # type: ignore[arg-type]
    listed = [problem.removeprefix(f"{folder.uri}/") for problem in problems(folder)]
    assert "pending/customer/part-0.parquet, row group 0, row 1: the count is 0; expected at least 1" in listed
    assert "pending/customer: the id 'c1' is pending, but has a row" in listed
    assert "pending/customer: the id 'x' is pending twice" in listed
    place = "vocabulary/customer/part-1.parquet, row group 0, row 5"
    assert f"{place}: column 'lineage_index' is 7; expected 0 to 0" in listed


def test_command_lists_problems_or_prints_summary(dataset: ForeignDataset, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dataset.write()
    assert main(["validate", folder.uri]) == 0
    message = capsys.readouterr().out
    for part in (f"{folder.uri}: customer x track", "70 interactions", "no problem", "next: "):
        assert part in message
    folder.remove(TRAIN)
    assert main(["validate", folder.uri]) == 2
    problem, line = capsys.readouterr().err.splitlines()[-2:]
    assert problem == f"{folder.uri}/{TRAIN}: no such file, but the manifest lists it"
    assert "1 problem, listed above" in line.removeprefix("crossfade: error: ")
    folder.remove("manifest.json")
    assert main(["validate", folder.uri]) == 2


def test_large_strings_are_accepted(dataset: ForeignDataset) -> None:
    cast_column(dataset.vocabularies["customer"][0], "id", pa.large_string())
    folder = dataset.write()
    assert problems(folder) == []
    forget_dataset(folder, pa.array(["c1", "c8"]), "customer", NullReporter())
    assert read_manifest(folder).entities["customer"].vacant_rows == [1, 8]
    assert problems(folder) == []


def test_invalid_utf8_is_reported(dataset: ForeignDataset) -> None:
    raw = pa.array([b"c%d" % row for row in range(5)] + [b"caf\xe9"])
    dataset.vocabularies["customer"][0]["id"] = raw.view(pa.string())
    assert any("column 'id' holds text that is not UTF-8" in problem for problem in problems(dataset.write()))
