"""Crossfade trains embeddings of customers and music with row-sparse updates.

    import crossfade

    model = crossfade.fit(plays, query="user", item="artist", dim=64)      # plays: a data frame, or a path
    model.recommend("user_42", k=10)
    model.similar("Radiohead")
    model.save("runs/a")

``fit``, ``load``, ``Model``, ``Job``, and ``Recommender`` (for scikit-learn) are the Python API; the command
``crossfade`` does the same. Importing the package does little else: each name is loaded when it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from crossfade.base.blas_kernels import choose_blas_kernels

if TYPE_CHECKING:
    from crossfade.api.estimator import Recommender
    from crossfade.api.fit import fit
    from crossfade.api.job import Job
    from crossfade.api.model import Model, load
    from crossfade.base.errors import CrossfadeError, InputError
    from crossfade.kvstore import __version__

__all__ = ["CrossfadeError", "InputError", "Job", "Model", "Recommender", "__version__", "fit", "load"]

_MODULES = {
    "CrossfadeError": "crossfade.base.errors",
    "InputError": "crossfade.base.errors",
    "Job": "crossfade.api.job",
    "Model": "crossfade.api.model",
    "Recommender": "crossfade.api.estimator",
    "__version__": "crossfade.kvstore",
    "fit": "crossfade.api.fit",
    "load": "crossfade.api.model",
}


choose_blas_kernels()


def __getattr__(name: str) -> Any:
    """Load ``name`` when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'crossfade' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the API."""
    return sorted({*globals(), *__all__})
