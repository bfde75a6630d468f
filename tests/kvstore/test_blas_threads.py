"""BLAS runs in one thread, however numpy was imported, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest

VARIABLE = "OPENBLAS_NUM_THREADS"


@pytest.mark.parametrize("imports", ["kvstore, numpy", "numpy, kvstore"])
@pytest.mark.parametrize(("variable", "threads"), [({}, "1"), ({VARIABLE: "2"}, "2")])
def test_order_of_imports_does_not_change_blas_threads(imports: str, variable: dict[str, str], threads: str) -> None:
    program = f"import {imports}, threadpoolctl as t; print(*(pool['num_threads'] for pool in t.threadpool_info()))"
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | variable
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert output.split() == [threads]
