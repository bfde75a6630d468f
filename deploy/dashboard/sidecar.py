"""Serve the dashboard during training, in a process that ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crossfade.deploy.cluster.role_variables import AGENT_VARIABLE
from crossfade.trainer.serving.copies_folder import delete_abandoned_copies

_SAFE_PATH = "-P"
"""Python's option that keeps the current folder, which may contain another trainer/, off the import path."""


@contextmanager
def serve_sidecar(run_dir: Path, port: int, log: Callable[[str], None]) -> Iterator[None]:
    """Serve the page of the run in ``run_dir`` at ``port`` (0: a free one) of loopback while the context lasts.

    ``log`` receives the line with the page's URL. A page that cannot be served prints its error to stderr and leaves
    the training undisturbed.
    """
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, _SAFE_PATH, "-m", "crossfade", "dashboard", str(run_dir), "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, AGENT_VARIABLE: str(os.getpid())},
        start_new_session=True,  # a terminal's Ctrl-C reaches only the training
    )
    assert process.stdout is not None
    lines = process.stdout

    def forward_output() -> None:
        for line in lines:
            log(line.rstrip("\n"))

    reader = threading.Thread(target=forward_output, name="dashboard", daemon=True)
    reader.start()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        delete_abandoned_copies()
        reader.join()
        lines.close()
