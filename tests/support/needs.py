"""Skip tests that need what a plain clone lacks, each with a reason that says how to get it.

A reason is ``needs WHAT: HOW``, followed by details in parentheses; ``conftest.py`` ends a run with the sums.
"""

from importlib.util import find_spec

import pytest

TORCH = "needs PyTorch: make torch"


def require_torch() -> None:
    """Skip the test, or the file, without PyTorch."""
    if find_spec("torch") is None:
        pytest.skip(TORCH, allow_module_level=True)
