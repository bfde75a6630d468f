"""A lack of memory ends a command with a line about memory, whatever error reports it."""

import subprocess
import sys
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from running_command import messages

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
