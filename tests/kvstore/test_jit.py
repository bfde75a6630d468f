"""Numba's cache of a kernel is valid until a file changes that it takes other kernels from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FACTORS = """
from kvstore.jit import njit

FACTOR = {}

@njit(cache=True)
def one():
    return 1
"""
BETWEEN = """
import factors as known_factors
from kvstore.jit import njit

FACTOR = known_factors.FACTOR

@njit(cache=True)
def between():
    return 10 * FACTOR
"""
KERNEL = """
from kvstore.jit import njit

from middle import between

@njit(cache=True)
def kernel():
    return between() + 1

print(kernel(), sum(kernel.stats.cache_hits.values()))
"""


def run_kernel(folder: Path) -> tuple[int, int]:
    """Run it in a process of its own; return its result, and how often the cache had it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CACHE")}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path.cwd())])
    command = [sys.executable, str(folder / "kernel.py")]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    result, hits = map(int, output.split())
    return result, hits


@pytest.mark.slow
def test_change_of_an_imported_kernel_invalidates_the_cache(tmp_path: Path) -> None:
    (tmp_path / "factors.py").write_text(FACTORS.format(4))
    (tmp_path / "middle.py").write_text(BETWEEN)
    (tmp_path / "kernel.py").write_text(KERNEL)
    assert run_kernel(tmp_path) == (41, 0)
    assert run_kernel(tmp_path) == (41, 1)
    (tmp_path / "factors.py").write_text(FACTORS.format(5))
    assert run_kernel(tmp_path) == (51, 0)
    assert run_kernel(tmp_path) == (51, 1)
