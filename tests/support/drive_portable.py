"""Fit, save, and use a model without what another system lacks: ``drive_portable.py win32`` or ``darwin``.

This is not that system. It shows that no code path in between calls what only Linux has.
"""

import importlib
import os
import signal
import sys
import types
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

LACKING = {
    "win32": (
        *("pread", "pwrite", "sysconf", "sched_getaffinity", "fork", "getuid", "geteuid", "nice", "killpg", "getpgid"),
        *("setsid", "O_CLOEXEC", "O_DIRECTORY", "getloadavg", "uname", "register_at_fork", "waitid"),
    ),
    "darwin": ("sched_getaffinity", "sched_setaffinity"),
}
LACKING_SIGNALS = ("SIGALRM", "SIGKILL", "SIGPIPE", "SIGHUP", "SIGCHLD", "SIGUSR1", "setitimer", "ITIMER_REAL")


def make_msvcrt() -> types.ModuleType:
    """Return Windows's module of locks, on locks of POSIX."""
    import fcntl

    def locking(descriptor: int, _mode: int, length: int) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length)
        except BlockingIOError as error:
            raise PermissionError(*error.args) from error

    module = types.ModuleType("msvcrt")
    module.__dict__.update(LK_NBLCK=1, locking=locking)
    return module


def pretend(system: str) -> None:
    """Remove what ``system`` lacks."""
    for name in LIBRARIES:
        importlib.import_module(name)
    numba.njit(lambda x: x + 1)(1)
    if system == "win32":
        sys.modules["msvcrt"] = make_msvcrt()
        sys.modules["fcntl"] = sys.modules["resource"] = None  # type: ignore[assignment]
        for name in LACKING_SIGNALS:
            delattr(signal, name)
    for name in LACKING[system]:
        delattr(os, name)
    sys.platform = system


def main() -> None:
    """Fit a small model, and call the commands that need no server."""
    pretend(sys.argv[1])
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
