"""A lack of memory ends a command with a line about memory, whatever error reports it."""

import errno
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from cluster_data import write_job, write_planted
from running_command import messages

from crossfade.base.errors import InputError
from crossfade.base.memory_limit import lack_of_memory

ADDRESS_SPACE = 4 << 30


@pytest.mark.slow
def test_data_that_exceed_the_address_space_end_a_run_with_a_line_about_memory(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    arguments = ("train", "job.yaml", "--run-dir", "large", "--set", "model.dim=262144", "--set", "train.epochs=1")
    command = ["prlimit", f"--as={ADDRESS_SPACE}", sys.executable, "-m", "crossfade", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1, result.stderr
    [line] = messages(result.stderr)
    assert line.startswith("crossfade: error: not enough memory: ")


def caused(cause: BaseException) -> BaseException:
    """Return the error of a file that a reader takes for corrupt, because of ``cause``."""
    error = InputError("data/part-0.parquet: is corrupt and cannot be read (malloc of size 9 failed)")
    error.__cause__ = cause
    return error


def circular() -> BaseException:
    """Return an error that is, indirectly, its own cause."""
    error, cause = InputError("no such file"), FileNotFoundError("no such file")
    error.__cause__, cause.__cause__ = cause, error
    return error


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (MemoryError("Unable to allocate 3.73 TiB"), True),
        (caused(pa.ArrowMemoryError("malloc of size 9 failed")), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("can't start new thread"), True),
        (circular(), False),
        (RuntimeError("x"), False),
        (OSError(errno.ENOSPC, "x"), False),
    ],
)
def test_lack_of_memory_is_found_also_behind_what_a_reader_takes_for_corrupt(
    error: BaseException, is_lack: bool
) -> None:
    assert (lack_of_memory(error) or "").startswith("not enough memory: ") == is_lack
