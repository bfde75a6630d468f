"""Export: the vectors of a checkpoint with the IDs of its dataset, completely or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import ITEM, QUERY, write_data_set
from exporting import vectors
from saved_shards import random_table, save_shards, split_table
from written_runs import CUSTOMER_IDS, OPTIMIZER, TRACK_NAMES, WrittenRun, save_checkpoint, write_run

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import CheckpointError, InputError
from crossfade.kvstore.checkpoint.format import MANIFEST_NAME
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.formats.export import ExportResult, export
from crossfade.trainer.formats.exported_model import ExportedTable
from crossfade.trainer.formats.options import ExportOptions

Saved = dict[int, dict[str, FloatArray]]
"""The tables of each checkpoint, by its step."""


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return write_run(tmp_path / "written", embeddings=False)


@pytest.fixture
def saved(run: WrittenRun) -> Saved:
    return {step: save_checkpoint(run, step) for step in (100, 200, 300)}


@pytest.fixture
def checkpoints(run: WrittenRun, saved: Saved) -> Path:
    return run.path / "checkpoints"


class Lines(list[str]):
    """The lines that an export logs."""

    def export(self, source: Path | str, out: Path, *entities: str, data: Path | None = None) -> ExportResult:
        options = ExportOptions.of(source=str(source), entity=entities, data=data and str(data), out=out)
        return export(options, self.append, NullReporter())


@pytest.fixture
def lines() -> Lines:
    return Lines()


def assert_same(folder: Path, expected: dict[str, FloatArray]) -> None:
    for entity, vectors_RD in expected.items():
        np.testing.assert_array_equal(vectors(folder, entity), vectors_RD)


def corrupt(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_named_checkpoint_is_exported(checkpoints: Path, saved: Saved, tmp_path: Path, lines: Lines) -> None:
    step = checkpoints / "step-000000200"
    exported = lines.export(step, tmp_path / "out")
    assert (exported.model, exported.step, exported.job) == (str(step), 200, "planted")
    assert_same(tmp_path / "out", saved[200])
    assert EmbeddingFiles(tmp_path / "out").entities == [QUERY, ITEM]
    customers, tracks = (pq.read_table(tmp_path / "out" / entity) for entity in (QUERY, ITEM))
    assert customers.column_names == ["id", "row", "vector"]
    assert customers.column("id").to_pylist() == CUSTOMER_IDS
    assert customers.column("row").to_pylist() == list(range(len(CUSTOMER_IDS)))
    assert tracks.column("name").to_pylist() == TRACK_NAMES
    assert lines == [f"exporting {step} of job 'planted'"]


def test_incomplete_and_corrupt_checkpoints_are_skipped_by_name(
    checkpoints: Path, saved: Saved, tmp_path: Path, lines: Lines
) -> None:
    (checkpoints / "step-000000300" / MANIFEST_NAME).unlink()
    [victim] = checkpoints.glob("step-000000200/track/weights.*")
    corrupt(victim)
    assert lines.export(checkpoints, tmp_path / "out").step == 100
    assert_same(tmp_path / "out", saved[100])
    incomplete, first, corrupted, second = lines
    assert incomplete.startswith(f"skipped a checkpoint: {checkpoints}/step-000000300/{MANIFEST_NAME}: missing")
    assert "step-000000200" in first
    assert corrupted == f"skipped a checkpoint: {victim}: its CRC-32 does not match its content"
    assert "step-000000100" in second


@pytest.mark.parametrize(("victim", "change"), [(MANIFEST_NAME, Path.unlink), ("track/weights.*", corrupt)])
def test_corrupt_named_checkpoint_is_rejected_without_output(
    checkpoints: Path, tmp_path: Path, lines: Lines, victim: str, change: Callable[[Path], None]
) -> None:
    [path] = checkpoints.glob(f"step-000000300/{victim}")
    change(path)
    with pytest.raises(CheckpointError) as error:
        lines.export(checkpoints / "step-000000300", tmp_path / "out")
    assert str(error.value).startswith(f"{path}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["written"]


def test_only_named_tables_are_exported(checkpoints: Path, tmp_path: Path, lines: Lines) -> None:
    exported = lines.export(checkpoints, tmp_path / "out", ITEM, ITEM)
    assert exported.tables == [ExportedTable(ITEM, len(TRACK_NAMES), 4)]
    assert EmbeddingFiles(tmp_path / "out").entities == [ITEM]
    with pytest.raises(InputError, match="has no table 'artist'; it has customer, track"):
        lines.export(checkpoints, tmp_path / "other", ITEM, "artist")


def test_moved_dataset_is_found_by_option(
    run: WrittenRun, checkpoints: Path, saved: Saved, tmp_path: Path, lines: Lines
) -> None:
    moved = run.data.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"^{run.data}: is not a dataset; name the dataset .* with data"):
        lines.export(checkpoints, tmp_path / "out")
    lines.export(checkpoints, tmp_path / "out", data=moved)
    assert_same(tmp_path / "out", saved[300])


def test_other_dataset_is_rejected(run: WrittenRun, checkpoints: Path, tmp_path: Path, lines: Lines) -> None:
    smaller = tmp_path / "smaller"
    write_data_set(smaller, {}, queries=len(CUSTOMER_IDS), items=len(TRACK_NAMES) - 1)
    with pytest.raises(InputError, match=r"smaller: its vocabulary of 'track' has 9 rows, but the table .* has 10"):
        lines.export(checkpoints, tmp_path / "out", data=smaller)
    again = json.loads((run.data / MANIFEST_NAME).read_text()) | {"source": {"seed": 2}}
    (run.data / MANIFEST_NAME).write_text(json.dumps(again))
    with pytest.raises(InputError, match=r"data: is another dataset than .*step-000000300 was trained on"):
        lines.export(checkpoints, tmp_path / "out", data=run.data)
    assert not (tmp_path / "out").exists()


def test_checkpoint_without_dataset_record_is_rejected(tmp_path: Path, lines: Lines) -> None:
    table = TableSpec(ITEM, 10, 4, 0.1)
    uri = save_shards(str(tmp_path), 1, [table], OPTIMIZER, [split_table(table, random_table(table, OPTIMIZER), 1)])
    with pytest.raises(InputError, match="has no record of its dataset"):
        lines.export(uri, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("missing", "no such folder.*expected a run folder, a folder of checkpoints, or a"),
        ("run/job.yaml", "is a file"),
        ("data", "is a dataset"),
        ("run/checkpoints/step-000000400", "no such folder"),
        ("run", "checkpoints: holds no checkpoint"),
    ],
)
def test_source_without_checkpoints_is_rejected(
    run: WrittenRun, tmp_path: Path, lines: Lines, name: str, found: str
) -> None:
    with pytest.raises(InputError, match=f"{name}[:/].*{found}"):
        lines.export(run.path.parent / name, tmp_path / "out")


def test_checkpoints_of_a_run_may_be_elsewhere(
    run: WrittenRun, checkpoints: Path, saved: Saved, tmp_path: Path, lines: Lines
) -> None:
    elsewhere = shutil.move(checkpoints, tmp_path / "elsewhere")
    job = json.loads((run.path / "job.yaml").read_text())
    job["checkpoint"]["path"] = str(elsewhere)
    (run.path / "job.yaml").write_text(json.dumps(job))
    lines.export(run.path, tmp_path / "out")
    assert_same(tmp_path / "out", saved[300])
