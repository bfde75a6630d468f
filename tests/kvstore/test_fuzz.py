"""Corrupt files of every kind cause no crash, hang or traceback: a command succeeds, or names the file in one line.

Cases are deterministic. Run more of them with CROSSFADE_FUZZ_CASES=2000 make test ARGS="-k fuzz", others with
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
@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_file_ends_a_command_with_success_or_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    remaining, first, failures = CASES, FIRST, []
    while remaining > 0:
        command = [sys.executable, str(DRIVER), str(tmp_path / f"from-{first}"), kind, str(first), str(remaining)]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=CASE_SECONDS * (remaining + 1),
            check=False,
            errors="replace",
        )
        started = [line for line in result.stdout.splitlines() if line.startswith(f"case {kind} ")]
        assert started, result.stdout + result.stderr
        if result.returncode == 0:
            break
        last = int(started[-1].split()[2].rstrip(":"))
        failures.append(f"exit code {result.returncode} in or before case {last}\n{result.stdout}\n{result.stderr}")
        remaining, first = remaining - (last + 1 - first), last + 1
    assert not failures, "\n".join([*failures, f"repeat with: {DRIVER} FOLDER {kind} NUMBER 1"])
