"""BLAS runs in one thread, however numpy was imported, and whatever the environment says."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

VARIABLE = "OPENBLAS_NUM_THREADS"


@pytest.mark.parametrize("imports", ["kvstore, numpy", "numpy, kvstore"])
@pytest.mark.parametrize("variables", [{}, {VARIABLE: "2"}, {"OMP_NUM_THREADS": "2"}])
def test_blas_has_one_thread(imports: str, variables: dict[str, str]) -> None:
    program = f"import {imports}, threadpoolctl as t; print(*(pool['num_threads'] for pool in t.threadpool_info()))"
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | variables
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert output.split() == ["1"]
