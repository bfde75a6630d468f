"""Tables that begin with given vectors (``model.start``), frozen or not, in process; test_content.py has servers."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_data import TRACKS, write_job, write_planted
from command_here import crossfade_here
from run_results import checkpoint_arrays
from running_command import succeeded

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.local import LocalStore
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.model.towers import load_towers
from crossfade.trainer.recommend.trained_model import with_trained_model
from crossfade.trainer.runs.job_inputs import open_inputs
from crossfade.trainer.runs.options import ModelSource

pytestmark = pytest.mark.slow

DIM = 8
GIVEN = np.random.default_rng(3).permutation(TRACKS + 10)[: TRACKS - 50]
"""Tracks that get a vector, in the order of the file; the last ten tracks have no interaction."""
START = ("--set", "model.start={track: vectors.parquet}")
FROZEN = (*START, "--set", "model.frozen=[track]")


def given_vectors() -> FloatArray:
    """Return the vectors of ``GIVEN``, float64, as other tools may write them."""
    return np.random.default_rng(5).normal(size=(len(GIVEN), DIM))


def write_vectors(path: Path, ids: Any, vectors: Any) -> None:
    pq.write_table(pa.table({"id": ids, "vector": vectors}), path, row_group_size=64)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset and a job, and vectors of some tracks, of an id that the dataset lacks, and of no id."""
    folder = tmp_path_factory.mktemp("start")
    write_planted(folder / "data", tracks=TRACKS + 10, with_genres=True)
    write_job(
        folder / "job.yaml",
        "data",
        model={"dim": DIM},
        optimizer={"max_norm": None},  # given vectors are longer than 1
        train={"epochs": 2},
        checkpoint={"interval_steps": 5},
    )
    vectors = given_vectors().tolist()
    write_vectors(folder / "vectors.parquet", [*(5000 + GIVEN).tolist(), 4, None], [*vectors, [9.0] * DIM, [9.0] * DIM])
    return folder


def train(workspace: Path, run: str, *options: object) -> Path:
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", run, *options, cwd=workspace))
    return workspace / run


@pytest.fixture(scope="module")
def frozen(workspace: Path) -> Path:
    return train(workspace, "frozen", *FROZEN)


def initial_rows(workspace: Path) -> dict[str, FloatArray]:
    """Return the tables of the job as they are drawn."""
    job = load_job(workspace / "frozen" / "job.yaml")
    model = open_inputs(job).model
    with closing(LocalStore()) as store:
        store.create(model.tables, job.optimizer_spec, job.train.seed)
        return store.pull({table.name: np.arange(table.rows) for table in model.tables})


def test_frozen_table_keeps_given_and_drawn_rows_and_its_state(workspace: Path, frozen: Path) -> None:
    expected = initial_rows(workspace)["track"]
    expected[GIVEN] = given_vectors()
    trained = checkpoint_arrays(frozen, "track")
    assert trained["weights"].tobytes() == expected.tobytes()
    assert not trained["sum_of_squares"].any()
    written = EmbeddingFiles(frozen / "embeddings").vectors("track", np.arange(TRACKS + 10))
    assert written.tobytes() == expected.tobytes()
    moved = checkpoint_arrays(frozen, "customer")["weights"] != initial_rows(workspace)["customer"]
    assert moved.any(axis=1).all()
    report = json.loads((frozen / "report.json").read_text())
    assert 0 < report["bytes_pushed"] < report["bytes_pulled"] / 1.2


def test_start_without_freezing_trains_from_the_given_vectors(workspace: Path, frozen: Path) -> None:
    slow = ("--set", "optimizer.learning_rate=1e-30")
    unmoved = checkpoint_arrays(train(workspace, "unmoved", *START, *slow), "track")["weights"]
    assert unmoved.tobytes() == checkpoint_arrays(frozen, "track")["weights"].tobytes()
    trained = checkpoint_arrays(train(workspace, "started", *START), "track")
    assert (trained["weights"][:TRACKS] != unmoved[:TRACKS]).any(axis=1).all()
    assert trained["sum_of_squares"].any()


def test_in_place_steps_are_not_taken_with_a_frozen_table(workspace: Path, frozen: Path) -> None:
    in_place = ("--set", "negatives.kind=per_example", "--set", "model.score=dot", "--set", "loss=bpr")
    trained = checkpoint_arrays(train(workspace, "bpr", *FROZEN, *in_place), "track")["weights"]
    assert trained.tobytes() == checkpoint_arrays(frozen, "track")["weights"].tobytes()


def test_resumed_run_does_not_read_the_vectors_again(workspace: Path) -> None:
    whole = train(workspace, "whole", *START)
    half = train(workspace, "half", *START, "--set", "train.epochs=1")
    (workspace / "vectors.parquet").rename(workspace / "moved.parquet")
    try:
        train(workspace, "half", *START, "--resume", "--set", "train.epochs=2")
    finally:
        (workspace / "moved.parquet").rename(workspace / "vectors.parquet")
    for table in ("customer", "track"):
        for name, values in checkpoint_arrays(whole, table).items():
            assert checkpoint_arrays(half, table)[name].tobytes() == values.tobytes()
    other = crossfade_here("train", "job.yaml", "--run-dir", "half", "--resume", cwd=workspace)
    assert other.returncode == 2
    assert "model.start.track was" in other.stderr
    assert "and is now None" in other.stderr


def test_warm_start_gives_vectors_to_new_rows_only(workspace: Path, frozen: Path) -> None:
    write_planted(workspace / "fewer", tracks=TRACKS)
    small = ("--set", "data.path=fewer", "--set", "train.epochs=1")
    old = checkpoint_arrays(train(workspace, "old", *small), "track")["weights"]
    slow = ("--set", "optimizer.learning_rate=1e-30", "--set", "checkpoint.warm_start_from=old/checkpoints")
    new = checkpoint_arrays(train(workspace, "new", *START, *slow), "track")["weights"]
    assert new[:TRACKS].tobytes() == old.tobytes()
    assert new[TRACKS:].tobytes() == checkpoint_arrays(frozen, "track")["weights"][TRACKS:].tobytes()
    assert np.isin(np.arange(TRACKS, TRACKS + 10), GIVEN).any()


def test_embeddings_of_a_run_are_given_vectors(workspace: Path, frozen: Path) -> None:
    start = ("--set", "model.start={track: frozen/embeddings/track}", "--set", "model.frozen=[track]")
    found = checkpoint_arrays(train(workspace, "second", *start, "--set", "train.seed=2"), "track")["weights"]
    assert found.tobytes() == checkpoint_arrays(frozen, "track")["weights"].tobytes()


def test_rows_with_given_vectors_count_as_trained(workspace: Path, frozen: Path) -> None:
    cold = np.arange(TRACKS, TRACKS + 10)
    given = np.isin(cold, GIVEN)
    assert 0 < given.sum() < 10
    trained_R = with_trained_model(
        ModelSource(source=str(frozen)), print, lambda model: model.trained_rows(model.spec.item)
    )
    np.testing.assert_array_equal(trained_R[cold], given)
    succeeded(crossfade_here("export", frozen, "--to", "numpy", "--out", workspace / "exported"))
    exported = pq.read_table(workspace / "exported" / "track" / "rows.parquet").column("trained").to_numpy()
    np.testing.assert_array_equal(exported, trained_R)
    job = load_job(workspace / "job.yaml", ["model.item_features=[track, genre]", f"data.path={workspace}/data"])
    for start, expected in (({}, np.zeros(10, bool)), ({"track": f"{workspace}/vectors.parquet"}, given)):
        started = job.model_copy(update={"model": job.model.model_copy(update={"start": start})})
        folder, manifest, model, started = open_inputs(started)
        tower = load_towers(started, model, folder, manifest).of("track")
        assert tower is not None
        np.testing.assert_array_equal(tower.inputs(cold).uses_id_A, expected)


def bad_files(folder: Path) -> dict[str, Callable[[Path], None]]:
    ids, vectors = [5000, 5001], [[1.0] * DIM, [2.0] * DIM]
    return {
        "expected the columns 'id' and 'vector'": lambda path: pq.write_table(
            pa.table({"id": ids, "v": vectors}), path
        ),
        "column 'vector' holds": lambda path: write_vectors(path, ids, [1.0, 2.0]),
        "numbers, but model.dim is": lambda path: write_vectors(path, ids, [[1.0] * 4, [2.0] * 4]),
        "has a vector of none of the ids of": lambda path: write_vectors(path, [1, 2], vectors),
        "has more than one vector of the id": lambda path: write_vectors(path, [5000, 5000], vectors),
        "a vector is null": lambda path: write_vectors(path, ids, [vectors[0], None]),
        "a vector has a value that is null, not finite, or beyond 1e18": lambda path: write_vectors(
            path, ids, [vectors[0], [np.nan] * DIM]
        ),
        "no such file": lambda path: path.unlink(missing_ok=True),
    }


def rejected(workspace: Path, *options: str) -> str:
    result = crossfade_here("train", "job.yaml", "--run-dir", "bad", *options, cwd=workspace)
    assert result.returncode == 2, result.stderr
    return result.stderr.strip().splitlines()[-1].removeprefix("crossfade: error: ")


@pytest.mark.parametrize("cause", bad_files(Path()))
def test_unusable_vectors_are_rejected(workspace: Path, cause: str) -> None:
    bad_files(workspace)[cause](workspace / "bad.parquet")
    assert cause in rejected(workspace, "--set", "model.start={track: bad.parquet}")


def test_unusable_tables_are_rejected(workspace: Path) -> None:
    assert "model.start names" in rejected(workspace, "--set", "model.start={artist: v.parquet}")
    assert "model.frozen names" in rejected(workspace, "--set", "model.frozen=[artist]")
    assert "model.frozen names every table, so there is nothing to train" in rejected(
        workspace, "--set", "model.frozen=[customer, track]"
    )
    assert "expected a Parquet file, or a folder of them such as" in rejected(
        workspace, "--set", "model.start={track: data}"
    )
