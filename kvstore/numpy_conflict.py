"""Notice that pandas needs another NumPy than MXNet does, whose extra pins NumPy 1.26.

pandas_conflict()       # "pandas 3.1.1 needs numpy 2.0.2 or later, but ..."; None: they fit
"""

import re
from importlib import metadata

_BOUND = re.compile(r"numpy\s*\(?>=\s*([0-9]+(?:\.[0-9]+)*)")


def pandas_conflict() -> str | None:
    """Return that the installed pandas cannot be imported with the installed NumPy, and what to do; None: it can.

    Metadata is read, and neither is imported: pandas fails with a message about its own build.
    """
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
