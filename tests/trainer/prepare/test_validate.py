"""Validating a dataset: problems have their file, row group and row; a valid dataset without a manifest gets one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import ObjectStore, running_object_store
from preparing import forget_dataset

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.cli.main import main
from crossfade.trainer.data.manifest import JOURNAL, DatasetManifest, read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare.dataset_checks import MAX_LISTED
from crossfade.trainer.prepare.options import ValidateOptions
from crossfade.trainer.prepare.validate import ValidationReport, validate

pytestmark = pytest.mark.slow

CUSTOMERS, TRACKS = 12, 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        yield server


class ForeignDataset:
    """A dataset as another tool would write it: tables that a test may change, and no manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
            cut = len(ids) // 2
            columns = {"row": np.arange(len(ids)), "id": ids, "count": counts[name]}
            # The first file has the last rows, so that the order of file names differs from that of rows.
            parts = (slice(cut, None), slice(0, cut))
            self.vocabularies[name] = [{name: values[part] for name, values in columns.items()} for part in parts]

    def write(self) -> Folder:
        for path, table in self.tables():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(table), self.folder / path, row_group_size=16)
        return Folder(self.folder)

    def tables(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for split, tables in self.shards.items():
            for number, table in enumerate(tables):
                yield f"{split}/part-{number}.c000.snappy.parquet", table
        for name, tables in self.vocabularies.items():
            for number, table in enumerate(tables):
                yield f"vocabulary/{name}/part-{number}", table


@pytest.fixture
def dataset(tmp_path: Path) -> ForeignDataset:
    return ForeignDataset(tmp_path / "dataset")


def run_validation(folder: Folder, query: str | None = None, item: str | None = None) -> ValidationReport:
    return validate(ValidateOptions.of(data=folder.uri, query=query, item=item), NullReporter())


def problems(folder: Folder) -> list[str]:
    return run_validation(folder).problems.listed


def test_manifest_is_inferred_for_files_of_other_tools(dataset: ForeignDataset) -> None:
    folder = dataset.write()
    for note in ("train/_SUCCESS", "train/.part-0.crc", "vocabulary/track/_metadata"):
        folder.write(note, b"x")
    result = run_validation(folder)
    assert (result.problems.listed, result.manifest_written) == ([], True)
    manifest = read_manifest(folder)
    assert manifest == result.manifest
    assert (manifest.query, manifest.item, manifest.has_timestamp) == ("customer", "track", False)
    assert {name: (entity.rows, entity.id_type) for name, entity in manifest.entities.items()} == {
        "customer": (CUSTOMERS, "string"),
        "track": (TRACKS, "int64"),
    }
    assert [file.path[-1] for file in manifest.entities["customer"].files] == ["1", "0"]
    assert [file.row_groups for file in manifest.splits["train"].files] == [[16, 16, 8], [16, 14]]
    again = run_validation(folder)
    assert (again.problems.listed, again.manifest_written) == ([], False)


@pytest.mark.slow
def test_dataset_on_s3_is_validated_and_gets_manifest(
    dataset: ForeignDataset, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    local, remote = dataset.write(), Folder(server.uri("check/data"))
    for path in local.sizes():
        remote.write(path, local.read(path))
    assert run_validation(remote).manifest_written
    assert read_manifest(remote).entities["track"].rows == TRACKS
    remote.write(next(path for path in remote.sizes() if path.startswith("test/")), b"PAR1 no more PAR1")
    [problem] = problems(remote)
    assert problem.startswith(f"{remote.uri}/test/part-0.c000.snappy.parquet: has 17 bytes, but the manifest lists")


def set_value(table: dict[str, Any], column: str, row: int, value: Any) -> None:
    values = list(table[column])
    values[row] = value
    table[column] = pa.array(values, pa.float32() if column == "weight" else None)


def rename_track(table: dict[str, Any]) -> None:
    table["artist"] = table.pop("track")


def cast_column(table: dict[str, Any], column: str, kind: pa.DataType) -> None:
    table[column] = pa.array(table[column]).cast(kind)


TRAIN = "train/part-0.c000.snappy.parquet"
PROBLEMS: list[tuple[Callable[[ForeignDataset], None], str]] = [
    (
        lambda dataset: set_value(dataset.shards["train"][0], "track", 17, None),
        f"{TRAIN}, row group 1, row 1: column 'track' is null; expected none",
    ),
    (
        lambda dataset: set_value(dataset.shards["train"][0], "customer", 33, CUSTOMERS),
        f"{TRAIN}, row group 2, row 1: column 'customer' is 12, but the vocabulary has rows 0 to 11",
    ),
    (
        lambda dataset: set_value(dataset.shards["test"][0], "track", 0, -1),
        "test/part-0.c000.snappy.parquet, row group 0, row 0: column 'track' is -1, but the vocabulary has rows 0 to 5",
    ),
    (
        lambda dataset: set_value(dataset.shards["train"][0], "weight", 3, float("nan")),
        f"{TRAIN}, row group 0, row 3: the weight is nan; expected a finite one",
    ),
    (
        lambda dataset: set_value(dataset.shards["train"][0], "weight", 39, float("inf")),
        f"{TRAIN}, row group 2, row 7: the weight is inf; expected a finite one",
    ),
    (
        lambda dataset: cast_column(dataset.shards["train"][0], "weight", pa.float64()),
        f"{TRAIN}: column 'weight' has the type double; expected float: cast it",
    ),
    (
        lambda dataset: cast_column(dataset.vocabularies["track"][0], "row", pa.int32()),
        "vocabulary/track/part-0: column 'row' has the type int32; expected int64: cast it",
    ),
    (
        lambda dataset: rename_track(dataset.shards["test"][0]),
        "test/part-0.c000.snappy.parquet: has no column 'track'; its columns are customer, weight, artist",
    ),
    (
        lambda dataset: set_value(dataset.vocabularies["customer"][0], "row", 2, 9),
        "vocabulary/customer/part-0, row group 0, row 2: column 'row' is 9; expected 0, 1, 2 … through all files, "
        "here from 6 on",
    ),
    (
        lambda dataset: set_value(dataset.vocabularies["customer"][0], "id", 1, "c2"),
        "vocabulary/customer: the id 'c2' has 2 rows, 2 and 7; expected one",
    ),
    (
        lambda dataset: set_value(dataset.vocabularies["customer"][1], "id", 1, None),
        "vocabulary/customer/part-1, row group 0, row 1: row 1 has no id",
    ),
    (
        lambda dataset: set_value(dataset.vocabularies["customer"][1], "id", 5, ""),
        "vocabulary/customer/part-1, row group 0, row 5: row 5 has an empty id",
    ),
    (
        lambda dataset: set_value(dataset.vocabularies["track"][1], "count", 0, 99),
        "vocabulary/track, row 0: the count is 99, but train has",
    ),
]


@pytest.mark.parametrize(("corrupt", "message"), PROBLEMS)
def test_problem_is_reported_with_its_place_and_no_manifest_is_written(
    dataset: ForeignDataset, corrupt: Callable[[ForeignDataset], None], message: str
) -> None:
    corrupt(dataset)
    folder = dataset.write()
    listed = problems(folder)
    assert any(problem.startswith(f"{folder.uri}/{message}") for problem in listed)
    assert not folder.exists("manifest.json")


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda dataset: dataset.vocabularies.pop("track"), "vocabulary/track: there is no vocabulary of 'track'"),
        (lambda dataset: dataset.shards.pop("train"), "train/ has no file; expected SPLIT/*.parquet"),
        (lambda dataset: dataset.vocabularies["track"][0].pop("count"), "'count' is missing; expected row, id, count"),
        (lambda dataset: (dataset.vocabularies.clear(), dataset.shards.clear()), "holds no dataset, with or without"),
    ],
)
def test_incomplete_dataset_is_rejected(
    dataset: ForeignDataset, corrupt: Callable[[ForeignDataset], Any], message: str
) -> None:
    corrupt(dataset)
    [problem] = problems(dataset.write())
    assert message in problem


def test_files_that_are_not_parquet_or_too_deep_are_reported(dataset: ForeignDataset) -> None:
    folder = dataset.write()
    folder.write("train/part-9.parquet", b"no Parquet at all, but long enough")
    [problem] = problems(folder)
    assert "is not a Parquet file, or was truncated: it does not end with" in problem
    assert problem.startswith(f"{folder.uri}/train/part-9.parquet: is not a Parquet file")
    folder.remove("train/part-9.parquet")
    folder.write("train/day=1/part-0.parquet", folder.read(TRAIN))
    [problem] = problems(folder)
    assert "train/day=1/part-0.parquet: is not where files of a dataset are" in problem


def test_entities_may_be_given_by_option(dataset: ForeignDataset) -> None:
    for table in [*dataset.shards["train"], *dataset.shards["test"]]:
        table["customer"] = table.pop("customer")
    folder = dataset.write()
    assert run_validation(folder).manifest is None
    assert run_validation(folder, "customer", "track").manifest_written
    with pytest.raises(InputError, match=r"query artist: the manifest in .* has 'customer'; leave out query"):
        run_validation(folder, "artist")


def test_all_problems_are_counted_and_the_first_are_listed(dataset: ForeignDataset) -> None:
    for table in dataset.shards["train"]:
        table["weight"] = np.full(len(table["weight"]), np.nan, np.float32)
    dataset.shards["train"] = [dataset.shards["train"][0]] * 10
    result = run_validation(dataset.write())
    assert result.problems.count == 30
    assert len(result.problems.listed) == MAX_LISTED
    assert result.problems.listed[0].endswith("expected a finite one (and 15 more in this row group)")


def test_vacant_rows_with_id_or_interactions_are_reported(dataset: ForeignDataset) -> None:
    folder = dataset.write()
    run_validation(folder)
    manifest = read_manifest(folder)
    with_vacant_row = manifest.entities["customer"].model_copy(update={"vacant_rows": [3]})
    manifest.model_copy(update={"entities": {**manifest.entities, "customer": with_vacant_row}}).write(folder)
    listed = problems(folder)
    assert [problem for problem in listed if "row 3: row 3 is vacant, but has an id" in problem]
    assert [problem for problem in listed if "column 'customer' is 3, a vacant row; delete its interactions" in problem]


def test_interrupted_forget_is_reported(dataset: ForeignDataset) -> None:
    folder = dataset.write()
    folder.write(JOURNAL, b'{"files": []}')
    [problem] = problems(folder)
    assert "forget.json: a 'crossfade forget' was interrupted; run it again" in problem


def test_command_lists_problems_or_prints_summary(dataset: ForeignDataset, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dataset.write()
    assert main(["validate", folder.uri]) == 0
    message = capsys.readouterr().out
    for part in (f"{folder.uri}: customer x track", "70 interactions", "no problem; wrote its manifest.json", "next: "):
        assert part in message
    folder.remove(TRAIN)
    assert main(["validate", folder.uri]) == 2
    problem, line = capsys.readouterr().err.splitlines()[-2:]
    assert problem == f"{folder.uri}/{TRAIN}: no such file, but the manifest lists it"
    assert "1 problem, listed above" in line.removeprefix("crossfade: error: ")
    assert main(["validate", folder.uri, "--query", "customer=uid"]) == 2


@pytest.mark.slow
def test_large_strings_are_accepted(dataset: ForeignDataset) -> None:
    cast_column(dataset.vocabularies["customer"][0], "id", pa.large_string())
    folder = dataset.write()
    assert run_validation(folder).manifest_written
    manifest: DatasetManifest = forget_dataset(folder, pa.array(["c1", "c8"]), "customer", NullReporter()).manifest
    assert manifest.entities["customer"].vacant_rows == [1, 8]
    assert problems(folder) == []


def test_invalid_utf8_is_reported(dataset: ForeignDataset) -> None:
    raw = pa.array([b"c%d" % row for row in range(CUSTOMERS - 1)] + [b"caf\xe9"])
    dataset.vocabularies["customer"] = [{**dataset.vocabularies["customer"][0]}]
    dataset.vocabularies["customer"][0].update(
        row=np.arange(CUSTOMERS), id=raw.view(pa.string()), count=np.zeros(CUSTOMERS, np.int64)
    )
    assert any("column 'id' holds text that is not UTF-8" in problem for problem in problems(dataset.write()))


@pytest.mark.slow
def test_row_group_is_checked_in_parts_and_problems_have_its_row(
    dataset: ForeignDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.trainer.prepare.dataset_checks.PART_ROWS", 3)
    assert problems(dataset.write()) == []
    (dataset.folder / "manifest.json").unlink()
    set_value(dataset.shards["train"][0], "track", 30, 77)
    set_value(dataset.vocabularies["customer"][1], "row", 4, 9)
    listed = problems(dataset.write())
    assert len(listed) == 2
    assert any("part-0.c000.snappy.parquet, row group 1, row 14: column 'track' is 77" in message for message in listed)
    assert any(
        "row group 0, row 4: column 'row' is 9; expected 0, 1, 2 … through all files" in message for message in listed
    )
