"""Deletion of IDs from a dataset and its base datasets: from all or, after an error, from none."""

import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from command_here import crossfade_here
from crashing_storage import Crash, CrashingStorage
from preparing import interactions, prepare_files, vocabulary_tuples, write_parquet
from running_command import succeeded

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import open_bases
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare.forget import ForgetReport, forget_in_lineage

pytestmark = pytest.mark.slow

DAYS = {"day1": [("a", 1), ("b", 1), ("b", 2)], "day2": [("a", 2), ("c", 3)], "day3": [("b", 3), ("c", 1), ("d", 4)]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare three days, each on the one before; b is in the first and the last, a in the first two."""
    tmp_path, base = tmp_path_factory.mktemp("days"), None
    for name, plays in DAYS.items():
        raw = write_parquet(
            tmp_path / f"{name}.parquet", customer=[one for one, _ in plays], item=[i for _, i in plays]
        )
        prepare_files(tmp_path / name, raw, item="item", base=base, hold_out_valid="none")
        base = str(tmp_path / name)
    return tmp_path


@pytest.fixture
def lineage(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path, dirs_exist_ok=True))


def forget(folder: Path, *ids: str, this_dataset_only: bool = False) -> list[ForgetReport]:
    chosen = pa.array(ids)
    return forget_in_lineage(Folder(folder), chosen, "customer", NullReporter(), this_dataset_only=this_dataset_only)


def holders(lineage: Path, customer: str) -> list[str]:
    """Return the datasets that have an ID or an interaction of ``customer``; check that all of them are complete."""
    found = []
    for name in DAYS:
        files, manifest = ParquetFiles(Folder(lineage / name)), read_manifest(Folder(lineage / name))
        for file in manifest.files():
            files.footer(file)
        ids = [row[1] for row in vocabulary_tuples(lineage / name, "customer")]
        if customer in ids or customer in [row[0] for row in interactions(lineage / name, "train")]:
            found.append(name)
    return found


def contents(lineage: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in lineage.rglob("*") if path.is_file() and "lock" not in path.name}


def test_ids_are_forgotten_in_every_base_dataset(lineage: Path) -> None:
    assert holders(lineage, "b") == ["day1", "day2", "day3"]
    reports = forget(lineage / "day3", "b")
    assert [report.folder.uri for report in reports] == [str(lineage / name) for name in ("day3", "day1", "day2")]
    assert [report.interactions["train"] for report in reports] == [1, 2, 0]
    assert holders(lineage, "b") == []
    # Each dataset is still the base dataset of the next, and a second call finds nothing.
    assert len(open_bases(Folder(lineage / "day3"), read_manifest(Folder(lineage / "day3")))) == 2
    assert [report.found for report in forget(lineage / "day3", "b")] == [0, 0, 0]
    assert [report.found for report in forget(lineage / "day3", "a")] == [1, 1, 1]
    assert holders(lineage, "a") == []


def test_base_dataset_that_is_missing_or_corrupt_leaves_all_unchanged(lineage: Path) -> None:
    (lineage / "day1").rename(lineage / "gone")
    before = contents(lineage)
    with pytest.raises(InputError) as raised:
        forget(lineage / "day3", "b")
    assert "cannot be used as the base dataset of" in str(raised.value)
    assert contents(lineage) == before
    (lineage / "gone").rename(lineage / "day1")
    [part] = (lineage / "day1" / "train").iterdir()
    data = part.read_bytes()
    part.write_bytes(data[:-9])
    before = contents(lineage)
    with pytest.raises(InputError, match=part.name):
        forget(lineage / "day3", "b")
    assert contents(lineage) == before
    assert [report.found for report in forget(lineage / "day3", "b", this_dataset_only=True)] == [1]
    part.write_bytes(data)
    assert holders(lineage, "b") == ["day1", "day2"]


@pytest.mark.slow
def test_crash_at_any_point_leaves_complete_datasets_and_next_call_finishes(lineage: Path, tmp_path: Path) -> None:
    seen = []
    for at in range(1, 1000):
        copy = tmp_path / f"crash-{at}"
        for name in DAYS:
            shutil.copytree(lineage / name, copy / name)
        with pytest.MonkeyPatch.context() as patch:
            storage = CrashingStorage(patch, at)
            with suppress(Crash):
                forget(copy / "day3", "b")
        seen.append(len(holders(copy, "b")))
        forget(copy / "day3", "b")
        assert holders(copy, "b") == [], at
        assert not list(copy.rglob("forget.json")), at
        if not storage.down:
            break
    assert set(seen) == {3, 2, 1, 0}
    assert seen == sorted(seen, reverse=True)


def test_command_reports_each_dataset(lineage: Path) -> None:
    (lineage / "ids.txt").write_text("b\n")
    printed = succeeded(crossfade_here("forget", "day3", "--ids", "ids.txt", cwd=lineage)).stdout
    for name in DAYS:
        assert f"{name}: forgot 1 row of customer" in printed
    (lineage / "day2").rename(lineage / "gone")
    result = crossfade_here("forget", "day3", "--ids", "ids.txt", cwd=lineage)
    assert "cannot be used as the base dataset of" in result.stderr.strip().removeprefix("crossfade: error: ")
    only = succeeded(crossfade_here("forget", "day3", "--ids", "ids.txt", "--this-dataset-only", cwd=lineage)).stdout
    assert "with --this-dataset-only, that it\n                 extends" in only
