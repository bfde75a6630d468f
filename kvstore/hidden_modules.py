"""Hide installed packages from an import that would load them without need.

with hidden("scipy"):
    import numba
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Let imports of the packages ``names`` fail in the block, as if they were not installed, unless they are loaded.

    Numba imports scipy to check its version, and MXNet imports scipy and scikit-learn for functions that are not used
    here. That would take more than 40 MiB in each process of a job.
    """
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
