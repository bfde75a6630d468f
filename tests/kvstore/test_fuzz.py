"""Corrupt files of every kind cause no crash, hang or traceback: a command succeeds, or names the file in one line.

Cases are deterministic. Run more of them with CROSSFADE_FUZZ_CASES=2000 make test-long ARGS="-k fuzz", others with
CROSSFADE_FUZZ_FIRST=1000000, and a failed one with the command in the failure's message.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from drive_fuzz import CASE_SECONDS, KINDS

DRIVER = Path(__file__).resolve().parents[2] / "tests" / "support" / "drive_fuzz.py"
CASES = int(os.environ.get("CROSSFADE_FUZZ_CASES", "4"))
FIRST = int(os.environ.get("CROSSFADE_FUZZ_FIRST", "0"))


@pytest.mark.slow
def test_corrupt_files_of_every_kind_end_a_command_with_success_or_one_line_that_names_them(tmp_path: Path) -> None:
    total, done, failures = CASES * len(KINDS), 0, []
    while done < total:
        folder = tmp_path / f"from-{done}"
        result = subprocess.run(
            [sys.executable, DRIVER, folder, "all", *map(str, (FIRST, CASES, done))],
            capture_output=True,
            text=True,
            timeout=CASE_SECONDS * (total - done + 1),
            check=False,
            errors="replace",
        )
        started = [line for line in result.stdout.splitlines() if line.startswith("case ")]
        assert started, result.stdout + result.stderr
        done += len(started)
        if result.returncode == 0:
            assert done == total
            break
        last = started[-1].partition(":")[0]
        failures.append(f"exit code {result.returncode} in or before {last}\n{result.stdout}\n{result.stderr}")
    assert not failures, "\n".join([*failures, f"repeat with: {DRIVER} FOLDER KIND NUMBER 1"])
