"""Content in training: tracks without plays are ranked by it. ``test_all_towers.py`` resumes it, and has servers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_data import GENRES, TRACKS, planted_plays, write_job
from command_here import crossfade_here
from dense_runs import final_layers
from run_results import report_of
from running_command import succeeded

from crossfade.base.io.folder import Folder
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


def test_vectors_of_a_checkpoint_are_those_of_its_content_layer(workspace: Path, trained: Path) -> None:
    succeeded(crossfade_here("export", trained / "checkpoints", "--out", "exported", cwd=workspace))
    exported = pq.read_table(workspace / "exported" / "track").sort_by("row")
    vectors_ND = np.array(exported.column("vector").to_pylist(), np.float32)
    some_N = np.array([1, 5, 8])
    found_ND = with_trained_model(
        ModelSource(source=str(trained / "checkpoints")), print, lambda model: model.vectors.vectors("track", some_N)
    )
    np.testing.assert_array_equal(vectors_ND[some_N], found_ND)
    # Cold rows have no ID embedding: their vectors are the outputs of the content layer.
    manifest = read_manifest(Folder(workspace / "data"))
    content = load_content(Folder(workspace / "data"), manifest, "track", ["audio", "tempo"])
    cold_N = np.flatnonzero(np.isin(exported.column("id").to_numpy(), 5000 + COLD))
    found = final_layers(trained)
    expected_ND = content.values_RF[cold_N] @ found["track/content/0/weights"].T + found["track/content/0/bias"]
    np.testing.assert_allclose(vectors_ND[cold_N], expected_ND, atol=1e-5)
    assert len(cold_N) == len(COLD)
