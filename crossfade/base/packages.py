"""Installed packages: hide those that an import would load without need, and detect a conflict of versions.

with hidden("scipy"):
    import mxnet
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_BOUND = re.compile(r"numpy\s*\(?>=\s*([0-9]+(?:\.[0-9]+)*)")


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


def pandas_conflict() -> str | None:
    """Return that the installed pandas cannot be imported with the installed NumPy, and what to do; None: it can.

    Metadata is read, and neither is imported: pandas fails with a message about its own build.
    """
    from importlib import metadata  # takes time to import, as it loads email

    try:
        pandas, numpy = metadata.distribution("pandas"), metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return None
    # One line for each range of Python versions: the lowest bound is that of the oldest Python.
    found = (_BOUND.match(line) for line in pandas.requires or ())
    needed = min((bound[1] for bound in found if bound), key=_numbers, default="0")
    if _numbers(numpy) >= _numbers(needed):
        return None
    return (
        f"pandas {pandas.version} needs numpy {needed} or later, but {numpy} is installed, which MXNet needs: "
        "pip install 'pandas<3.1', or install crossfade without [mxnet]"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
