"""Long distributed runs that tests watch, stop and kill."""

import json
from pathlib import Path
from typing import Any

from running_command import RunningCommand, records
from waiting import wait_until

ON_SERVERS = ("--servers", 2, "--workers", 2)
ROLES = ["scheduler", "server-0", "server-1", "worker-0", "worker-1"]
END_SECONDS = 10.0
START_SECONDS = 60.0
NOTICE_SECONDS = 0.5
TOKEN = "the-token-of-these-tests"
FOR_600_STEPS = (
    "--set",
    "train.epochs=40",
    "--set",
    "train.eval_every_epochs=40",
    "--set",
    "checkpoint.interval_steps=40",
)
"""Options that end a run of the job, after 600 steps."""


def read_report(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return report


def wait_for(command: RunningCommand, run_dir: Path, event: str, seconds: float = START_SECONDS) -> None:
    """Wait until the run has recorded ``event``."""

    def is_recorded() -> bool:
        assert command.process.poll() is None, command.finish()
        return any(record["event"] == event for record in records(run_dir))

    wait_until(is_recorded, seconds, f"'{event}' in {run_dir}/events.jsonl")
