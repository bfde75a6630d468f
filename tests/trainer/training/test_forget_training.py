"""Forgotten customers are absent from the next checkpoint, its embeddings, and the neighbors in them."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_data import CUSTOMERS, write_job, write_planted
from command_here import crossfade_here
from run_results import checkpoint_arrays
from running_command import crossfade, succeeded

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.local import LocalStore
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.model.spec import make_model
from crossfade.trainer.runs.job_inputs import open_inputs

pytestmark = pytest.mark.slow

GONE = [5, 77, CUSTOMERS - 1]
FORGOTTEN = [f"c{row:03d}" for row in GONE]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train ``old``, forget three customers in its data, and train ``new`` with a warm start from ``old``."""
    workspace = tmp_path_factory.mktemp("workspace")
    write_job(workspace / "job.yaml", write_planted(workspace / "data"))
    (workspace / "ids.txt").write_text("\n".join(FORGOTTEN))
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "old", cwd=workspace))
    succeeded(crossfade_here("forget", "data", "--ids", "ids.txt", cwd=workspace))
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "new", *warm(workspace), cwd=workspace))
    return workspace


def warm(workspace: Path) -> tuple[str, str]:
    """Return options that start from the old run, with a seed that gives reset rows other values than it began with."""
    return "--set", f"checkpoint.warm_start_from={workspace / 'old' / 'checkpoints'}", "--set", "train.seed=9"


def fresh(workspace: Path, run: str) -> FloatArray:
    """Compute the initial vectors of customers in a run."""
    job = load_job(workspace / run / "job.yaml")
    model = make_model(job, open_inputs(job)[1])
    with closing(LocalStore()) as store:
        store.create(model.tables, job.optimizer_spec, job.train.seed)
        return store.pull({"customer": np.arange(CUSTOMERS)})["customer"]


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_gone(workspace: Path, run: str) -> None:
    old, new, initial = (
        checkpoint_arrays(workspace / "old", "customer"),
        checkpoint_arrays(workspace / run, "customer"),
        fresh(workspace, run),
    )
    for row in GONE:
        assert new["weights"][row].tobytes() == initial[row].tobytes()
        assert new["weights"][row].tobytes() != old["weights"][row].tobytes()
        assert (new["sum_of_squares"][row] == 0).all()
        assert (old["sum_of_squares"][row] > 0).all()
    files = [path.read_bytes() for path in (workspace / run).rglob("*") if path.is_file()]
    before = [old[name][row].tobytes() for name in ("weights", "sum_of_squares") for row in GONE]
    assert not [row for row in before if any(row in content for content in files)]
    others = np.setdiff1d(np.arange(CUSTOMERS), GONE)
    assert (new["sum_of_squares"][others] > old["sum_of_squares"][others]).any(axis=1).all(), (
        "the others are trained further"
    )


def test_rows_of_forgotten_customers_are_reset_in_the_next_checkpoint(workspace: Path) -> None:
    assert_gone(workspace, "new")


@pytest.mark.cluster
def test_rows_of_forgotten_customers_are_reset_on_servers(workspace: Path) -> None:
    on_servers = ("--servers", 2, "--workers", 2, "--run-dir", "servers")
    succeeded(crossfade("train", "job.yaml", *on_servers, *warm(workspace), cwd=workspace))
    assert_gone(workspace, "servers")


def test_run_on_the_old_data_cannot_resume_and_is_not_touched(workspace: Path) -> None:
    before = content_of(workspace / "old")
    result = crossfade_here("train", "job.yaml", "--run-dir", "old", "--resume", cwd=workspace)
    assert result.returncode == 2
    assert f"cannot resume: {workspace / 'data'} has changed since" in result.stderr
    assert "--set checkpoint.warm_start_from=" in result.stderr
    assert "(rows without an id are reset)" in result.stderr
    assert content_of(workspace / "old") == before


def test_run_after_a_warm_start_resumes_to_the_same_bits(workspace: Path) -> None:
    stopped = ("--run-dir", "stopped", *warm(workspace))
    succeeded(crossfade_here("train", "job.yaml", *stopped, "--set", "train.max_steps=9", cwd=workspace))
    succeeded(crossfade_here("train", "job.yaml", *stopped, "--resume", cwd=workspace))
    for entity in ("customer", "track"):
        for name, values in checkpoint_arrays(workspace / "new", entity).items():
            assert values.tobytes() == checkpoint_arrays(workspace / "stopped", entity)[name].tobytes()


def test_forgotten_customers_have_no_id_in_embeddings_and_exports(workspace: Path) -> None:
    succeeded(crossfade_here("export", "new/checkpoints", "--out", "exported", cwd=workspace))
    for folder in (workspace / "new" / "embeddings", workspace / "exported"):
        table = pq.read_table(folder / "customer")
        assert table.column("row").to_pylist() == list(range(CUSTOMERS))
        assert [row for row, text in enumerate(table.column("id").to_pylist()) if text is None] == GONE


def test_forgotten_customers_are_not_found(workspace: Path) -> None:
    query = ("--entity", "customer", "-k", str(CUSTOMERS), "c000")
    for run in ("old", "new"):  # names come from the dataset, so the older run does not show them either
        words = succeeded(crossfade_here("similar", run, *query, cwd=workspace)).stdout.split()
        assert "None" not in words
        assert not set(words) & set(FORGOTTEN)
        assert len([word for word in words if word.startswith("c")]) == CUSTOMERS - len(GONE)
    result = crossfade_here("similar", "new", "--entity", "customer", FORGOTTEN[0], cwd=workspace)
    assert result.returncode == 2
    assert f"there is no customer with the ID or name '{FORGOTTEN[0]}'" in result.stderr
