"""Progress bars of the Python API: in terminals and notebooks, and nowhere else unless they are requested."""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm


def bar_type(progress: bool | None) -> Any:
    """Return what creates a progress bar, called as ``tqdm`` is.

    Args:
        progress: whether to show bars; None: if stderr is a terminal, or in a notebook.
    """
    in_notebook = "ipykernel" in sys.modules
    if progress is False or (progress is None and not (in_notebook or sys.stderr.isatty())):
        return partial(tqdm, disable=True)
    if in_notebook and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar
    return tqdm
