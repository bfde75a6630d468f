"""The output folder of ``prepare``: replaced only with --overwrite, written completely or not at all."""

import os
import signal
import threading
from pathlib import Path

import pytest
from command_here import crossfade_here
from killed_process import killed_at
from preparing import InterruptingReporter, checksums, entries, prepare_files, random_events, write_parquet, write_text
from running_command import single_line

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import output_lock
from crossfade.base.io.writer_lock import folder_writer
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare.database import execute, working_database
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

pytestmark = pytest.mark.slow


def test_temporary_files_go_to_work_dir_and_are_removed(tmp_path: Path) -> None:
    class RecordingReporter:
        def phase(self, name: str, total: int | None, unit: str) -> None:
            seen.update(path.name for path in work.rglob("*"))

        def advance(self, amount: int) -> None:
            pass

    seen: set[str] = set()
    work = tmp_path / "work"
    work.mkdir()
    train = write_parquet(tmp_path / "e.parquet", **random_events(500))
    prepare(PrepareOptions.of(out=tmp_path / "out", train=[train], work_dir=work), RecordingReporter())
    assert seen
    assert list(work.iterdir()) == []
    with pytest.raises(InputError, match=r"work_dir .*nowhere: cannot be written"):
        prepare_files(tmp_path / "other", train, work_dir=tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "out", "work"]


@pytest.mark.slow
def test_existing_dataset_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(400))
    out = tmp_path / "out"
    prepare_files(out, train)
    before = checksums(out)
    with pytest.raises(InputError, match=r"out: already exists.*overwrite"):
        prepare_files(out, train, hold_out="random:0.5")
    assert checksums(out) == before
    prepare_files(out, train, hold_out="random:0.5", overwrite=True)
    assert set(read_manifest(Folder(out)).splits) == {"train", "valid", "test"}
    assert entries(tmp_path)[:2] == ["e.parquet", "out"]
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("e.parquet", "out")] == []


def test_overwrite_rejects_folder_with_other_files(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(20))
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(InputError, match="no prepared data"):
        prepare_files(plain, train, overwrite=True)
    prepare_files(tmp_path / "out", train)
    write_text(tmp_path / "out/notes.txt", "mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        prepare_files(tmp_path / "out", train, overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["link", "dangling", "train/link"])
def test_overwrite_rejects_links(tmp_path: Path, name: str) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(20))
    prepare_files(tmp_path / "out", train)
    entry = tmp_path / "out" / name
    entry.symlink_to(tmp_path / ("nowhere" if name == "dangling" else "."))
    with pytest.raises(InputError, match=f"'{name}'"):
        prepare_files(tmp_path / "out", train, overwrite=True)
    assert entry.is_symlink()


@pytest.mark.parametrize("phase", ["read events", "vocabulary of item", "write train"])
def test_interrupt_leaves_neither_output_nor_created_parents(tmp_path: Path, phase: str) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(20))
    with pytest.raises(KeyboardInterrupt):
        prepare(PrepareOptions.of(out=tmp_path / "new/deep/out", train=[train]), InterruptingReporter(phase))
    assert entries(tmp_path) == ["e.parquet"]


@pytest.mark.parametrize(("phase", "replaced"), [("read events", False), ("write train", False), ("write train", True)])
def test_kill_leaves_nothing_visible_and_the_next_run_deletes_leftovers(
    tmp_path: Path, phase: str, replaced: bool
) -> None:
    class Killer:
        def phase(self, name: str, total: int | None, unit: str) -> None:
            if name == phase:
                os.kill(os.getpid(), signal.SIGKILL)

        def advance(self, amount: int) -> None:
            pass

    train = write_parquet(tmp_path / "e.parquet", **random_events(200))
    out = tmp_path / "data/out"
    if replaced:
        prepare_files(out, train, seed=1)
    before = checksums(out) if replaced else {}
    options = PrepareOptions.of(out=out, train=[train], overwrite=replaced)
    assert killed_at(0, lambda: prepare(options, Killer()))
    assert (checksums(out) if out.exists() else {}) == before
    assert len(list(out.parent.glob(".out.partial-*"))) > 0
    prepare(options)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_signal_during_query_raises_exception_of_its_handler(tmp_path: Path) -> None:
    class Stopped(BaseException):
        pass

    def stop(_number: int, _frame: object) -> None:
        raise Stopped

    def work() -> None:
        with working_database(tmp_path, 200 << 20, 1) as connection:
            timer.start()
            execute(connection, "CREATE TABLE t AS SELECT hash(range) AS h FROM range(1000000000) ORDER BY h")

    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Stopped):
            work()
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def test_second_writer_of_a_dataset_names_the_first(tmp_path: Path) -> None:
    events, data = write_parquet(tmp_path / "e.parquet", **random_events(300)), tmp_path / "data"
    prepare_files(data, events)
    before = checksums(data)
    overwriting = ("prepare", "--events", events, "--overwrite", "--out")
    with folder_writer(Folder(data)):
        for command in (("forget", data, "--ids", write_text(tmp_path / "ids", "c1\n")), (*overwriting, data)):
            result = crossfade_here(*command)
            line = single_line(result.returncode, result.stdout, result.stderr)
            assert f"process {os.getpid()} on host" in line
            assert "has been writing it since" in line
    with output_lock(tmp_path / "new"):
        result = crossfade_here(*overwriting, tmp_path / "new")
        assert "has been writing it since" in single_line(result.returncode, result.stdout, result.stderr)
    assert checksums(data) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "e.parquet", "ids"]
