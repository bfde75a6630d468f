"""The page beside a training: a process of its own, which ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.cluster.role_process import AGENT_VARIABLE

_NOT_FROM_HERE = "-P"
"""Python's option to import nothing from the current folder, which may have a trainer/ of its own."""


@contextmanager
def serve_sidecar(run_dir: Path, port: int, tell: Callable[[str], None]) -> Iterator[None]:
    """Serve the page of the run in ``run_dir`` at ``port`` (0: a free one) of loopback while the context lasts.

    ``tell`` gets the line with its address once it is served. If it cannot be, it says so itself on stderr, and
    nothing else happens.
    """
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, _NOT_FROM_HERE, "-m", "crossfade", "dashboard", str(run_dir), "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, AGENT_VARIABLE: str(os.getpid())},
        start_new_session=True,  # a terminal's Ctrl-C reaches the training alone
    )
    assert process.stdout is not None
    lines = process.stdout

    def pass_on() -> None:
        for line in lines:
            tell(line.rstrip("\n"))

    reader = threading.Thread(target=pass_on, name="page", daemon=True)
    reader.start()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        reader.join()
        lines.close()
