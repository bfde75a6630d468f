"""Admission and expiry over three days: a new id gets the row of an expired one, which the next run resets."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cluster_data import write_job
from command_here import crossfade_here, rejected_here
from run_results import checkpoint_arrays
from running_command import succeeded

from crossfade.kvstore.local import LocalStore
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.runs.job_inputs import open_inputs
from crossfade.trainer.training.restore import open_warm_start

pytestmark = pytest.mark.slow

DAY = 86_400
FROZEN = ("--set", "optimizer.learning_rate=1e-30", "--set", "train.seed=9")
"""Steps too small for float32, so that a checkpoint holds the initial rows of its run; another seed for reset rows."""


def write_day(workspace: Path, day: int, plays: dict[str, str]) -> None:
    """Write the events of ``day``: each customer plays tracks, one letter each, one a second."""
    lines = ["customer,track,at"]
    for customer, tracks in plays.items():
        lines += [f"{customer},{track},{day * DAY + second}" for second, track in enumerate(tracks)]
    (workspace / f"day{day}.csv").write_text("\n".join(lines) + "\n")


def prepare(workspace: Path, day: int, *options: str) -> str:
    columns = ("--query", "customer", "--item", "track", "--timestamp", "at", "--out", f"data{day}")
    policy = ("--admit", "track=3", "--expire-after", "36h")
    return succeeded(
        crossfade_here("prepare", "--events", f"day{day}.csv", *columns, *policy, *options, cwd=workspace)
    ).stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare three days, train on the first, and on the third with a warm start from the first."""
    workspace = tmp_path_factory.mktemp("workspace")
    write_day(workspace, 0, {"u": "aaaabbbx", "v": "aabbxxyyy", "w": "zzzn"})
    write_day(workspace, 1, {"u": "abn", "v": "ba"})
    write_day(workspace, 2, {"u": "aabn", "v": "bbaa", "t": "ab"})
    prepare(workspace, 0)
    prepare(workspace, 1, "--base", "data0")
    output = prepare(workspace, 2, "--base", "data1", "--hold-out-test", "random:0.3", "--hold-out-valid", "none")
    assert "1 id expired; vacant rows reused by 1 new id" in output
    assert "3 ids expired; vacant rows reused by 1 new id" in output
    assert "2 vacant rows: the ids were forgotten or have expired" in output
    write_job(workspace / "job.yaml", "data0", train={"batch_size": 8}, negatives={"count": 4})
    (workspace / "job2.yaml").write_text((workspace / "job.yaml").read_text().replace("data0", "data2"))
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run0", cwd=workspace))
    start = ("--set", "checkpoint.warm_start_from=run0/checkpoints")
    succeeded(crossfade_here("train", "job2.yaml", "--run-dir", "run2", *start, *FROZEN, cwd=workspace))
    return workspace


def test_warm_start_resets_reassigned_rows_and_keeps_the_others(workspace: Path) -> None:
    job = load_job(workspace / "run2" / "job.yaml")
    data, manifest, model, _ = open_inputs(job)
    with closing(LocalStore()) as store:
        store.create(model.tables, job.optimizer_spec, job.train.seed)
        fresh = store.pull({table.name: np.arange(table.rows) for table in model.tables})
    for entity, kept, reset in (("customer", [0, 1], [2]), ("track", [0, 1], [2, 3, 4])):
        old, new = checkpoint_arrays(workspace / "run0", entity), checkpoint_arrays(workspace / "run2", entity)
        for row in kept:
            assert new["weights"][row].tobytes() == old["weights"][row].tobytes()
            assert new["weights"][row].tobytes() != fresh[entity][row].tobytes()
            assert (new["sum_of_squares"][row] >= old["sum_of_squares"][row]).all()
            assert (old["sum_of_squares"][row] > 0).any()
        for row in reset:
            if (entity, row) != ("customer", 2):  # begins near the tracks that it occurs with
                assert new["weights"][row].tobytes() == fresh[entity][row].tobytes()
            assert new["weights"][row].tobytes() != old["weights"][row].tobytes()
    # Vacant rows may still be drawn as negatives, so the optimizer state is checked before the first step.
    start = open_warm_start(job, model, manifest)
    assert start is not None
    assert start.lineage_index == 0
    reset_rows = {name: rows_R.tolist() for name, rows_R in start.rows_to_reset(data, manifest).items()}
    assert reset_rows == {"customer": [2], "track": [2, 3, 4]}
    with closing(LocalStore()) as store:
        store.create(model.tables, job.optimizer_spec, 9, start.checkpoint, start.rows_to_reset(data, manifest))
        sum_of_squares = store._optimizers["track"].state["sum_of_squares"]
    assert (sum_of_squares[2:] == 0).all()
    assert (sum_of_squares[:2] == checkpoint_arrays(workspace / "run0", "track")["sum_of_squares"][:2]).all()
    assert (checkpoint_arrays(workspace / "run0", "track")["sum_of_squares"][2:] > 0).any(axis=1).all(), (
        "otherwise the test shows nothing"
    )


def test_next_warm_start_keeps_rows_assigned_before_its_checkpoint(workspace: Path) -> None:
    job = load_job(
        workspace / "run2" / "job.yaml", [f"checkpoint.warm_start_from={workspace / 'run2' / 'checkpoints'}"]
    )
    data, manifest, model, _ = open_inputs(job)
    start = open_warm_start(job, model, manifest)
    assert start is not None
    assert {name: rows.tolist() for name, rows in start.rows_to_reset(data, manifest).items()} == {"track": [3, 4]}


def test_checkpoint_of_another_lineage_is_rejected(workspace: Path) -> None:
    start = ("--set", f"checkpoint.warm_start_from={workspace / 'run2' / 'checkpoints'}")
    cause = "does not extend, so its rows may belong to other ids there"
    rejected_here(cause, "train", "job.yaml", "--run-dir", "back", *start, cwd=workspace)
