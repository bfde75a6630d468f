"""A file lock excludes other processes until its file is closed, and ends with the process."""

import subprocess
import sys
from pathlib import Path

import pytest

from crossfade.base.io.file_lock import folder_lock, try_lock

HOLD = """
import sys
from crossfade.base.io.file_lock import try_lock
file = open(sys.argv[1], "r+")
try_lock(file)
print("locked", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_lock_is_free_once_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    holder = hold(path)
    with path.open("r+") as file:
        with pytest.raises(BlockingIOError):
            try_lock(file)
        holder.kill()
        holder.communicate()
        try_lock(file)
        with path.open("r+") as other, pytest.raises(BlockingIOError):
            try_lock(other)
    with path.open("r+") as other:
        try_lock(other)


def test_folder_is_locked_while_the_context_lasts(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        other = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from crossfade.base.io.file_lock import folder_lock\n"
                "print('waiting', flush=True)\nwith folder_lock(Path(sys.argv[1])): print('locked')",
                str(tmp_path),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "waiting\n"
        assert other.poll() is None
    assert other.communicate()[0] == "locked\n"
    assert list(tmp_path.iterdir()) == []
