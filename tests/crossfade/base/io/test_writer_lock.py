"""One writer at a time: the second one names the first, and a lock whose owner has died holds nothing."""

import errno
import fcntl
import logging
import os
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from killed_process import holding

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import output_lock, staged_file, staged_folder
from crossfade.base.io.s3 import ChangedError
from crossfade.base.io.writer_lock import LOCK_NAME, folder_writer, path_lock


def test_second_writer_names_the_first_and_a_killed_one_holds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holding(lambda: folder_writer(Folder(tmp_path))) as pid:
        with pytest.raises(InputError) as caught, folder_writer(Folder(tmp_path)):
            pass
        assert f": process {pid} on host {socket.gethostname()} has been writing it since 20" in str(caught.value)
    assert (tmp_path / LOCK_NAME).exists(), "it was killed"
    with caplog.at_level(logging.WARNING), folder_writer(Folder(tmp_path)):
        owner = f"process {pid} on host {socket.gethostname()}"
        assert caplog.messages == [f"{tmp_path}: took over the lock of {owner}, which has ended"]
    assert list(tmp_path.iterdir()) == []


def count_up(path: Path, lock: Path, times: int) -> None:
    """Add 1 to the number in ``path`` so many times, which loses some if two processes do so at once."""
    while times:
        with suppress(InputError), path_lock(lock, "the counter"):
            path.write_text(str(int(path.read_text()) + 1))
            times -= 1


@pytest.mark.slow
def test_processes_that_take_and_delete_the_lock_exclude_each_other(tmp_path: Path) -> None:
    counter, lock = tmp_path / "counter", tmp_path / "lock"
    counter.write_text("0")
    children = []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            try:
                count_up(counter, lock, 30)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
    count_up(counter, lock, 30)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert counter.read_text() == "120"
    assert not lock.exists()


def test_folder_that_was_replaced_keeps_the_lock_of_its_next_writer(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    first = ExitStack()
    lock = first.enter_context(folder_writer(Folder(data)))
    data.rename(tmp_path / "old")
    data.mkdir()
    with pytest.raises(ChangedError):
        lock.check()
    with folder_writer(Folder(data)) as second:
        first.close()
        second.check()
        with pytest.raises(InputError), folder_writer(Folder(data)):
            pass
    assert list(data.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(errno.ENOLCK, "No locks available"), KeyboardInterrupt()])
def test_writer_that_fails_to_lock_leaves_the_lock_of_another(
    tmp_path: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise failure

    with path_lock(tmp_path / "lock", "data") as held:
        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", fail)
            with pytest.raises((InputError, KeyboardInterrupt)), path_lock(tmp_path / "lock", "data"):
                pass
        held.check()
        with pytest.raises(InputError, match="wait until it ends"), path_lock(tmp_path / "lock", "data"):
            pass


def test_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="data: cannot be written: "), path_lock(tmp_path / "lock", "data"):
        pass
    assert (tmp_path / "mine").read_text() == "kept"


def test_leftovers_of_a_killed_writer_are_deleted_by_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "[new]" / "data*"
    other = tmp_path / "[new]" / ".data2.partial-1"
    with holding(lambda: staged_folder(target)):
        other.mkdir()
        with pytest.raises(InputError, match=r"has been writing it since"), staged_folder(target):
            pass
    [left] = target.parent.glob(".data[*].partial-*")
    with caplog.at_level(logging.WARNING), output_lock(target):
        assert caplog.messages[-1] == f"{left}: deleting what a command that was killed has left"
    assert list(target.parent.iterdir()) == [other]


def test_file_is_replaced_when_complete_and_kept_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "recs.parquet"
    for text in ("old", "new"):
        with staged_file(path) as partial:
            partial.write_text(text)
            assert not path.exists() if text == "old" else path.read_text() == "old"

    def fail() -> None:
        with staged_file(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "new"
    with output_lock(path), pytest.raises(InputError, match="wait until it ends"), staged_file(path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]
