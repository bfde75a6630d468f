"""Commands that write one dataset at once: one succeeds or both, one after the other, and the dataset is complete."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from command_here import crossfade_here
from preparing import interactions, prepare_files, write_parquet
from running_command import single_line

from crossfade.base.io.folder import Folder
from crossfade.base.io.output import output_lock
from crossfade.base.io.writer_lock import folder_writer
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.parquet import ParquetFiles

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).resolve().parents[2] / "support" / "drive_cli.py"
FORGOTTEN = ("c1", "c2")
EVENTS = {"customer": [f"c{number % 50}" for number in range(300)], "item": [number % 20 for number in range(300)]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a dataset, and write files of IDs to forget."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare_files(folder / "data", write_parquet(folder / "events.parquet", **EVENTS), hold_out="random:0.1")
    for name in FORGOTTEN:
        (folder / name).write_text(f"{name}\n")
    return folder


@contextmanager
def two_processes() -> Iterator[list["subprocess.Popen[str]"]]:
    """Start two processes that run commands on request."""
    with ExitStack() as stack:
        processes = []
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield processes


def run_both(
    processes: Sequence["subprocess.Popen[str]"], commands: Sequence[Sequence[object]]
) -> list["subprocess.CompletedProcess[str]"]:
    """Run a command in each process, at once, and return the results."""
    for process, command in zip(processes, commands, strict=True):
        assert process.stdin is not None
        process.stdin.write(json.dumps([str(word) for word in command]) + "\n")
    for process in processes:
        assert process.stdin is not None
        process.stdin.flush()
    results = []
    for process in processes:
        assert process.stdout is not None
        results.append(subprocess.CompletedProcess([], *json.loads(process.stdout.readline())))
    return results


def check_complete(data: Path) -> set[str]:
    """Check that all files are there as the manifest describes them, and nothing else; return the customers."""
    manifest, files = read_manifest(Folder(data)), ParquetFiles(Folder(data))
    for file in manifest.files():
        files.footer(file)
    assert set(Folder(data).sizes()) == {"manifest.json", *(file.path for file in manifest.files())}
    return {row[0] for split in manifest.splits for row in interactions(data, split)}


def check_loser(result: "subprocess.CompletedProcess[str]", winner: int, data: Path) -> None:
    """Check that a command that failed names the process of the other."""
    line = single_line(result.returncode, result.stdout, result.stderr)
    assert line.startswith((f"{data}: process {winner} on host ", f"{data}: another process"))


def overwriting(prepared: Path, out: Path) -> tuple[object, ...]:
    """Return the arguments of a command that replaces the dataset in ``out``."""
    return ("prepare", "--events", prepared / "events.parquet", "--query", "customer", "--out", out, "--overwrite")


@pytest.mark.slow
def test_of_two_forgets_at_once_one_succeeds_or_both_in_turn(tmp_path: Path, prepared: Path) -> None:
    losers = 0
    with two_processes() as processes:
        for number in range(15):
            data = tmp_path / str(number) / "data"
            shutil.copytree(prepared / "data", data)
            commands = [("forget", data, "--ids", prepared / name) for name in FORGOTTEN]
            results = run_both(processes, commands)
            left = check_complete(data)
            assert [result.returncode for result in results].count(0) >= 1
            for name, result, other in zip(FORGOTTEN, results, reversed(processes), strict=True):
                assert (name in left) == (result.returncode != 0), result.stderr
                if result.returncode:
                    losers += 1
                    check_loser(result, other.pid, data)
            assert len(left) >= 48
    assert losers, "the two never met"


def test_second_writer_of_a_dataset_names_the_first(tmp_path: Path, prepared: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared / "data", data)
    before = Folder(data).sizes()
    with folder_writer(Folder(data)):
        for cause, command in (
            ("has been writing it since", ("forget", data, "--ids", prepared / "c1")),
            ("has been writing it since", overwriting(prepared, data)),
        ):
            result = crossfade_here(*command)
            line = single_line(result.returncode, result.stdout, result.stderr)
            assert cause in line
            assert f"process {os.getpid()} on host" in line
    with output_lock(tmp_path / "new"):
        result = crossfade_here(*overwriting(prepared, tmp_path / "new"))
        assert "has been writing it since" in single_line(result.returncode, result.stdout, result.stderr)
    assert Folder(data).sizes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
