"""Commands whose address space is limited, as by ``ulimit -v``: they succeed, or end with a line about memory."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from cluster_data import write_job, write_planted
from running_command import messages, single_line, succeeded

from crossfade.base import memory_limit
from crossfade.base.errors import InputError
from crossfade.base.memory_limit import check_address_space, lack_of_memory

GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limited")
    write_job(folder / "job.yaml", write_planted(folder / "data"))
    (folder / "events.csv").write_text("customer,track\n" + "".join(f"c{n % 9},t{n % 7}\n" for n in range(99)))
    return folder


def limited(mebibytes: int, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in an address space of ``mebibytes``."""
    return subprocess.run(
        ["prlimit", f"--as={mebibytes * 2**20}", sys.executable, "-m", "crossfade", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


PREPARE = ("prepare", "--events", "events.csv", "--query", "customer", "--item", "track", "--out", "prepared")


@pytest.mark.slow
def test_too_small_address_space_is_rejected_in_one_line(folder: Path) -> None:
    """Without the check, libraries abort the process or hang at some limits."""
    result = limited(1400, *PREPARE, cwd=folder)
    assert "this process has 1.4 GiB" in single_line(result.returncode, result.stdout, result.stderr)


def smallest_sufficient() -> int:
    """Return the least limit in MiB that a command accepts."""
    return (memory_limit._COMMAND_BYTES + memory_limit._THREAD_BYTES * len(os.sched_getaffinity(0))) // 2**20


@pytest.mark.slow
def test_smallest_address_space_that_is_accepted_suffices_in_process(folder: Path) -> None:
    limit = smallest_sufficient()
    for command in (("train", "job.yaml"), ("recommend", "runs/planted", "--customer", "c000"), PREPARE):
        succeeded(limited(limit, *command, cwd=folder))


@pytest.mark.slow
def test_data_that_exceed_the_address_space_end_a_run_with_a_line_about_memory(folder: Path) -> None:
    large = ("--set", "model.dim=262144", "--set", "train.epochs=1")
    result = limited(smallest_sufficient(), "train", "job.yaml", "--run-dir", "large", *large, cwd=folder)
    assert result.returncode == 1, result.stderr
    [line] = messages(result.stderr)
    assert f"limited to {smallest_sufficient() / 1024:.1f} GiB (ulimit -v)" in line


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


def test_commands_that_load_no_data_accept_any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (GIB // 4, GIB // 4))
    check_address_space("status")
    with pytest.raises(InputError, match="crossfade worker needs 3"):
        check_address_space("worker")
