"""Cold start: tracks without plays are ranked by their features.

``test_all_towers.py`` resumes, plans, and trains on servers.
"""

from pathlib import Path

import numpy as np
import pytest
from cluster_data import CUSTOMERS, GENRES, TRACKS, planted_plays, write_job
from finished_runs import quality, vectors

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.cli.main import main
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.features import load_feature
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.evaluation.held_out import load_held_out
from crossfade.trainer.evaluation.ranking import evaluate
from crossfade.trainer.model.spec import Score, make_model

pytestmark = pytest.mark.slow

PLAYS, HELD_OUT = 18, 3
COLD = np.random.default_rng(4).permutation(TRACKS)[: TRACKS // 5]
"""Tracks all of whose plays are held out."""
STYLES = 4
"""Values of a second feature; a track has that of its genre, and another."""
TOWER = {"dim": 8, "item_features": ["track", "genre", "style"], "id_dropout": 0.3}
TRAIN = {"batch_size": 256, "epochs": 8, "patience": None}
CHECKPOINT = {"interval_steps": 20, "interval_seconds": None}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare plays in which a fifth of the tracks appears in test only, and a job that trains on them."""
    folder = tmp_path_factory.mktemp("cold")
    tracks_CP = planted_plays(PLAYS)
    is_test_CP = np.isin(tracks_CP, COLD)
    is_test_CP[:, -HELD_OUT:] = True
    for name, selected_CP in (("train", ~is_test_CP), ("test", is_test_CP)):
        customers, places = np.nonzero(selected_CP)
        lines = [
            f"c{customer:03d},{5000 + track}"
            for customer, track in zip(customers, tracks_CP[customers, places], strict=True)
        ]
        (folder / f"{name}.csv").write_text("\n".join(["customer,track", *lines]))
    genres = [f"{5000 + track},{track % GENRES + 1}" for track in range(TRACKS)]
    (folder / "genres.csv").write_text("\n".join(["id,genre", *genres]))
    styles = [
        f"{5000 + track},s{style}" for track in range(TRACKS) for style in {track % GENRES % STYLES, track % STYLES}
    ]
    (folder / "styles.csv").write_text("\n".join(["id,style", *styles]))
    files = ["--train", f"{folder}/train.csv", "--test", f"{folder}/test.csv", "--item", "track"]
    features = [f"--features=track={folder}/{name}s.csv:id:{name}" for name in ("genre", "style")]
    assert main(["prepare", *files, *features, "--out", f"{folder}/data"]) == 0
    write_job(folder / "job.yaml", folder / "data", model=TOWER, train=TRAIN, checkpoint=CHECKPOINT)
    return folder


def train(workspace: Path, run: str, *options: object) -> Path:
    words = ["train", workspace / "job.yaml", "--run-dir", workspace / run, "--set", "metrics.port=null", *options]
    assert main([str(word) for word in words]) == 0
    return workspace / run


@pytest.fixture(scope="module")
def featured(workspace: Path) -> Path:
    """Train with features."""
    return train(workspace, "featured")


@pytest.fixture(scope="module")
def plain(workspace: Path) -> Path:
    """Train without features."""
    return train(workspace, "plain", "--set", "model.item_features=[track]")


class Popularity:
    """Scores items by their counts in train."""

    def __init__(self, counts_N: IntArray) -> None:
        self._counts_N = counts_N

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        values_N = np.ones(len(rows_N)) if entity == "customer" else self._counts_N[rows_N]
        return values_N.astype(np.float32)[:, None]


def popularity(workspace: Path) -> dict[str, float]:
    """Compute the metrics of ranking by popularity."""
    data, job = Folder(workspace / "data"), load_job(workspace / "job.yaml", ["model.score=dot"])
    manifest = read_manifest(data)
    model, counts_N = make_model(job, manifest), Vocabulary(data, manifest, "track").counts()
    spec = EvaluateConfig(k=[5, 10], best_metric="ndcg@10", exclude_splits=["train"])
    held_out = load_held_out(LineageReader(data, manifest), "test", spec, 0, 1)
    assert model.score == Score.of("dot", job.model.temperature)
    return evaluate(Popularity(counts_N), model, held_out, spec, counts_N, np.asarray)


def test_features_rank_new_tracks_far_above_popularity(workspace: Path, featured: Path, plain: Path) -> None:
    found, by_count, without = quality(featured), popularity(workspace), quality(plain)
    assert found["queries_cold"] == by_count["queries_cold"] > CUSTOMERS / 2
    # Popularity ranks unplayed tracks last, in no particular order.
    assert by_count["recall_cold@10"] == 0
    assert found["recall_cold@10"] > 0.25 > 20 * without["recall_cold@10"]
    chance = 10 / len(COLD)
    assert by_count["recall_among_cold@10"] == pytest.approx(chance, abs=0.1)
    assert without["recall_among_cold@10"] == pytest.approx(chance, abs=0.1)
    assert found["recall_among_cold@10"] > 2.5 * chance
    assert found["ndcg_among_cold@10"] > 2 * max(by_count["ndcg_among_cold@10"], without["ndcg_among_cold@10"])
    # Warm tracks give way to new ones, but recall over all tracks improves.
    assert found["recall@10"] > 1.5 * without["recall@10"]
    assert found["recall_warm@10"] > 2 * by_count["recall_warm@10"]


def test_vector_of_new_track_is_the_sum_of_its_features(workspace: Path, featured: Path) -> None:
    written = vectors(featured / "embeddings")
    data, manifest = Folder(workspace / "data"), read_manifest(Folder(workspace / "data"))
    assert set(written) == {"customer", "track", "genre", "style"}
    counts_N = Vocabulary(data, manifest, "track").counts()
    lists = {name: load_feature(data, manifest, "track", name) for name in ("genre", "style")}
    cold = np.flatnonzero(counts_N == 0)
    assert len(cold) == len(COLD)
    for row in cold:
        parts = [written[name][of.gather(np.array([row]))[1]].mean(axis=0) for name, of in lists.items()]
        np.testing.assert_allclose(written["track"][row], np.sum(parts, axis=0), atol=1e-6)
