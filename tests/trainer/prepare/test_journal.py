"""A large preparation that is killed: the same command continues from what was kept, and gives the same bytes."""

import json
import logging
import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from killed_process import holding
from preparing import InterruptingReporter, random_events, write_parquet
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.trainer.prepare import id_encoder, pipeline
from crossfade.trainer.prepare.journal import Journal, open_journal
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.prepare.staging import staged_output

pytestmark = pytest.mark.slow

Example = tuple[list[Path], dict[str, bytes]]


@pytest.fixture(autouse=True)
def _always_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(pipeline, "KEPT_FROM_BYTES", 0)
    caplog.set_level(logging.INFO)


def inputs(folder: Path) -> list[Path]:
    """Write three files; the rows of the second that lack a value are left out."""
    return [write_events(folder / f"{seed}.parquet", seed, missing=seed == 1) for seed in range(3)]


def write_events(path: Path, seed: int, missing: bool = False) -> Path:
    events = random_events(900, seed)
    if missing:
        events["when"][3] = events["item"][7] = None
    return write_parquet(path, **events, place=[f"p{number % 7}" for number in range(900)])


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Return input files, and the dataset that a command makes of them that nothing disturbs."""
    folder = tmp_path_factory.mktemp("example")
    files = inputs(folder / "in")
    prepare(options(folder / "out", files))
    return files, contents(folder / "out")


def options(out: Path | str, files: list[Path], **others: Any) -> PrepareOptions:
    given = {"timestamp": "when", "hold_out": "last-1", "context": ["place=place"], "on_missing": "drop"}
    return PrepareOptions.of(out=out, train=files, threads=2, **(given | others))


def contents(out: Path) -> dict[str, bytes]:
    """Return the bytes of each file of a dataset."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def killed_after(saves: int, given: PrepareOptions) -> None:
    """Prepare in a process that is killed once the journal has ``saves`` steps."""

    def enlist(patch: pytest.MonkeyPatch) -> None:
        save = Journal.save

        def save_and_die(journal: Journal, *arguments: Any, **named: Any) -> None:
            save(journal, *arguments, **named)
            if len(journal.steps) == saves:
                os.kill(os.getpid(), signal.SIGKILL)

        patch.setattr(Journal, "save", save_and_die)

    assert killed(given, enlist)


def killed_at_sync(number: int, given: PrepareOptions) -> bool:
    """Prepare in a process that is killed when it syncs for the ``number``-th time; return whether it was."""

    def enlist(patch: pytest.MonkeyPatch) -> None:
        sync, left = os.fsync, [number]

        def sync_or_die(descriptor: int) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(descriptor)

        patch.setattr(os, "fsync", sync_or_die)

    return killed(given, enlist)


def killed(given: PrepareOptions, enlist: Callable[[pytest.MonkeyPatch], None]) -> bool:
    """Prepare in a separate process, changed by ``enlist``; return whether it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            enlist(pytest.MonkeyPatch())
            prepare(given)
            code = 0
        finally:
            os._exit(code)
    statuses: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        statuses.extend([status] if found else [])
        return bool(found)

    try:
        wait_until(has_ended, "the end of the preparation")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert statuses in ([0], [signal.SIGKILL])
    return statuses != [0]


@pytest.mark.parametrize(
    ("saves", "message"),
    [(1, "1 of 3 files are read"), (3, "3 of 3 files are read"), (4, "read, hold out"), (5, "hold out, write train")],
)
def test_same_command_continues_with_same_bytes(
    example: Example, tmp_path: Path, caplog: pytest.LogCaptureFixture, saves: int, message: str
) -> None:
    files, undisturbed = example
    given = options(tmp_path / "data/out", files)
    killed_after(saves, given)
    assert not (tmp_path / "data/out").exists()
    caplog.clear()
    prepare(given)
    assert message in caplog.text
    assert contents(tmp_path / "data/out") == undisturbed
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["out"]


@pytest.mark.parametrize("bits", [8, 11, 12])
def test_continues_with_numbers_of_taken_hashes(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    files, undisturbed = example
    # So few that the hashes of many IDs are taken, and that the first file, the third, or none has too many events.
    monkeypatch.setattr(id_encoder, "_NARROW_TYPE", "USMALLINT")
    monkeypatch.setattr(id_encoder, "_NARROW_BITS", bits)
    given = options(tmp_path / "out", files)
    killed_after(2, given)
    prepare(given)
    assert contents(tmp_path / "out") == undisturbed


def test_killed_again_and_again(example: Example, tmp_path: Path) -> None:
    files, undisturbed = example
    out = tmp_path / "data/out"
    for kills in count():
        killed_at_sync(12 + 2 * kills, options(out, files, work_dir=tmp_path))
        if out.exists():
            break
    assert kills > 3
    assert contents(out) == undisturbed
    prepare(options(out, files, work_dir=tmp_path, overwrite=True))
    assert contents(out) == undisturbed
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("name", ["1-events.arrow", "*-moved.arrow", "dataset/train/*", "journal"])
def test_damaged_file_is_made_again(
    example: Example, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    files, undisturbed = example
    given = options(tmp_path / "data/out", files)
    killed_after(6, given)
    path = sorted((tmp_path / "data/.out.prepare").glob(name))[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    caplog.clear()
    prepare(given)
    assert ("is damaged: it is done again" in caplog.text) == (name != "journal")
    assert contents(tmp_path / "data/out") == undisturbed


@pytest.mark.parametrize("changed", ["input", "options", "small"])
def test_other_preparation_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    files = inputs(tmp_path / "in")
    killed_after(5, options(tmp_path / "data/out", files))
    seed = 0
    if changed == "input":
        write_events(files[2], 9)
    elif changed == "options":
        seed = 1
    else:
        monkeypatch.setattr(pipeline, "KEPT_FROM_BYTES", 1 << 30)
    caplog.clear()
    prepare(options(tmp_path / "data/out", files, seed=seed))
    assert "continues" not in caplog.text
    prepare(options(tmp_path / "undisturbed", files, seed=seed))
    assert contents(tmp_path / "data/out") == contents(tmp_path / "undisturbed")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["out"]


def test_copy_of_same_size_and_time_is_other_input(tmp_path: Path) -> None:
    files = inputs(tmp_path / "in")
    killed_after(5, options(tmp_path / "data/out", files))
    status = files[1].stat()
    write_events(tmp_path / "copy.parquet", 1)
    (tmp_path / "copy.parquet").write_bytes((tmp_path / "copy.parquet").read_bytes()[: status.st_size])
    with (tmp_path / "copy.parquet").open("ab") as copy:
        copy.truncate(status.st_size)
    os.utime(tmp_path / "copy.parquet", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "copy.parquet").replace(files[1])
    with pytest.raises(InputError, match=r"1\.parquet"):  # it was read, and is damaged
        prepare(options(tmp_path / "data/out", files))


def test_folder_of_all_users_that_was_not_made_here_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "kept").symlink_to(elsewhere)
    with pytest.raises(InputError, match="was not made by this user"), open_journal(tmp_path / "kept", "x", None):
        pass
    assert list(elsewhere.iterdir()) == []


def test_interrupt_keeps_and_error_does_not(example: Example, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, _ = example
    given = options(tmp_path / "data/out", files)
    with pytest.raises(KeyboardInterrupt):
        prepare(given, InterruptingReporter("write train"))
    assert "the same command continues" in caplog.text
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".out.prepare"]
    assert not (tmp_path / "data/.out.prepare/work").exists()
    with pytest.raises(InputError, match="takes no interaction"):
        prepare(options(tmp_path / "data/out", files, hold_out="after:1000000000"))
    assert list((tmp_path / "data").iterdir()) == []


def test_second_command_is_refused_and_disturbs_nothing(example: Example, tmp_path: Path) -> None:
    files, _ = example
    given = options(tmp_path / "out", files)
    killed_after(5, given)
    journal = (tmp_path / ".out.prepare/journal").read_bytes()
    identity = json.loads(journal.splitlines()[0].partition(b" ")[2])["state"]["identity"]
    with holding(lambda: staged_output(tmp_path / "out", overwrite=False, identity=identity)):
        before = contents(tmp_path)
        assert before[".out.prepare/journal"] == journal
        with pytest.raises(InputError, match=r"has been writing it since"):
            prepare(given)
        assert contents(tmp_path) == before
