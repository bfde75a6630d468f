"""A kernel is kept while its code and the code of kernels that it calls stay the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossfade.kvstore import kernel_cache, row_kernels

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


def run_kernel(folder: Path, cache: Path) -> tuple[int, int]:
    """Run it in a separate process; return its result, and how often the cache had it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())])}
    environment |= {"NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, str(folder / "kernel.py")]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    result, hits = map(int, output.split())
    return result, hits


@pytest.mark.slow
def test_kernel_is_compiled_again_if_an_imported_kernel_changes_but_not_if_only_times_do(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, code in (("factors", FACTORS.format(4)), ("middle", BETWEEN), ("kernel", KERNEL)):
        (tmp_path / f"{name}.py").write_text(code)
    assert run_kernel(tmp_path, cache) == (41, 0)
    for path in tmp_path.glob("*.py"):
        os.utime(path, (1, 1))
    assert run_kernel(tmp_path, cache) == (41, 1)
    (tmp_path / "factors.py").write_text(FACTORS.format(5))
    assert run_kernel(tmp_path, cache) == (51, 0)
    for suffix in ("nbi", "nbc"):
        for path in cache.rglob(f"*.{suffix}"):
            path.write_bytes(b"")
        assert run_kernel(tmp_path, cache) == (51, 0)


@pytest.mark.parametrize("name", ["jit.py", "kernel_code.py", "row_kernels.py", "vector_ir.py"])
def test_stamp_depends_on_the_decorators_the_linker_and_all_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp, text = kernel_cache._stamp.__wrapped__, kernel_cache._text
    before = stamp(Path(row_kernels.__file__))
    monkeypatch.setattr(kernel_cache, "_text", lambda file: text(file) + "#" * (file.name == name))
    assert stamp(Path(row_kernels.__file__)) != before
