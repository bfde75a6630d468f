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


LACKS: list[BaseException] = [
    MemoryError("Unable to allocate 3.73 TiB"),
    caused(pa.ArrowMemoryError("malloc of size 9 failed")),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
]


def circular() -> BaseException:
    """Return an error that is, indirectly, its own cause."""
    error, cause = InputError("no such file"), FileNotFoundError("no such file")
    error.__cause__, cause.__cause__ = cause, error
    return error


@pytest.mark.parametrize("error", [circular(), RuntimeError("x"), OSError(errno.ENOSPC, "x"), ValueError("x")])
def test_other_errors_are_no_lack_of_memory(error: BaseException) -> None:
    assert lack_of_memory(error) is None
