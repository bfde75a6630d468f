"""A model with a popularity term: every way to rank by it agrees, and similar items leave it out."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_data import planted_splits, write_job
from command_here import crossfade_here
from exporting import vectors
from preparing import prepare_files, write_parquet
from running_command import succeeded

from crossfade.base.arrays import FloatArray
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.embeddings.popularity import PopularityTerm, read_term
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.recommend.top_k import unit_rows
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.serving.version import open_version
from crossfade.trainer.serving.version_folder import VersionOptions, write_version

pytestmark = pytest.mark.slow

COLUMNS = ("--query", "customer", "--item", "track", "--timestamp", "at", "--hold-out-valid", "none")
CUSTOMERS, K = ["c010", "c003", "c200"], 15


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on planted plays, whose last quarter is mostly of few tracks, as all of valid and test is."""
    folder = tmp_path_factory.mktemp("popularity")
    draw = np.random.default_rng(3)
    customer_N, track_N = (np.concatenate(parts) for parts in zip(*planted_splits().values(), strict=True))
    at_N = draw.permutation(len(track_N))
    risen_N = (at_N > 0.6 * len(at_N)) & (draw.random(len(at_N)) < 0.7)
    track_N[risen_N] = draw.integers(0, 8, risen_N.sum()) * 13
    columns: dict[str, Any] = {"customer": [f"c{row:03d}" for row in customer_N], "track": track_N, "at": at_N}
    times = {f"hold_out_{split}": f"after:{int(share * len(at_N))}" for split, share in (("valid", 0.8), ("test", 0.9))}
    source = write_parquet(folder / "plays.parquet", **columns)
    prepare_files(folder / "data", source, query="customer", item="track", timestamp="at", **times)
    write_job(folder / "job.yaml", folder / "data", model={"popularity": "auto"}, train={"epochs": 4})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    return folder


def report(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / "run" / "report.json").read_text())
    return found


def term_of(run: Path) -> PopularityTerm | None:
    embeddings = EmbeddingFiles(run / "embeddings")
    return read_term(embeddings, embeddings.rows("track"))


def scores(workspace: Path) -> FloatArray:
    """Return the score of each track for each of ``CUSTOMERS``."""
    term, tables = term_of(workspace / "run"), {}
    assert term is not None
    for entity in ("customer", "track"):
        table = pq.read_table(workspace / "run" / "embeddings" / entity)
        tables[entity] = table.column("id").to_pylist(), unit_rows(vectors(workspace / "run" / "embeddings", entity))
    ids, units_QD = tables["customer"]
    found: FloatArray = units_QD[[ids.index(each) for each in CUSTOMERS]] @ tables["track"][1].T + term.offset_I
    return found


def recommended(workspace: Path, *options: object) -> list[list[tuple[int, float]]]:
    command = ("recommend", "run", "--customer", *CUSTOMERS, "--k", K, "--json", *options)
    found = json.loads(succeeded(crossfade_here(*command, cwd=workspace)).stdout)
    return [[(item["track"], round(item["score"], 4)) for item in each["recommendations"]] for each in found]


def test_term_is_that_of_the_latest_plays_and_raises_the_metric(workspace: Path) -> None:
    found, term = report(workspace), term_of(workspace / "run")
    assert term is not None
    popularity, metrics = found["popularity"], found["metrics"]
    assert {name: popularity[name] for name in ("factor", "share")} == term.card.model_dump()
    assert term.card.factor > 0.1
    assert term.card.share < 1
    assert metrics["valid"]["ndcg@10"] > popularity["without"]["ndcg@10"] + metrics["valid"]["ndcg@10_se"]
    evaluated = json.loads(succeeded(crossfade_here("evaluate", "run", "--json", cwd=workspace)).stdout)
    assert evaluated["test"] == metrics["test"]
    printed = succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", "--resume", cwd=workspace)).stdout
    assert f"popularity: score / temperature + {term.card.factor:g} * log(1 + plays in the latest" in printed
    assert report(workspace)["popularity"] == popularity


def test_score_is_the_cosine_and_the_term(workspace: Path) -> None:
    ids = pq.read_table(workspace / "run" / "embeddings" / "track").column("id").to_pylist()
    for scores_I, found in zip(scores(workspace), recommended(workspace, "--exclude"), strict=True):
        best = np.argsort(-scores_I, kind="stable")[:K]
        assert [track for track, _ in found] == [ids[row] for row in best]
        np.testing.assert_allclose([score for _, score in found], scores_I[best], atol=1e-4)
    (workspace / "allowed.txt").write_text("\n".join(map(str, ids[:40])))
    limited = ("--exclude", "--allow", "allowed.txt")
    for scores_I, found in zip(scores(workspace), recommended(workspace, *limited), strict=True):
        assert [track for track, _ in found] == [ids[row] for row in np.argsort(-scores_I[:40], kind="stable")[:K]]


def test_indexes_exports_and_served_versions_rank_alike(workspace: Path) -> None:
    expected = recommended(workspace)
    succeeded(crossfade_here("index", "run", "--out", "index", "--recall", 1, cwd=workspace))
    assert recommended(workspace, "--index", "index") == expected
    rejected = crossfade_here("similar", "run", "0", "--index", "index", cwd=workspace)
    assert "searches by dot, but the ranking is by cosine" in rejected.stderr
    succeeded(crossfade_here("export", "run", "--to", "numpy", "--out", "export", cwd=workspace))
    customer_QD, track_ID = (np.load(workspace / "export" / name / "vectors.npy") for name in ("customer", "track"))
    ids = pq.read_table(workspace / "export" / "customer" / "rows.parquet").column("id").to_pylist()
    exported_QI = customer_QD[[ids.index(each) for each in CUSTOMERS]] @ track_ID.T
    np.testing.assert_allclose(exported_QI, scores(workspace), atol=1e-6)

    def serve(model: TrainedModel) -> None:
        options = VersionOptions(index_from=1, recall=1)
        card = write_version(model, workspace / "version", options, NullReporter())
        assert card.indexes == ["dot", "cosine"]
        queries_Q = np.arange(20)
        for request in (RecommendOptions.of(k=K), RecommendOptions.of(k=K, popularity_damping=0.5)):
            with closing(open_version(workspace / "version")) as version:
                served, plain = (each.recommend(queries_Q, request) for each in (version.model, Model(model)))
            np.testing.assert_array_equal(served.rows_QK, plain.rows_QK)
            np.testing.assert_allclose(served.scores_QK, plain.scores_QK, rtol=1e-5)
            similar = [each.similar(queries_Q, SimilarOptions.of(k=5)) for each in (version.model, Model(model))]
            np.testing.assert_array_equal(similar[0].rows_QK, similar[1].rows_QK)
            assert (similar[0].scores_QK <= 1.0001).all()

    with_trained_model(ModelSource.of(source=str(workspace / "run")), print, serve)


def settings(epochs: int, popularity: object) -> tuple[str, ...]:
    return "--set", f"train.epochs={epochs}", "--set", f"model.popularity={popularity}"


def test_term_can_be_given_and_left_out_when_a_run_is_resumed(workspace: Path, tmp_path: Path) -> None:
    command = ("train", workspace / "job.yaml", "--run-dir", tmp_path / "run")
    succeeded(crossfade_here(*command, "--set", "model.popularity=-0.5"))
    given = term_of(tmp_path / "run")
    assert given is not None
    assert given.card.factor == -0.5
    assert (given.offset_I <= 0).all()
    for epochs in (4, 5):
        succeeded(crossfade_here(*command, "--resume", *settings(epochs, popularity="off")))
        assert term_of(tmp_path / "run") is None
        succeeded(crossfade_here(*command, "--resume", *settings(epochs, popularity=0.25)))
        assert term_of(tmp_path / "run") is not None
    rejected = crossfade_here(*command, "--set", "model.popularity=1", "--set", "model.score=euclidean")
    assert rejected.returncode == 2
    assert "popularity is 1, which is a part of cosine and dot scores only" in rejected.stderr
