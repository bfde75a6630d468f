"""Content in training: tracks without plays are ranked by it, in process and on servers, and after a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_data import GENRES, TRACKS, planted_plays, write_job
from command_here import crossfade_here
from run_results import assert_same_bits, checkpoint_arrays, report_of
from running_command import crossfade, succeeded

from crossfade.base.arrays import FloatArray
from crossfade.base.io.folder import Folder
from crossfade.deploy.capacity.plan import plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.data.features import load_content
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.recommend.trained_model import with_trained_model
from crossfade.trainer.runs.options import ModelSource

pytestmark = pytest.mark.slow

PLAYS, HELD_OUT, DIM, WIDTH = 18, 3, 8, 6
COLD = np.random.default_rng(4).permutation(TRACKS)[: TRACKS // 5]
"""Tracks all of whose plays are held out."""
MODEL = {"dim": DIM, "item_content": ["audio", "tempo"], "id_dropout": 0.3}
TRAIN = {"batch_size": 256, "epochs": 8, "patience": None}
WITHOUT = ("--set", "model.item_content=[]")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare plays in which a fifth of the tracks appears in test only, with vectors that follow genres, and a job."""
    folder = tmp_path_factory.mktemp("content")
    tracks_CP = planted_plays(PLAYS)
    is_test_CP = np.isin(tracks_CP, COLD)
    is_test_CP[:, -HELD_OUT:] = True
    for name, selected_CP in (("train", ~is_test_CP), ("test", is_test_CP)):
        customers, places = np.nonzero(selected_CP)
        tracks = 5000 + tracks_CP[customers, places]
        pq.write_table(pa.table({"customer": customers, "track": tracks}), folder / f"{name}.parquet")
    draw = np.random.default_rng(6)
    audio = draw.normal(size=(GENRES, WIDTH))[np.arange(TRACKS) % GENRES] + 0.3 * draw.normal(size=(TRACKS, WIDTH))
    columns = {
        "id": 5000 + np.arange(TRACKS),
        "audio": pa.FixedSizeListArray.from_arrays(pa.array(audio.ravel()), WIDTH),
        "tempo": pa.array([None if track % 7 == 0 else 90.0 + track for track in range(TRACKS)]),
    }
    pq.write_table(pa.table(columns), folder / "audio.parquet")
    files = ("--train", "train.parquet", "--test", "test.parquet", "--item", "track")
    content = ("--content", "track=audio.parquet:id:audio,tempo")
    succeeded(crossfade_here("prepare", *files, *content, "--out", "data", cwd=folder))
    write_job(folder / "job.yaml", "data", model=MODEL, train=TRAIN, checkpoint={"interval_steps": 20})
    return folder


def train(workspace: Path, run: str, *options: object) -> Path:
    words = ("train", "job.yaml", "--run-dir", run, "--set", "metrics.port=null", *options)
    succeeded(crossfade_here(*words, cwd=workspace))
    return workspace / run


@pytest.fixture(scope="module")
def trained(workspace: Path) -> Path:
    return train(workspace, "trained")


def layers(run: Path) -> dict[str, FloatArray]:
    """Return the dense layers in the newest checkpoint of a run."""
    checkpoint, _ = latest_checkpoint(str(run / "checkpoints"))
    assert checkpoint is not None
    with np.load(Path(checkpoint.uri) / "dense.npz") as arrays:
        return dict(arrays)


def quality(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = report_of(run)["metrics"]["test"]
    return found


def test_tracks_without_plays_are_ranked_by_content(workspace: Path, trained: Path) -> None:
    plain = train(workspace, "plain", *WITHOUT)
    chance = 10 / len(COLD)
    assert quality(plain)["recall_among_cold@10"] < 1.5 * chance
    assert quality(trained)["recall_among_cold@10"] > 2.5 * chance
    assert quality(trained)["recall@10"] > quality(plain)["recall@10"]
    assert not (workspace / "plain/checkpoints").joinpath("dense.npz").exists()


def test_checkpoint_gives_the_vectors_that_training_wrote(workspace: Path, trained: Path) -> None:
    last = train(workspace, "last", "--set", "evaluate.best_metric=recall@5", "--set", "train.save_embeddings=none")
    succeeded(crossfade_here("export", last, "--out", "exported", cwd=workspace))
    exported = pq.read_table(workspace / "exported" / "track").sort_by("row")
    vectors_ND = np.array(exported.column("vector").to_pylist(), np.float32)
    some_N = np.array([1, 5, 8])
    found_ND = with_trained_model(
        ModelSource(source=str(last / "checkpoints")), print, lambda model: model.vectors.vectors("track", some_N)
    )
    np.testing.assert_array_equal(vectors_ND[some_N], found_ND)
    # Cold rows have no ID embedding: their vectors are the outputs of the content layer.
    manifest = read_manifest(Folder(workspace / "data"))
    content = load_content(Folder(workspace / "data"), manifest, "track", ["audio", "tempo"])
    cold_N = np.flatnonzero(np.isin(exported.column("id").to_numpy(), 5000 + COLD))
    found = layers(last)
    expected_ND = content.values_RF[cold_N] @ found["track/content/0/weights"].T + found["track/content/0/bias"]
    np.testing.assert_allclose(vectors_ND[cold_N], expected_ND, atol=1e-5)
    assert len(cold_N) == len(COLD)


def test_plan_counts_content(workspace: Path) -> None:
    inputs = read_inputs(load_job(workspace / "job.yaml", [f"data.path={workspace}/data"]))
    [process] = plan_capacity(inputs).processes
    parts = {part.what: part.bytes for part in process.parts}
    rows = inputs.manifest.entities["track"].rows
    assert parts["content of each track"] == rows * (4 * (WIDTH + 3) + 1)
    weights = DIM * (WIDTH + 3) + DIM
    assert parts[f"dense layers of track/content: {weights} weights"] > 5 * 4 * weights


@pytest.mark.cluster
def test_run_on_servers_equals_one_process_with_content(workspace: Path) -> None:
    options = ("--set", "train.epochs=2")
    local = train(workspace, "local", *options)
    words = ("train", "job.yaml", "--set", "metrics.port=null", *options, "--servers", 1, "--run-dir", "servers")
    succeeded(crossfade(*words, cwd=workspace))
    servers = workspace / "servers"
    assert_same_bits(servers, local)
    for name, values in layers(local).items():
        assert layers(servers)[name].tobytes() == values.tobytes(), name
    for name, values in checkpoint_arrays(local, "track").items():
        assert checkpoint_arrays(servers, "track")[name].tobytes() == values.tobytes(), name
