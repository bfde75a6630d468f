"""Kills for lack of memory are counted for the cgroup of a process, by the kernel's own count."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from memory_cgroup import memory_cgroup
from run_folders import BEGAN, state, write_run

from crossfade.base.machine import find_source, is_source
from crossfade.deploy.dashboard.run_reader import RunReader
from crossfade.deploy.dashboard.run_state import find_state

MEMBERSHIP = "0::/jobs/one\n"
COUNT_OF_CHILDREN = """
import subprocess, sys
from crossfade.base.machine import OomKills

kills = OomKills.of_this_process()
plain = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).returncode
before = kills.have_risen()
hungry = subprocess.run([sys.executable, "-c", "bytearray(2**29)"]).returncode
print(plain, before, hungry, kills.have_risen())
"""
PRINT_COUNT = """
import json
from crossfade.base.machine import OomKills

kills = OomKills.of_this_process()
print(json.dumps({"source": str(kills.source), "count": kills.count}))
"""


@pytest.mark.slow
def test_kill_by_the_kernel_for_lack_of_memory_differs_from_another() -> None:
    with memory_cgroup() as cgroup:
        cgroup.limit_to(2**28)
        command = [*cgroup.within, sys.executable, "-c", COUNT_OF_CHILDREN]
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.stdout == "-9 False -9 True\n", result.stderr


@pytest.mark.slow
def test_lost_command_was_killed_for_lack_of_memory_if_the_count_has_risen(tmp_path: Path) -> None:
    command = {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": 1.0}  # of another process
    with memory_cgroup() as cgroup:
        cgroup.limit_to(2**28)
        result = subprocess.run([*cgroup.within, sys.executable, "-c", PRINT_COUNT], capture_output=True, check=True)
        written = {**state("running", at=0), "command": command, "oom_kills": json.loads(result.stdout)}
        run = RunReader(write_run(tmp_path / "run", state=written), "run")
        run.refresh()
        kind, message = find_state(run, BEGAN + 9)
        assert (kind, message.partition(": ")[2]) == ("lost", "it was killed, or its machine restarted")
        subprocess.run([*cgroup.within, sys.executable, "-c", "bytearray(2**29)"], check=False)
        message = find_state(run, BEGAN + 9)[1]
        assert "no longer exists: the kernel has killed a process for lack of memory since; " in message


@pytest.mark.parametrize("source", ["/etc/passwd", "/sys/fs/cgroup/../../../etc/passwd", "memory.events"])
def test_count_is_read_from_no_file_that_a_run_folder_chooses(source: str) -> None:
    assert not is_source(Path(source))


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (MEMBERSHIP, ["jobs/one/memory.events", "jobs/memory.events"], 0),
        (MEMBERSHIP, ["jobs/memory.events"], 0),  # where only the parent's memory is controlled
        ("0::/\n", ["memory.events"], 0),  # in a container
        ("0::/\n", [], None),
        ("", ["memory.events"], None),
    ],
)
def test_count_is_that_of_the_own_cgroup_or_of_the_machine(
    tmp_path: Path, membership: str, files: list[str], expected: int | None
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("low 0\noom 3\noom_kill 1\n")
    source = find_source(membership, tmp_path)
    assert source == (Path("/proc/vmstat") if expected is None else tmp_path / files[expected])
