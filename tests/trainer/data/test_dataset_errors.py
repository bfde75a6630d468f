"""Invalid datasets: 'crossfade train' exits with code 2 and one line that names the file and the row.

What is wrong with a file, and where, is checked where it is read (test_reader.py), and the manifest in
test_manifest.py.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import interaction_table, make_interactions
from cluster_data import train_rows, write_job, write_planted
from command_here import crossfade_here, rejected_here
from paced_training import paced
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.parquet import file_entry, write_options

pytestmark = pytest.mark.slow

FILE = "train/part-00001.parquet"
"""One row group of 1,500 rows."""
ONCE = ("--set", "train.epochs=1", "--set", "train.batch_size=65536")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Write data and a job."""
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    return tmp_path


def entries(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for split in manifest["splits"].values():
        yield from split["files"]


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


def examples_of(workspace: Path, *options: object) -> int:
    """Train, and return the number of examples in the report."""
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", *options, cwd=workspace))
    examples: int = json.loads((workspace / "run" / "report.json").read_text())["examples"]
    return examples


def test_empty_files_add_no_examples_and_one_file_with_rows_is_required(workspace: Path) -> None:
    data = workspace / "data"
    rewrite(data, FILE, pq.read_table(data / FILE).slice(0, 0))
    assert examples_of(workspace) == 2 * (train_rows() - 1500)
    shutil.rmtree(workspace / "run")
    for path in sorted((data / "train").iterdir()):
        rewrite(data, f"train/{path.name}", pq.read_table(path).slice(0, 0))
    rejected_here(f"{data}: its train split is empty", "train", "job.yaml", "--run-dir", "run", cwd=workspace)


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
    assert examples_of(workspace, *ONCE, "--set", "evaluate.exclude_splits=[valid]") == 2 * count


def test_file_that_vanishes_during_training_ends_the_run(workspace: Path) -> None:
    path = workspace / "data" / FILE
    epochs = ("--set", "train.epochs=1000", "--set", "train.eval_every_epochs=1000")
    with paced("train", "job.yaml", *epochs, run_dir=workspace / "run") as training:
        training.wait_for("step")
        path.unlink()
        result = training.finish()
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1].removeprefix("crossfade: error: ")
    assert line.startswith(f"{path}: no such file, but the manifest lists it")
    assert "Traceback" not in result.stderr
