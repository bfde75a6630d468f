"""Long distributed runs that tests watch, stop and kill."""

import json
from pathlib import Path
from typing import Any

ON_SERVERS = ("--servers", 2, "--workers", 2)
ON_ONE_SERVER = ("--servers", 1, "--workers", 1)
ROLES = ["scheduler", "server-0", "server-1", "worker-0", "worker-1"]
ROLES_OF_ONE_SERVER = ["scheduler", "server-0", "worker-0"]
TOKEN = "the-token-of-these-tests"
STEPS = 240
FOR_240_STEPS = (
    "--set",
    f"train.epochs={STEPS // 15}",
    "--set",
    f"train.eval_every_epochs={STEPS // 15}",
    "--set",
    "checkpoint.interval_steps=10",
)
"""Options that end a run of the job, after ``STEPS``. A test that acts during the run paces it."""


def read_report(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return report
