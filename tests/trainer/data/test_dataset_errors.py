"""Invalid datasets: 'crossfade train' exits with code 2 and one line that names the file and the row."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import interaction_table, make_interactions
from cluster_data import CUSTOMERS, TRACKS, train_rows, write_job, write_planted
from error_table import documented
from paced_training import paced
from running_command import crossfade, single_line, succeeded
from train_errors import TrainError, train_error_runner

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.parquet import file_entry, write_options

pytestmark = pytest.mark.slow

FILE = "train/part-00001.parquet"
"""One row group of 1,500 rows."""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Write data and a job."""
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def train_error(workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> TrainError:
    return train_error_runner(workspace, monkeypatch, capfd)


def entries(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for split in manifest["splits"].values():
        yield from split["files"]
    for entity in manifest["entities"].values():
        yield from entity["files"]


def change_manifest(data: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = data / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def rewrite(data: Path, path: str, table: pa.Table) -> None:
    """Replace the table of a file, and its entry in the manifest."""
    pq.write_table(table, data / path, row_group_size=1000, **write_options(table.schema))
    described = file_entry(Folder(data), path).model_dump()

    def change(manifest: dict[str, Any]) -> None:
        [entry] = [entry for entry in entries(manifest) if entry["path"] == path]
        entry.update(described)

    change_manifest(data, change)


def changed(data: Path, column: str, row: int, value: Any, kind: pa.DataType | None = None) -> None:
    """Change one value of the file."""
    table = pq.read_table(data / FILE)
    values = table.column(column).to_pylist()
    values[row] = value
    workspace = table.column_names.index(column)
    rewrite(data, FILE, table.set_column(workspace, column, pa.array(values, kind or table.schema.field(column).type)))


# ---- files


def test_file_with_corrupt_pages_is_rejected(train_error: TrainError, workspace: Path) -> None:
    path = workspace / "data" / FILE
    table = pq.read_table(path)
    rewrite(workspace / "data", FILE, table)
    column = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 3] ^= 4
    path.write_bytes(content)
    message = documented("a data file with corrupt pages", train_error())
    assert message.startswith(f"{path}, row group 1: is corrupt ")


def test_truncated_file_is_rejected(train_error: TrainError, workspace: Path) -> None:
    path = workspace / "data" / FILE
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert documented("a truncated data file", train_error()) == (
        f"{path}: has {size - 1:,} bytes, but the manifest lists {size:,}: it was truncated or replaced; prepare the "
        "data again"
    )


def test_replaced_file_of_same_size_is_rejected(train_error: TrainError, workspace: Path) -> None:
    path = workspace / "data" / FILE
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    message = documented("a data file replaced by one of the same size", train_error())
    assert message.startswith(f"{path}: its footer has the CRC-32 ")


def test_truncated_vocabulary_is_rejected(train_error: TrainError, workspace: Path) -> None:
    path = workspace / "data" / "vocabulary" / "track" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    message = documented("a truncated vocabulary", train_error())
    assert message.startswith(f"{path}: has 100 bytes, but the manifest lists ")


def test_folder_in_place_of_file_is_rejected(train_error: TrainError, workspace: Path) -> None:
    path = workspace / "data" / FILE
    path.unlink()
    path.mkdir()
    assert documented("a data file that is a folder", train_error()).startswith(f"{path}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user other than root: run it as one")
def test_unreadable_file_is_rejected(train_error: TrainError, workspace: Path) -> None:
    (workspace / "data" / FILE).chmod(0)
    assert train_error() == f"{workspace / 'data' / FILE}: cannot be read: Permission denied"


# ---- rows


def test_file_without_a_column_is_rejected(train_error: TrainError, workspace: Path) -> None:
    rewrite(workspace / "data", FILE, pq.read_table(workspace / "data" / FILE).drop_columns("weight"))
    message = documented("a data file with a missing column", train_error())
    assert message.startswith(f"{workspace / 'data' / FILE}, row group ")
    assert "has the columns customer, track, but not 'weight'" in message


def test_file_with_wrong_column_type_is_rejected(train_error: TrainError, workspace: Path) -> None:
    changed(workspace / "data", "track", 0, 0, pa.int32())
    message = documented("a data file with a column of another type", train_error())
    assert message.startswith(f"{workspace / 'data' / FILE}, row group ")
    assert message.endswith("column 'track' has the type int32, but expected int64; prepare the data again")


@pytest.mark.parametrize(
    ("what", "column", "value", "expected"),
    [
        (
            "a row number beyond the vocabulary",
            "track",
            TRACKS,
            f"column 'track' is {TRACKS}, but the vocabulary has rows 0 to {TRACKS - 1}",
        ),
        (
            "a row number beyond the vocabulary",
            "customer",
            CUSTOMERS,
            f"column 'customer' is {CUSTOMERS}, but the vocabulary has rows 0 to {CUSTOMERS - 1}",
        ),
        ("a negative row number", "track", -1, f"column 'track' is -1, but the vocabulary has rows 0 to {TRACKS - 1}"),
        ("a null row number", "track", None, "column 'track' is null (1 are), but expected no nulls"),
        ("a null weight", "weight", None, "column 'weight' is null (1 are), but expected no nulls"),
        ("a NaN weight", "weight", float("nan"), "column 'weight' is nan, but weights must be finite"),
        ("an infinite weight", "weight", float("inf"), "column 'weight' is inf, but weights must be finite"),
        ("an infinite weight", "weight", float("-inf"), "column 'weight' is -inf, but weights must be finite"),
    ],
)
def test_invalid_value_is_rejected_with_its_row(
    train_error: TrainError, workspace: Path, what: str, column: str, value: Any, expected: str
) -> None:
    changed(workspace / "data", column, 1234, value)
    row_place = f"{workspace / 'data' / FILE}, row group 1, row 234"
    assert documented(what, train_error()) == f"{row_place}: {expected}; prepare the data again"


# ---- the manifest, and what is in it


def test_empty_file_adds_no_examples(workspace: Path) -> None:
    rewrite(workspace / "data", FILE, pq.read_table(workspace / "data" / FILE).slice(0, 0))
    succeeded(crossfade("train", "job.yaml", "--run-dir", "run", cwd=workspace))
    report = json.loads((workspace / "run" / "report.json").read_text())
    assert report["examples"] == 2 * (train_rows() - 1500)


def test_empty_train_split_is_rejected(train_error: TrainError, workspace: Path) -> None:
    for path in sorted((workspace / "data" / "train").iterdir()):
        rewrite(workspace / "data", f"train/{path.name}", pq.read_table(path).slice(0, 0))
    message = documented("an empty train split", train_error())
    assert message.startswith(f"{workspace / 'data'}: its train split is empty: there is nothing to train on")


def test_manifest_with_other_row_counts_is_rejected(train_error: TrainError, workspace: Path) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        [entry] = [entry for entry in entries(manifest) if entry["path"] == FILE]
        entry["row_groups"] = [700, 800]

    change_manifest(workspace / "data", swap)
    assert documented("a manifest that does not match its data files", train_error()) == (
        f"{workspace / 'data' / FILE}: has 1 row group of 1500 rows, but the manifest lists 2 row groups of 700, "
        "800 rows; prepare the data again"
    )


@pytest.mark.parametrize("path", ["../outside.parquet", "/etc/passwd", "train/../../x", "", "train//x"])
def test_manifest_with_path_outside_the_dataset_is_rejected(
    train_error: TrainError, workspace: Path, path: str
) -> None:
    change_manifest(workspace / "data", lambda manifest: next(entries(manifest)).update(path=path))
    message = documented("a manifest with a path outside the dataset", train_error())
    assert message.startswith(f"{workspace / 'data' / 'manifest.json'}: not a manifest of prepared data: ")


def test_manifest_of_earlier_version_is_rejected(train_error: TrainError, workspace: Path) -> None:
    change_manifest(workspace / "data", lambda manifest: manifest.update(version=1))
    documented("a manifest of another version", train_error())


def test_row_group_above_limit_is_rejected_until_limit_is_raised(train_error: TrainError, workspace: Path) -> None:
    limit = ("--set", "data.max_row_group_rows=1499")
    message = documented("a row group above data.max_row_group_rows", train_error(*limit))
    assert message.startswith(
        f"{workspace / 'data' / FILE}, row group 0: has 1,500 rows, but data.max_row_group_rows is"
    )
    assert "set data.max_row_group_rows to 1500" in message
    succeeded(
        crossfade("train", "job.yaml", "--run-dir", "run", "--set", "data.max_row_group_rows=1500", cwd=workspace)
    )


def test_training_reads_one_huge_row_group(workspace: Path) -> None:
    rows = 1_000_000
    random = np.random.default_rng(1)
    table = interaction_table(make_interactions(random.integers(0, CUSTOMERS, rows), random.integers(0, TRACKS, rows)))
    pq.write_table(table, workspace / "data" / FILE, row_group_size=rows, **write_options(table.schema))
    described = file_entry(Folder(workspace / "data"), FILE)
    assert described.row_groups == [rows]
    change_manifest(workspace / "data", lambda m: m["splits"]["train"].update(files=[described.model_dump()]))
    once = ("--set", "train.epochs=1", "--set", "train.batch_size=65536")
    succeeded(crossfade("train", "job.yaml", "--run-dir", "run", *once, cwd=workspace))
    assert json.loads((workspace / "run" / "report.json").read_text())["examples"] == rows


@pytest.mark.slow
def test_training_reads_more_files_than_a_process_may_open(workspace: Path) -> None:
    data, count = workspace / "data", 2_000
    table = interaction_table(make_interactions([1, 2], [3, 4]))
    (data / "many").mkdir()
    pq.write_table(table, data / "many" / "0.parquet", **write_options(table.schema))
    entry = file_entry(Folder(data), "many/0.parquet").model_dump()
    for number in range(1, count):
        os.link(data / "many" / "0.parquet", data / "many" / f"{number}.parquet")
    files = [{**entry, "path": f"many/{number}.parquet"} for number in range(count)]
    change_manifest(data, lambda manifest: manifest["splits"]["train"].update(files=files))
    once = ("--set", "train.epochs=2", "--set", "train.batch_size=2000", "--set", "evaluate.exclude_splits=[valid]")
    succeeded(crossfade("train", "job.yaml", "--run-dir", "run", *once, cwd=workspace))
    assert json.loads((workspace / "run" / "report.json").read_text())["examples"] == 2 * 2 * count


SPECIAL_CHARACTERS = 'da ta/Füße "it\'s" 音楽 100%'


def test_path_with_spaces_unicode_and_quotes_is_read(workspace: Path) -> None:
    (workspace / "da ta").mkdir()
    shutil.move(workspace / "data", workspace / SPECIAL_CHARACTERS)
    write_job(workspace / "job.yaml", workspace / SPECIAL_CHARACTERS)
    succeeded(crossfade("train", "job.yaml", "--run-dir", "r'u \"n", cwd=workspace))
    (workspace / SPECIAL_CHARACTERS / FILE).unlink()
    result = crossfade("train", "job.yaml", "--run-dir", "run", cwd=workspace)
    message = single_line(result.returncode, result.stdout, result.stderr)
    assert (
        documented("a missing data file", message)
        == f"{workspace / SPECIAL_CHARACTERS / FILE}: no such file, but the manifest lists it; prepare the data again"
    )


# ---- during a run


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vanishes", "changes"])
def test_file_that_changes_during_training_ends_the_run(workspace: Path, how: str) -> None:
    path = workspace / "data" / FILE
    epochs = ("--set", "train.epochs=1000", "--set", "train.eval_every_epochs=1000")
    with paced("train", "job.yaml", *epochs, run_dir=workspace / "run") as training:
        training.wait_for("step")
        if how == "vanishes":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[-30] ^= 1
            path.write_bytes(content)
        result = training.finish()
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"crossfade: error: {path}: ")
    causes = {"vanishes": "a data file deleted during training", "changes": "a data file changed during training"}
    documented(causes[how], line.removeprefix("crossfade: error: "))
    assert "Traceback" not in result.stderr
