"""What tests need that a plain clone or another machine lacks: the reasons for which they are skipped.

    pytest.skip(TORCH)                                 # "needs PyTorch: make torch"
    pytest.skip(root("mounting a disk is for root"))   # details in parentheses

A reason says how to get what is needed. ``skip_summary.py`` counts equal ones, without details, at the end of a run.
"""

import os
import shutil
from importlib.util import find_spec

import pytest

TORCH = "needs PyTorch: make torch"
SPARK = "needs PySpark: make spark"
MXNET = "needs MXNet: make setup, on Linux on x86-64"
HOROVOD = "needs Horovod: make horovod"
GPU = "needs an NVIDIA GPU that PyTorch can use: docs/distributed.md"
COMPILER = "needs g++ and make: apt-get install g++ make"
LINUX = "needs Linux"
X86 = "needs a processor of x86-64"
LASTFM = "needs Last.fm's data: lastfm_hetrec2011 and lastfm_lightgcnpp in ../shared/data"


def require_torch() -> None:
    """Skip the test, or the file, without PyTorch."""
    if find_spec("torch") is None:
        pytest.skip(TORCH, allow_module_level=True)


def require_spark() -> None:
    """Skip the file without PySpark or Java."""
    if find_spec("pyspark") is None:
        pytest.skip(SPARK, allow_module_level=True)
    if shutil.which("java") is None:
        pytest.skip(package("Java", "openjdk-17-jre-headless"), allow_module_level=True)


def package(name: str, of_debian: str) -> str:
    """Return the reason of a test that needs a program of a package of Debian."""
    return f"needs {name}: apt-get install {of_debian}"


def root(details: object) -> str:
    """Return the reason of a test that needs root, who may not do everything in a container either."""
    if os.geteuid() != 0:
        return f"needs root: run it as root ({details})"
    return f"needs a machine or container in which root may mount, limit, and make networks ({details})"
