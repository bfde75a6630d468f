"""``import crossfade`` is quick and has no side effects."""

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
"""


def test_import_loads_no_package_and_changes_nothing() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)
