"""Kernels are kept by what they are compiled from, in a folder that only the user can write to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crossfade.kvstore import kernel_cache

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
COMMENTED = '''
"""A file with a docstring."""
# and a comment
'''


def write_kernel(folder: Path, factor: int = 4, head: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "factors.py").write_text(head + FACTORS.format(factor))
    (folder / "middle.py").write_text(head + BETWEEN)
    (folder / "kernel.py").write_text(head + KERNEL)


def run_kernel(folder: Path, cache: Path) -> tuple[int, int]:
    """Run it in a separate process; return its result, and how often the cache had it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CACHE")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())]), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, str(folder / "kernel.py")]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    result, hits = map(int, output.split())
    return result, hits


@pytest.mark.slow
def test_kernel_is_found_by_the_code_that_it_and_imported_kernels_have(tmp_path: Path) -> None:
    code, cache = tmp_path / "code", tmp_path / "cache"
    write_kernel(code)
    assert run_kernel(code, cache) == (41, 0)
    write_kernel(tmp_path / "other", head=COMMENTED)
    assert run_kernel(tmp_path / "other", cache) == (41, 1)
    write_kernel(code, 5)
    assert run_kernel(code, cache) == (51, 0)
    write_kernel(code, 4)
    assert run_kernel(code, cache) == (41, 1)


def test_folder_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "crossfade" / "kernels"
    assert kernel_cache._user_folder() == folder
    for part in (folder, folder.parent):
        part.chmod(0o770)
        assert kernel_cache._user_folder() is None
        part.chmod(0o700)
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert kernel_cache._user_folder() is None


def test_folders_not_used_for_long_and_beyond_the_number_kept_are_deleted(tmp_path: Path) -> None:
    now = tmp_path.stat().st_mtime
    for number in range(kernel_cache._VERSIONS_OF_MODULE + 2):
        (tmp_path / f"a.kernels-{number}").mkdir()
        os.utime(tmp_path / f"a.kernels-{number}", (now, now - number * 86_400))
        (tmp_path / f"c-{number}").mkdir()  # of processes that may be saving a kernel
    for name, days in (("a.other-1", 0), ("b-1", kernel_cache._DAYS + 1), ("b-2", kernel_cache._DAYS - 1)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (now, now - days * 86_400))
    for module in ("a.kernels", "b", "c"):
        kernel_cache._prune(tmp_path, module)
    recent = [f"c-{number}" for number in range(kernel_cache._VERSIONS_OF_MODULE + 2)]
    kept = [f"a.kernels-{number}" for number in range(kernel_cache._VERSIONS_OF_MODULE)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, *recent, "a.other-1", "b-2"])


def test_functions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "twins.py"
    file.write_text("def twin():\n    return 1\n\nfirst = twin\n\ndef twin():\n    return 2\n")
    code: dict[str, object] = {}
    exec(compile(file.read_text(), str(file), "exec"), code)
    assert [kernel_cache._number_in_file(file, code[name]) for name in ("first", "twin")] == [0, 1]  # type: ignore[arg-type]


@pytest.fixture
def forget_sources() -> Iterator[Callable[[], None]]:
    """Return a function that forgets what this process has read of files, which is called afterwards, too."""

    def forget() -> None:
        for known in (kernel_cache._key, kernel_cache._source, kernel_cache._known_sources):
            known.cache_clear()

    yield forget
    forget()


def test_file_is_parsed_by_one_process_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_sources: Callable[[], None]
) -> None:
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", str(tmp_path))
    parsed, parse = [], kernel_cache._parse
    monkeypatch.setattr(kernel_cache, "_parse", lambda path, stamp: parsed.append(path) or parse(path, stamp))
    file = tmp_path / "kernel.py"

    def key_in_a_new_process() -> str:
        forget_sources()
        return kernel_cache._key(file)

    keys = []
    for text in ("def one(): return 1\n", "def one(): return 1  # as before\n", "def one(): return 2\n"):
        file.write_text(text)
        keys += [key_in_a_new_process(), key_in_a_new_process()]
    assert keys[0] == keys[1] == keys[2] == keys[3] != keys[4] == keys[5]
    assert parsed.count(file) == 3
    damaged = json.dumps({str(file): [[], "x", None, []]})
    for text in ('{"damaged', damaged, "[" * 10_000):
        (tmp_path / "sources.json").write_text(text)
        assert key_in_a_new_process() == keys[5]


LOOP = """
import numpy as np

from crossfade.kvstore.jit import njit
from crossfade.kvstore.threads import balanced_chunk_size, chunk_size

@njit(cache=True)
def kernel(count):
    return {}

print(int(kernel(10)), 0)
"""


def test_kernel_uses_inner_ones_that_different_processes_have_compiled(tmp_path: Path) -> None:
    # The third process loads code of a loop before it compiles any.
    calls = {
        "balanced_chunk_size(count)": 1,
        "chunk_size(count, count)": 10,
        "np.ones(chunk_size(count, count)).sum()": 10,
    }
    for number, (call, expected) in enumerate(calls.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "kernel.py").write_text(LOOP.format(call))
        assert run_kernel(folder, tmp_path / "cache") == (expected, 0)
