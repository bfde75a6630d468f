"""Numba's cache of a kernel is valid until a file changes that it takes other kernels from."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

FACTORS = """
from crossfade.kvstore.jit import njit

FACTOR = {}

@njit(cache=True)
def one():
    return 1
"""
BETWEEN = """
import factors as known_factors
from crossfade.kvstore.jit import njit

FACTOR = known_factors.FACTOR

@njit(cache=True)
def between():
    return 10 * FACTOR
"""
KERNEL = """
from crossfade.kvstore.jit import njit

from middle import between

@njit(cache=True)
def kernel():
    return between() + 1

print(kernel(), sum(kernel.stats.cache_hits.values()))
"""


ANNOUNCED = """
import logging

from numba.core import event

logging.basicConfig(level=logging.DEBUG, format="%(message)s", handlers=[logging.StreamHandler(sys.stdout)])
logging.getLogger("numba").setLevel(logging.WARNING)

class Announcer(event.Listener):
    def on_start(self, event):
        print("compiles", flush=True)
        input()

    def on_end(self, event):
        pass

event.register("numba:compile", Announcer())
"""


def run_kernel(folder: Path) -> tuple[int, int]:
    """Run it in a process of its own; return its result, and how often the cache had it."""
    command = [sys.executable, str(folder / "kernel.py")]
    output = subprocess.run(command, env=variables(folder), capture_output=True, text=True, check=True).stdout
    result, hits = map(int, output.split())
    return result, hits


def variables(folder: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CACHE")}
    return environment | {"PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())])}


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


@pytest.mark.slow
def test_kernel_is_compiled_by_one_of_several_processes(tmp_path: Path) -> None:
    single = FACTORS.format(4) + "print(one(), sum(one.stats.cache_hits.values()), flush=True)\n"
    (tmp_path / "kernel.py").write_text("import sys\n" + ANNOUNCED + single)
    command = [sys.executable, str(tmp_path / "kernel.py")]
    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            return stack.enter_context(subprocess.Popen(command, env=variables(tmp_path), text=True, **pipes))

        first = start()
        assert first.stdout is not None
        assert first.stdout.readline() == "compiles\n"
        second = start()
        assert second.stdout is not None
        assert second.stdout.readline().startswith("waiting for another process that compiles kernel.one")
        assert first.communicate("\n", timeout=240)[0] == "1 0\n"
        assert second.communicate(timeout=240)[0] == "1 1\n"
