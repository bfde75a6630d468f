"""Import PyTorch where it is used, since it is optional. Other modules call ``import_torch`` first."""

from __future__ import annotations

import importlib.util
from typing import Any

from crossfade.kvstore.errors import MissingExtraError


def require_torch() -> None:
    """Check that PyTorch is installed, without the second that an import takes.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", extra="torch", purpose="training with 'engine: torch'")


def import_torch() -> Any:
    """Import PyTorch.

    Raises:
        MissingExtraError: it is not installed.
    """
    require_torch()
    import torch

    return torch
