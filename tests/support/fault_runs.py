"""Paced trainings with injected faults, and checks that they end like undisturbed ones."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from paced_training import Training, paced
from run_results import assert_same_bits, report_of
from running_command import records

from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint

ON_SERVERS, ON_ONE_SERVER = ("--servers", 2, "--workers", 1), ("--servers", 1, "--workers", 1)
"""One worker gives the bits of a run in process, whatever the number of servers."""
ROLES_OF_ONE_SERVER = ["scheduler", "server-0", "worker-0"]
STEPS = 150
STEP_SECONDS = 0.2
"""Sleep in each step: long enough for a fault and what follows it."""
TRAIN = {"epochs": STEPS // 15, "eval_every_epochs": 10, "patience": None}
CHECKPOINT = {"interval_seconds": 0.5, "keep_latest": 2}
DISK_BYTES = 1 << 20
TOKEN = "the-token-of-these-tests"
JUMPING_CLOCK = """
import itertools, time
real, jumps = time.time, itertools.cycle((0, 86400, -86400))
time.time = lambda: real() + next(jumps)
"""
"""A hook with which each reading of the wall clock, in every process, jumps a day back or forth."""
FAST_S3_ERRORS = {"CROSSFADE_S3_ATTEMPTS": "3", "CROSSFADE_S3_TIMEOUT_SECONDS": "1"}
"""Makes requests to S3 fail within seconds instead of a minute or more."""


def train(
    run_dir: Path,
    *options: object,
    job: Path | None = None,
    variables: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
    hook: str = "",
) -> AbstractContextManager[Training]:
    """Start a training of ``job``, by default the one beside ``run_dir``, whose steps are paced."""
    arguments = ("train", job or run_dir.parent / "job.yaml", *options)
    return paced(*arguments, run_dir=run_dir, variables=variables, within=within, hook=hook, step_seconds=STEP_SECONDS)


def checkpoint_option(checkpoints: object) -> tuple[str, str]:
    """Return the option that writes checkpoints to ``checkpoints``."""
    return "--set", f"checkpoint.path={checkpoints}"


def wait_for_saves(training: Training, number: int) -> None:
    """Wait until the ``number``-th generation that takes steps has written a checkpoint."""

    def has_saved() -> bool:
        seen = records(training.run_dir)
        starts = [place for place, record in enumerate(seen) if record.get("name") == "training"]
        return len(starts) == number and any(record["event"] == "checkpoint_saved" for record in seen[starts[-1] :])

    training.wait(has_saved, f"a checkpoint of generation {number}")


def assert_undisturbed(run_dir: Path, undisturbed: Path) -> None:
    """Assert that the run took each step, and has the embeddings of an undisturbed run."""
    assert report_of(run_dir)["steps"] == STEPS
    assert_same_bits(run_dir, undisturbed)


def assert_counted(training: Training) -> None:
    """Assert that the report counts the checkpoints of the event log."""
    counted = report_of(training.run_dir)["checkpoints"]
    assert counted["written"] == len(training.events("checkpoint_saved"))
    assert counted["failed"] == len(training.events("checkpoint_failed"))


def assert_last_is_complete(checkpoints: object, keep: int = 2) -> None:
    """Assert that the newest checkpoint is that of the last step, and that no more than ``keep`` exist."""
    checkpoint, skipped = latest_checkpoint(str(checkpoints))
    assert checkpoint is not None
    assert (checkpoint.manifest.step, skipped) == (STEPS, [])
    # Files, since S3 here lists an emptied folder for a while longer.
    folders = {path.partition("/")[0] for path in Folder(str(checkpoints)).sizes() if "/" in path}
    assert len(folders) <= keep, folders


def assert_training_continues(training: Training) -> None:
    """Assert that the training takes further steps."""
    training.wait_for("step")
