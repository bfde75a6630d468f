"""Training in process, and the commands around it, call nothing that only Linux has."""

import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).resolve().parents[1] / "support" / "drive_portable.py"


@pytest.mark.slow
def test_runs_without_what_macos_lacks(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, str(DRIVER)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
