"""A first training on a machine takes its kernels from what ``python -m crossfade.precompile`` has installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_planted

DRIVER = Path(__file__).parents[1] / "support" / "drive_installed_kernels.py"


def run(folder: Path, cache: str, *arguments: str) -> dict[str, Any]:
    """Run a command in a separate process, with a separate cache, and return what it printed last."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CACHE")}
    environment |= {"XDG_CACHE_HOME": str(folder / cache), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(DRIVER), str(folder / "kernels.zip"), *arguments]
    output = subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.slow
def test_first_training_loads_installed_kernels_and_compiles_none_from_python(tmp_path: Path) -> None:
    write_planted(tmp_path / "data")
    (tmp_path / "job.yaml").write_text("name: planted\ndata: {path: data}\ntrain: {epochs: 1}\n")
    assert run(tmp_path, "first", "precompile")["compiled"]
    installed = run(tmp_path, "second", "train", "job.yaml")
    assert installed["compiled"] == []
    assert installed["loaded"] > 20
