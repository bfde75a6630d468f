"""Fit, save, and use a model without what macOS lacks: ``drive_portable.py``.

This is not that system. It shows that no code path in between calls what only Linux has.
"""

import importlib
import os
import sys
from pathlib import Path

import numba
import numpy as np
import pandas as pd

LIBRARIES = (
    *("asyncio", "concurrent.futures", "ctypes.util", "http.server", "importlib.metadata", "multiprocessing.pool"),
    *("platform", "prometheus_client", "psutil", "pyarrow.compute", "pyarrow.dataset", "pyarrow.parquet", "pydantic"),
    *("scipy.sparse", "shutil", "socketserver", "subprocess", "tempfile", "threadpoolctl", "tqdm", "urllib.request"),
    *("uuid", "yaml", "duckdb"),
)
"""They look at the system when they are imported, so that must come first."""

LACKING = ("sched_getaffinity", "sched_setaffinity")


def pretend() -> None:
    """Remove what macOS lacks."""
    for name in LIBRARIES:
        importlib.import_module(name)
    numba.njit(lambda x: x + 1)(1)
    for name in LACKING:
        delattr(os, name)
    sys.platform = "darwin"


def main() -> None:
    """Fit a small model, and call the commands that need no server."""
    pretend()
    import crossfade
    from crossfade.cli.main import main as command

    random = np.random.default_rng(0)
    plays = pd.DataFrame({"user": random.integers(0, 50, 2_000), "artist": random.integers(0, 40, 2_000)})
    model = crossfade.fit(plays, query="user", item="artist", dim=4, epochs=2)
    model.save("run")
    plays.to_csv("plays.csv", index=False)
    for line in (
        "prepare --events plays.csv --query user --item artist --hold-out random:0.1 --out data",
        "validate data",
        "plan run/job.yaml",
        "train run/job.yaml --run-dir again --set data.path=data --set train.epochs=1",
        "train run/job.yaml --run-dir again --set data.path=data --set train.epochs=2 --resume",
        "evaluate run --split valid",
        "recommend run --customer 7",
        "similar run 3",
        "export run --to numpy --out exported",
        "status run",
    ):
        code = command(line.split())
        assert code == 0, (line, code)
    assert Path("exported").is_dir()


main()
