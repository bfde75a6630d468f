"""Train from S3 on servers while S3 answers each request with 503 for minutes, with all limits at their defaults.

    python tests/support/s3_outage.py --seconds 600

Prints whether the training still ran at the end of the outage, when it wrote its next checkpoint, and its restarts.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from pathlib import Path

from cluster_data import write_job, write_planted
from flaky_proxy import flaky_proxy
from object_store import running_object_store
from running_command import RunningCommand, records, started
from waiting import wait_until

JOB = {
    "train": {"batch_size": 64, "epochs": 1_000_000, "patience": None, "eval_every_epochs": 100},
    "checkpoint": {"interval_seconds": 5.0},
}
RECOVERY_SECONDS = 600.0


def saved(run_dir: Path) -> int:
    """Return the number of checkpoints of the run."""
    return sum(record["event"] == "checkpoint_saved" for record in records(run_dir))


def wait_for_checkpoint(command: RunningCommand, run_dir: Path) -> float:
    """Wait for one more checkpoint, and return the seconds that it took."""
    before, since = saved(run_dir), time.monotonic()

    def is_written() -> bool:
        assert command.process.poll() is None, command.finish().stderr
        return saved(run_dir) > before

    wait_until(is_written, "a checkpoint", seconds=RECOVERY_SECONDS)
    return time.monotonic() - since


def run_outage(folder: Path, seconds: float) -> None:
    """Train in ``folder`` with an outage of ``seconds``."""
    (folder / "store").mkdir()
    with running_object_store(folder / "store") as store, flaky_proxy(store.endpoint) as proxy:
        job = write_job(folder / "job.yaml", store.upload(write_planted(folder / "data"), "plays"), **JOB)
        options = ("--servers", 2, "--workers", 2, "--set", f"checkpoint.path={store.uri('checkpoints')}")
        variables = {**store.variables, "AWS_ENDPOINT_URL": proxy.endpoint}
        run_dir = folder / "run"
        with started("train", job, "--run-dir", run_dir, *options, cwd=folder, variables=variables) as command:
            wait_for_checkpoint(command, run_dir)
            proxy.reject_all("throttle")
            time.sleep(seconds)  # the outage
            assert command.process.poll() is None, command.finish().stderr
            proxy.reject_all(None)
            waited = wait_for_checkpoint(command, run_dir)
            print(f"still running after {seconds:g} s; next checkpoint {waited:.0f} s later")
            command.process.send_signal(signal.SIGTERM)
            stderr = command.finish(300).stderr
    print(f"{stderr.count('; restarting (generation')} restart(s)")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="length of the outage (default: 600)")
    with tempfile.TemporaryDirectory() as folder:
        run_outage(Path(folder), parser.parse_args().seconds)


if __name__ == "__main__":
    main()
