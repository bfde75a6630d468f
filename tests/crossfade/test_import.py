"""``import crossfade`` is quick and has no side effects; data and kernels are loaded by commands that need them."""

import subprocess
import sys

IMPORT = """
import logging, os, sys
before = dict(os.environ)
import crossfade
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"numpy", "pyarrow", "numba", "pydantic", "duckdb", "tqdm", "scipy", "pandas"}, loaded
assert dict(os.environ) == before
assert not logging.getLogger().handlers
assert {"fit", "load", "Job", "Model"} <= set(dir(crossfade))
try:
    crossfade.fitt
except AttributeError as error:
    assert str(error) == "module 'crossfade' has no attribute 'fitt'"
else:
    raise AssertionError("an unknown name was found")
from crossfade.cli.main import make_parser
make_parser()
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"numpy", "pyarrow", "numba", "duckdb", "tqdm", "scipy", "pandas"}, loaded
from crossfade.deploy.dashboard import summary  # of crossfade status
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"pyarrow", "numba", "duckdb", "tqdm", "scipy", "pandas"}, loaded
from crossfade.trainer.prepare import pipeline, validate
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"numba", "scipy", "pandas"}, loaded
"""


def test_import_and_command_line_load_no_large_package_and_change_nothing() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)
