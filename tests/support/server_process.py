"""Run a server as a process that ends with this one."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests
from waiting import wait_until

from crossfade.base.processes import die_with_parent


def start_server(
    command: Sequence[object], log: Path, answers: Callable[[], object], **options: Any
) -> "subprocess.Popen[bytes]":
    """Start a server that writes to ``log``, and wait until ``answers()``; ``options`` are options of Popen."""
    parent = os.getpid()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - it takes no locks
            **options,
        )

    def is_ready() -> object:
        assert process.poll() is None, log.read_text()[-2000:]
        return answers()

    wait_until(is_ready, f"an answer of the server that writes to {log}")
    return process


def is_ok(url: str, seconds: float = 60.0) -> bool:
    """Return whether a GET request of ``url`` succeeds."""
    try:
        return requests.get(url, timeout=seconds).status_code == 200
    except requests.RequestException:
        return False
