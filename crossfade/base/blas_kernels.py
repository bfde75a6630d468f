"""Choose the matrix kernels of processors that numpy's OpenBLAS does not know.

    choose_blas_kernels()           # before numpy is imported

OpenBLAS before 0.3.25, which numpy 1.26 brings, takes Intel's processors that are newer than itself for one of 2004
(https://github.com/OpenMathLib/OpenBLAS/issues/4267). On an Emerald Rapids, its products of float32 then take three
times as long as by the kernels that the processor's own features allow.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

_VARIABLE = "OPENBLAS_CORETYPE"
_FIRST_UNKNOWN_MODEL = 168
"""Models of family 6 from here on are unknown: Raptor Lake, Emerald Rapids, Granite Rapids, and later ones."""
_READ = 1 << 14
"""Characters that describe the first processor, at most."""
_KERNELS = {
    "SkylakeX": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "Haswell": {"avx2", "fma"},
}
"""Kernels by the features that they use, the fastest first."""


def choose_blas_kernels(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Set ``OPENBLAS_CORETYPE`` for this process and its children, unless it is set or numpy has been imported."""
    if _VARIABLE in os.environ or "numpy" in sys.modules:
        return
    with suppress(OSError), cpuinfo.open(encoding="utf-8") as file:
        first, _, _ = file.read(_READ).partition("\n\n")
        found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
        is_intel = (found.get("vendor_id"), found.get("cpu family")) == ("GenuineIntel", "6")
        if is_intel and int(found.get("model", 0)) >= _FIRST_UNKNOWN_MODEL:
            features = set(found.get("flags", "").split())
            kernels = next((name for name, needed in _KERNELS.items() if needed <= features), None)
            if kernels is not None:
                os.environ[_VARIABLE] = kernels
