"""Of several processes that need a kernel, one compiles it."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

KERNEL = """
from crossfade.kvstore.jit import njit

@njit(cache=True)
def one():
    return 1

print(one(), sum(one.stats.cache_hits.values()), flush=True)
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


@pytest.mark.slow
def test_kernel_is_compiled_by_one_of_several_processes(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text("import sys\n" + ANNOUNCED + KERNEL)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(tmp_path / "kernel.py")]
    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            return stack.enter_context(subprocess.Popen(command, env=environment, text=True, **pipes))

        first = start()
        assert first.stdout is not None
        assert first.stdout.readline() == "compiles\n"
        second = start()
        assert second.stdout is not None
        assert second.stdout.readline().startswith("waiting for another process that compiles kernel.one")
        assert first.communicate("\n", timeout=240)[0] == "1 0\n"
        assert second.communicate(timeout=240)[0] == "1 1\n"
