"""Hide installed packages that an import would load without need.

with hidden("scipy"):
    import mxnet
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Let imports of the packages ``names`` fail in the block, as if they were not installed, unless they are loaded.

    Numba imports scipy to check its version, and MXNet imports scipy and scikit-learn for functions that are not used
    here. That would take more than 40 MiB in each process of a job. MXNet looks for onnx some 150 times.
    """
    finder = _HidingFinder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _HidingFinder:
    """A finder by which some packages are missing. Compiled code takes a None in ``sys.modules`` for a module."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in self._names:
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)
