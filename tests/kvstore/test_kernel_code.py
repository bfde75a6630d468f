"""Inner kernels are only linked, and what is installed as portable code gives the results of what Python compiles."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KERNELS = """
import numpy as np

from crossfade.kvstore.jit import allocating_kernel, njit

@allocating_kernel()
def inner(x):
    if x > 100:
        raise ValueError("too large", x)
    return x / np.float32(3)

@njit(cache=True)
def outer(x_N):
    total = np.float32(0)
    for n in range(x_N.shape[0]):
        total += inner(x_N[n])
    return total + np.empty(2).size
"""
RUN = """
import json
import sys
from pathlib import Path

import numpy as np

from crossfade.kvstore import compile_notice, jit, portable_kernels

announced = []
compile_notice.listeners.append(lambda: announced.append(1))
portable_kernels.FILE = Path("kernels.zip")
from kernels import inner, outer

x_N = np.arange(100, dtype=np.float32)
result, message = outer(x_N), ""
try:
    outer(x_N + 50)
except ValueError as error:
    message = str(error)
if sys.argv[1:]:
    assert portable_kernels.install(jit.KERNELS) == 1
print(json.dumps({
    "result": float(result).hex(),
    "message": message,
    "inner": [type(result.library).__name__ for result in inner.overloads.values()],
    "announced": len(announced),
    "hits": sum(outer.stats.cache_hits.values()),
}))
"""


def run(folder: Path, cache: str, *arguments: str, cpu: str | None = None) -> dict[str, Any]:
    """Run the kernels in a separate process, compiled for this processor or for ``cpu``."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / cache)} | ({"NUMBA_CPU_NAME": cpu} if cpu else {})
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path.cwd())])
    command = [sys.executable, str(folder / "run.py"), *arguments]
    output = subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.mark.slow
def test_installed_kernel_has_the_bits_and_errors_of_a_compiled_one(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "run.py").write_text(RUN)
    compiled = run(tmp_path, "first", "install")
    assert compiled["inner"] == ["_LinkedLibrary"]
    assert (compiled["hits"], compiled["announced"]) == (0, 1)
    assert "too large" in compiled["message"]
    installed = bytearray((tmp_path / "kernels.zip").read_bytes())
    of_new_machine = run(tmp_path, "second", cpu="generic")
    whole = bytes(installed)
    (tmp_path / "kernels.zip").write_text("damaged")
    from_its_cache = run(tmp_path, "second", cpu="generic")
    assert of_new_machine == compiled | {"inner": [], "hits": 1}
    assert from_its_cache == of_new_machine | {"announced": 0}
    installed[len(installed) // 2] ^= 1
    (tmp_path / "kernels.zip").write_bytes(installed)
    assert run(tmp_path, "third") == compiled
    (tmp_path / "kernels.zip").write_bytes(whole)
    (tmp_path / "kernels.py").write_text(KERNELS.replace("np.float32(3)", "np.float32(4)"))
    of_other_code = run(tmp_path, "fourth")
    assert of_other_code["hits"] == 0
    assert float.fromhex(of_other_code["result"]) < float.fromhex(compiled["result"])
