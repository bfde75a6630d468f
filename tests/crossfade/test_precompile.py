"""A first training on a machine takes its kernels from what ``python -m crossfade.precompile`` has installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_planted
from running_command import crossfade, succeeded

HOOK = """
import atexit, json, os, sys
from pathlib import Path
from crossfade.kvstore import portable_kernels

def report():
    from crossfade.kvstore.jit import KERNELS
    compiled = [kernel.__name__ for kernel in KERNELS if kernel.stats.cache_misses]
    loaded = sum(sum(kernel.stats.cache_hits.values()) for kernel in KERNELS)
    name = f"{'worker' if 'worker' in sys.argv else 'command'}-{os.getpid()}.json"
    Path(__file__).with_name(name).write_text(json.dumps({"compiled": compiled, "loaded": loaded}))

portable_kernels.FILE = Path(os.environ["INSTALLED_KERNELS"])
atexit.register(report)
"""
"""Run in each process of a job: it takes installed kernels from a file, and reports at the end what it has compiled."""
DRIVER = Path(__file__).parents[1] / "support" / "drive_installed_kernels.py"


def run(folder: Path, cache: str, *arguments: str) -> dict[str, Any]:
    """Run a command in a separate process, with a separate cache, and return what it printed last."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / cache), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(DRIVER), str(folder / "kernels.zip"), *arguments]
    output = subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def of_workers(folder: Path, cache: str, *arguments: str) -> list[dict[str, Any]]:
    """Run a job of several workers with the installed kernels and a separate cache; return what the workers report."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    variables = {"NUMBA_CACHE_DIR": str(folder / cache), "INSTALLED_KERNELS": str(folder / "kernels.zip")}
    succeeded(crossfade(*arguments, cwd=folder, variables=variables | {"PYTHONPATH": f"{hook}:{Path.cwd()}"}))
    return [json.loads(path.read_text()) for path in hook.glob("worker-*.json")]


@pytest.mark.slow
def test_first_training_loads_installed_kernels_and_imports_neither_compiler_nor_database(tmp_path: Path) -> None:
    write_planted(tmp_path / "data")
    (tmp_path / "job.yaml").write_text("name: planted\ndata: {path: data}\ntrain: {epochs: 1}\n")
    assert run(tmp_path, "first", "precompile")["compiled"]
    installed = run(tmp_path, "second", "train", "job.yaml")
    assert installed["compiled"] == []
    assert installed["loaded"] > 20
    assert installed["imported"] == []  # by the training, which therefore starts at once
    workers = of_workers(tmp_path, "third", "train", "job.yaml", "--workers", "2", "--run-dir", "two")
    assert [worker["compiled"] for worker in workers] == [[], []]
    assert all(worker["loaded"] > 20 for worker in workers)
