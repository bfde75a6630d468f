"""Run ``crossfade train`` on invalid data, in this process."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from running_command import single_line

from crossfade.cli.main import main

TrainError = Callable[..., str]
"""Trains with options and environment ``variables``; returns the error line."""


def train_error_runner(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> TrainError:
    """Return a function that trains ``job.yaml`` in ``workspace``, checks that it fails, and returns its error line."""
    monkeypatch.chdir(workspace)

    def run(*options: object, variables: dict[str, str] | None = None) -> str:
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = main(["train", "job.yaml", "--run-dir", "run", *map(str, options)])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        assert not list((workspace / "run").glob("report.json"))
        return single_line(code, *capfd.readouterr())

    return run
