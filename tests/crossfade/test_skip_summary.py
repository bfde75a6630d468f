"""The last lines of a run: what it has skipped, by reason, and how to run that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
TESTS = """
import pytest
from needs import TORCH

pytest.importorskip("no_such_package", reason=TORCH)
"""
MORE_TESTS = """
import pytest
from needs import TORCH

@pytest.mark.parametrize("number", range(12))
def test_number(number):
    pytest.skip(TORCH)

@pytest.mark.parametrize("details", ["no mount", "no network"])
def test_root(details):
    pytest.skip(f"needs root: run it as root ({details})")

@pytest.mark.skip(reason="needs Chromium: apt-get install chromium")
def test_page():
    pass

@pytest.mark.skip(reason="odd")
def test_odd():
    pass

def test_that_passes():
    pass
"""
LINES = [
    "skipped: 13 need PyTorch: make torch",
    "skipped: 2 need root: run it as root",
    "skipped: 1 needs Chromium: apt-get install chromium",
    "skipped: 1 odd",
]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("-p", "xdist", "-n", "1")], ids=["here", "xdist"])
def test_run_ends_with_what_it_skipped(tmp_path: Path, processes: tuple[str, ...]) -> None:
    (tmp_path / "test_whole_file.py").write_text(TESTS)
    (tmp_path / "test_more.py").write_text(MORE_TESTS)
    options = ("-p", "skip_summary", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-c", os.devnull)
    command = [sys.executable, "-m", "pytest", *options, "-m", "not docker", *processes, tmp_path]
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    *_, closing, first, second, third, fourth, last = result.stdout.splitlines()
    # .ci/run sums the counts of such lines.
    assert closing.startswith("=====")
    assert "1 passed, 17 skipped" in closing
    assert [first, second, *sorted([third, fourth], key=LINES.index)] == LINES
    assert last == "not run: tests of the image and docker-compose.yml: make test-docker, as root"
