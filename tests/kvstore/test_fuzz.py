"""Damaged files of every kind: no crash, no hang, no traceback; a command ends well, or names the file in one line.

The cases are the same each time. More of them: CROSSFADE_FUZZ_CASES=2000 make test ARGS="-k fuzz"; others than
these: CROSSFADE_FUZZ_FIRST=1000000. What failed is repeated with the command that the failure names.
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
@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_file_ends_a_command_with_success_or_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    left, first, failures = CASES, FIRST, []
    while left > 0:
        command = [sys.executable, str(DRIVER), str(tmp_path / f"from-{first}"), kind, str(first), str(left)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=CASE_SECONDS * (left + 1), check=False, errors="replace"
        )
        done = [line for line in result.stdout.splitlines() if line.startswith(f"case {kind} ")]
        assert done, result.stdout + result.stderr
        if result.returncode == 0:
            break
        last = int(done[-1].split()[2].rstrip(":"))
        failures.append(f"exit code {result.returncode} in or before case {last}\n{result.stdout}\n{result.stderr}")
        left, first = left - (last + 1 - first), last + 1
    assert not failures, "\n".join([*failures, f"repeat with: {DRIVER} FOLDER {kind} NUMBER 1"])
