"""Export: the vectors of a checkpoint with the IDs of its dataset, completely or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import write_data_set
from cluster_data import CUSTOMERS, TRACKS, write_job, write_planted
from exporting import OPTIMIZER, training_on, vectors
from saved_shards import Arrays, random_table, save_shards, split_table

from crossfade.base.errors import CheckpointError, InputError
from crossfade.kvstore.checkpoint.format import MANIFEST_NAME
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.formats.export import ExportResult, export
from crossfade.trainer.formats.exported_model import ExportedTable
from crossfade.trainer.formats.options import ExportOptions

TABLES = [TableSpec("customer", CUSTOMERS, 4, 0.1), TableSpec("track", TRACKS, 4, 0.1)]
STEPS = (100, 200, 300)
ENTITIES = [table.name for table in TABLES]


def values_at(step: int) -> dict[str, Arrays]:
    """Return the tables of the checkpoint of ``step``."""
    return {table.name: random_table(table, OPTIMIZER, seed=step) for table in TABLES}


def save_step(checkpoints: Path, data: Path, step: int) -> None:
    """Write the checkpoint of ``step`` like two servers with two keys each."""
    held = [split_table(table, values_at(step)[table.name], num_shards=4) for table in TABLES]
    parts = [[part for table in held for part in table[server::2]] for server in range(2)]
    save_shards(str(checkpoints), step, TABLES, OPTIMIZER, parts, training_on(data))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset with string IDs of customers and names of tracks, and checkpoints of a run on it."""
    folder = tmp_path_factory.mktemp("written")
    data = write_planted(folder / "data", named=True)
    for step in STEPS:
        save_step(folder / "checkpoints", data, step)
    return folder


@pytest.fixture
def checkpoints(written: Path, tmp_path: Path) -> Path:
    """Copy the checkpoints, so that a test may corrupt them."""
    return Path(shutil.copytree(written / "checkpoints", tmp_path / "checkpoints"))


@pytest.fixture
def data(written: Path, tmp_path: Path) -> Path:
    """Copy the dataset to another folder."""
    return Path(shutil.copytree(written / "data", tmp_path / "data"))


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:09d}"


class Lines(list[str]):
    """The lines that an export logs."""

    def export(self, source: Path | str, out: Path, *entities: str, data: str | None = None) -> ExportResult:
        options = ExportOptions.of(source=str(source), entity=entities, data=data, out=out)
        return export(options, self.append, NullReporter())


@pytest.fixture
def lines() -> Lines:
    return Lines()


def assert_is_step(folder: Path, step: int) -> None:
    for entity, arrays in values_at(step).items():
        np.testing.assert_array_equal(vectors(folder, entity), arrays["weights"])


def corrupt(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_export_has_vectors_of_checkpoint_and_ids_of_dataset(written: Path, tmp_path: Path, lines: Lines) -> None:
    step = step_folder(written / "checkpoints", 200)
    exported = lines.export(step, tmp_path / "out")
    assert (exported.model, exported.step, exported.job) == (str(step), 200, "planted")
    assert_is_step(tmp_path / "out", 200)
    assert EmbeddingFiles(tmp_path / "out").entities == ENTITIES
    customers, tracks = (pq.read_table(tmp_path / "out" / entity) for entity in ENTITIES)
    assert customers.column_names == ["id", "row", "vector"]
    assert customers.column("id").to_pylist() == [f"c{row:03d}" for row in range(CUSTOMERS)]
    assert customers.column("row").to_pylist() == list(range(CUSTOMERS))
    assert tracks.column("id").to_pylist() == [5000 + row for row in range(TRACKS)]
    assert tracks.column("name").to_pylist()[-1] == f"Genre {(TRACKS - 1) % 5} Song {TRACKS - 1}"
    assert lines == [f"exporting {step} of job 'planted'"]


def test_incomplete_and_corrupt_checkpoints_are_skipped_by_name(
    checkpoints: Path, tmp_path: Path, lines: Lines
) -> None:
    (step_folder(checkpoints, 300) / MANIFEST_NAME).unlink()
    [victim] = step_folder(checkpoints, 200).glob("track/weights.00003*")
    corrupt(victim)
    assert lines.export(checkpoints, tmp_path / "out").step == 100
    assert_is_step(tmp_path / "out", 100)
    incomplete, first, corrupted, second = lines
    assert incomplete.startswith(f"skipped a checkpoint: {step_folder(checkpoints, 300)}/{MANIFEST_NAME}: missing")
    assert "step-000000200" in first
    assert corrupted == f"skipped a checkpoint: {victim}: its CRC-32 does not match its content"
    assert "step-000000100" in second


@pytest.mark.parametrize(
    ("victim", "change"),
    [
        (MANIFEST_NAME, Path.unlink),
        ("track/weights.00003*", corrupt),
    ],
)
def test_corrupt_named_checkpoint_is_rejected_without_output(
    checkpoints: Path, tmp_path: Path, lines: Lines, victim: str, change: Callable[[Path], None]
) -> None:
    step = step_folder(checkpoints, 300)
    [path] = step.glob(victim)
    change(path)
    with pytest.raises(CheckpointError) as error:
        lines.export(step, tmp_path / "out")
    assert str(error.value).startswith(f"{path}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_only_named_tables_are_exported(written: Path, tmp_path: Path, lines: Lines) -> None:
    exported = lines.export(written / "checkpoints", tmp_path / "out", "track", "track")
    assert exported.tables == [ExportedTable("track", TRACKS, 4)]
    assert EmbeddingFiles(tmp_path / "out").entities == ["track"]
    with pytest.raises(InputError, match="has no table 'artist'; it has customer, track"):
        lines.export(written / "checkpoints", tmp_path / "other", "track", "artist")


@pytest.mark.slow
def test_moved_dataset_is_found_by_option(data: Path, tmp_path: Path, lines: Lines) -> None:
    save_step(tmp_path / "checkpoints", data, 1)
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"^{data}: is not a dataset; name the dataset .* with data"):
        lines.export(tmp_path / "checkpoints", tmp_path / "out")
    lines.export(tmp_path / "checkpoints", tmp_path / "out", data=str(tmp_path / "elsewhere"))
    assert_is_step(tmp_path / "out", 1)


def test_other_dataset_is_rejected(written: Path, data: Path, tmp_path: Path, lines: Lines) -> None:
    smaller = tmp_path / "smaller"
    write_data_set(smaller, {}, queries=CUSTOMERS, items=TRACKS - 1)
    with pytest.raises(InputError, match=r"smaller: its vocabulary of 'track' has 199 rows, but the table .* has 200"):
        lines.export(written / "checkpoints", tmp_path / "out", data=str(smaller))
    again = json.loads((data / MANIFEST_NAME).read_text()) | {"source": {"seed": 2}}
    (data / MANIFEST_NAME).write_text(json.dumps(again))
    with pytest.raises(InputError, match=r"data: is another dataset than .*step-000000300 was trained on"):
        lines.export(written / "checkpoints", tmp_path / "out", data=str(data))
    assert not (tmp_path / "out").exists()


def test_checkpoint_without_dataset_record_is_rejected(tmp_path: Path, lines: Lines) -> None:
    held = [split_table(table, values_at(1)[table.name], num_shards=1)[0] for table in TABLES]
    uri = save_shards(str(tmp_path), 1, TABLES, OPTIMIZER, [held])
    with pytest.raises(InputError, match="has no record of its dataset"):
        lines.export(uri, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("missing", "no such folder"),
        ("file", "is a file"),
        ("data", "is a dataset"),
        ("checkpoints/step-000000400", "no such folder"),
    ],
)
def test_source_without_checkpoints_is_rejected(
    written: Path, tmp_path: Path, lines: Lines, name: str, found: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "data").symlink_to(written / "data")
    with pytest.raises(InputError, match=f"{name}: {found}.*expected a run folder, a folder of checkpoints, or a"):
        lines.export(tmp_path / name, tmp_path / "out")


def make_run(folder: Path, written: Path, **sections: Any) -> Path:
    """Write a run folder with a job."""
    folder.mkdir()
    write_job(folder / "job.json", written / "data", **sections)
    (folder / "job.json").rename(folder / "job.yaml")
    return folder


def test_checkpoints_of_a_run_are_found_at_any_path(written: Path, tmp_path: Path, lines: Lines) -> None:
    run = make_run(tmp_path / "run", written)
    with pytest.raises(InputError, match="run/checkpoints: holds no checkpoint"):
        lines.export(run, tmp_path / "out")
    shutil.copytree(written / "checkpoints", run / "checkpoints")
    lines.export(run, tmp_path / "out")
    assert_is_step(tmp_path / "out", 300)
    away = make_run(tmp_path / "away", written, checkpoint={"path": str(written / "checkpoints")})
    lines.export(away, tmp_path / "out-away")
    assert_is_step(tmp_path / "out-away", 300)
