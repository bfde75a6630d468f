"""One training with context, histories, and features, content, and dense layers of items, in all commands."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import write_job
from command_here import crossfade_here, rejected_here
from dense_runs import assert_same_run
from preparing import vocabulary_tuples, write_parquet
from run_results import all_vectors, report_of, same_bits
from running_command import crossfade, succeeded

from crossfade import load
from crossfade.base.arrays import FloatArray
from crossfade.deploy.capacity.plan import plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend.fold_in import FoldIn
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import RecommendOptions
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.serving.version import open_version
from crossfade.trainer.serving.version_folder import VersionOptions, write_version

pytestmark = pytest.mark.slow

CUSTOMERS, TRACKS, GENRES, PLAYS, LENGTH, WIDTH = 240, 99, 3, 24, 4, 6
MODEL = {
    "dim": 16,
    "query_features": ["customer", "device", "history"],
    "history": {"length": LENGTH, "half_life": 2},
    "item_features": ["track", "genre"],
    "item_content": ["audio", "tempo"],
    "id_dropout": 0.1,
    "dense": {"item": [20, 16], "learning_rate": 0.02},
}
IDS_OF_ITEMS = ("--set", "model.item_features=[track]", "--set", "model.item_content=[]", "--set", "model.dense={}")
CHECKPOINT = {"interval_steps": 20, "interval_seconds": None}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare plays of the genre of a device, which one in twenty lacks, and a job that uses all that is known."""
    folder, random = tmp_path_factory.mktemp("towers"), np.random.default_rng(3)
    device_N = random.integers(GENRES, size=CUSTOMERS * PLAYS)
    write_parquet(
        folder / "plays.parquet",
        customer=[f"c{row}" for row in np.repeat(np.arange(CUSTOMERS), PLAYS)],
        track=random.integers(TRACKS // GENRES, size=len(device_N)) * GENRES + device_N,
        at=np.tile(np.arange(PLAYS), CUSTOMERS) * 100 + random.integers(100, size=len(device_N)),
        device=[None if random.random() < 0.05 else f"d{device}" for device in device_N],
    )
    write_parquet(folder / "genres.parquet", id=np.arange(TRACKS), genre=np.arange(TRACKS) % GENRES)
    audio_TW = np.eye(GENRES, WIDTH)[np.arange(TRACKS) % GENRES] + random.normal(size=(TRACKS, WIDTH))
    tempo = [None if track % 7 == 0 else 90.0 + track for track in range(TRACKS)]
    write_parquet(folder / "audio.parquet", id=np.arange(TRACKS), audio=audio_TW.tolist(), tempo=tempo)
    columns = ("--item", "track", "--timestamp", "at", "--context", "device=device")
    features = ("--features", "track=genres.parquet:id:genre", "--content", "track=audio.parquet:id:audio,tempo")
    hold_outs = ("--hold-out-test", "after:2100", "--hold-out-valid", "none", "--out", "data")
    succeeded(crossfade_here("prepare", "--events", "plays.parquet", *columns, *features, *hold_outs, cwd=folder))
    train = {"batch_size": 256, "epochs": 6}
    write_job(folder / "job.yaml", folder / "data", model=MODEL, train=train, checkpoint=CHECKPOINT)
    return folder


def quality(run: Path) -> dict[str, float]:
    found: dict[str, float] = report_of(run)["metrics"]["test"]
    return found


def train(workspace: Path, run: str, *options: object) -> Path:
    words = ("train", "job.yaml", "--run-dir", run, "--set", "metrics.port=null", *options)
    succeeded(crossfade_here(*words, cwd=workspace))
    return workspace / run


@pytest.fixture(scope="module")
def trained(workspace: Path) -> Path:
    return train(workspace, "trained")


@pytest.fixture(scope="module")
def plain(workspace: Path) -> Path:
    """Train with the IDs of customers and tracks alone, on the same dataset."""
    return train(workspace, "plain", "--set", "model.query_features=[customer]", *IDS_OF_ITEMS)


def test_towers_rank_far_better_on_the_same_queries(trained: Path, plain: Path) -> None:
    found, without = quality(trained), quality(plain)
    assert [found[name] for name in ("queries", "pairs")] == [without[name] for name in ("queries", "pairs")]
    assert found["queries"] > CUSTOMERS  # a customer is a query in each context
    assert found["ndcg@10"] > 1.3 * without["ndcg@10"]
    compared = json.loads(succeeded(crossfade_here("evaluate", trained, "--compare", plain, "--json")).stdout)
    assert compared["test"] == pytest.approx(found)
    assert compared["comparison"]["metrics"]["ndcg@10"]["p_holm"] < 0.01


def test_resumed_run_gives_the_same_bits(workspace: Path, trained: Path) -> None:
    train(workspace, "resumed", "--set", "train.max_steps=33")
    assert_same_run(train(workspace, "resumed", "--resume"), trained)


def test_export_has_the_vectors_of_all_tables(workspace: Path, trained: Path) -> None:
    succeeded(crossfade_here("export", trained, "--out", workspace / "exported"))
    assert same_bits(workspace / "exported", trained / "embeddings")


def test_plan_counts_features_histories_and_content(workspace: Path) -> None:
    [process] = plan_capacity(read_inputs(load_job(workspace / "job.yaml"))).processes
    held = {part.what: part.bytes for part in process.parts}
    assert held["genre of each track"] == 4 * (TRACKS + 1) + 4 * TRACKS
    assert sum(size for what, size in held.items() if "latest history" in what) > 0
    assert held["content of each track"] == TRACKS * (4 * (WIDTH + 3) + 1)
    weights = 16 * (WIDTH + 3) + 16
    assert held[f"dense layers of track/content: {weights} weights"] > 5 * 4 * weights


@pytest.mark.cluster
def test_worker_on_a_server_that_resumes_its_checkpoint_equals_one_process(workspace: Path, trained: Path) -> None:
    words = ("train", "job.yaml", "--run-dir", "server", "--servers", 1)
    for more in (("--set", "train.max_steps=33"), ("--resume",)):
        succeeded(crossfade(*words, *more, cwd=workspace))
    assert_same_run(workspace / "server", trained)


@pytest.mark.cluster
def test_two_workers_that_hold_the_tables_equal_one_process(workspace: Path, trained: Path) -> None:
    succeeded(crossfade("train", "job.yaml", "--run-dir", "workers", "--workers", 2, cwd=workspace))
    found, expected = all_vectors(workspace / "workers" / "embeddings"), all_vectors(trained / "embeddings")
    assert found.keys() == expected.keys()
    for name, vectors_ND in expected.items():
        # AdaGrad's first steps divide a gradient by its own size, which amplifies rounding in gradients near 0.
        np.testing.assert_allclose(found[name], vectors_ND, atol=1e-3, err_msg=name)
    assert quality(workspace / "workers") == pytest.approx(quality(trained), abs=0.02)


class Written:
    """The vectors that a run wrote, by ID, and rankings by their sums."""

    def __init__(self, workspace: Path, run: Path) -> None:
        self._vectors = all_vectors(run / "embeddings")
        self._tuples = {name: vocabulary_tuples(workspace / "data", name) for name in self._vectors}

    def of(self, entity: str, *ids: Any) -> FloatArray:
        """Return the vectors of ``ids``."""
        row_of = {row[1]: row[0] for row in self._tuples[entity]}
        found_ND: FloatArray = self._vectors[entity][[row_of[each] for each in ids]]
        return found_ND

    def average(self, entity: str) -> FloatArray:
        """Return the mean over all plays in train, to which a play without the entity adds nothing."""
        plays = sum(row[2] for row in self._tuples["track"])
        total_D: FloatArray = sum(row[2] * self._vectors[entity][row[0]] for row in self._tuples[entity])
        return total_D / plays

    def best(self, query_D: FloatArray, known: list[int]) -> list[int]:
        """Return the eight tracks nearest to a vector by cosine, without ``known``."""
        track_ND = self._vectors["track"]
        scores_N = track_ND @ query_D / np.linalg.norm(track_ND, axis=1)
        ids = [row[1] for row in self._tuples["track"]]
        return [ids[row] for row in np.argsort(-scores_N, kind="stable") if ids[row] not in known][:8]


def recommended(run: Path, *options: object) -> list[int]:
    done = succeeded(crossfade_here("recommend", run, *options, "-k", 8, "--json"))
    return [each["track"] for each in json.loads(done.stdout)[0]["recommendations"]]


@pytest.mark.parametrize("device", ["d0", "d2", None])
def test_recommendations_are_for_the_given_context_or_the_average(
    workspace: Path, trained: Path, device: str | None
) -> None:
    written = Written(workspace, trained)
    context_D = written.average("device") if device is None else written.of("device", device)[0]
    expected = written.best(written.of("customer", "c8")[0] + context_D, [])
    given = () if device is None else ("--context", f"device={device}")
    assert recommended(trained, "--customer", "c8", "--exclude", *given) == expected
    if device is not None:
        assert sum(track % GENRES == int(device[1:]) for track in expected) >= 6


def test_served_and_new_customers_are_in_the_average_context(workspace: Path, trained: Path) -> None:
    """A served model ranks as the command without --context; the prior of fold-in has the average, too."""

    def use(model: TrainedModel) -> None:
        write_version(model, workspace / "version", VersionOptions(None, index_from=None), NullReporter())
        original, options, customer_N = Model(model), RecommendOptions(k=7), np.arange(CUSTOMERS)
        expected = original.recommend(customer_N, options)
        with closing(open_version(workspace / "version")) as version:
            found = version.model.recommend(customer_N, options)
            nothing = version.model.make_histories([np.empty(0, np.int64)], [np.empty(0, np.float32)])
        np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)
        np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)
        query_QD = original.query_vectors(customer_N, options).astype(float)
        mean_D = (query_QD / np.linalg.norm(query_QD, axis=1)[:, None]).mean(axis=0)
        assert FoldIn(model).vectors(nothing)[0] == pytest.approx(mean_D, abs=1e-6)

    with_trained_model(ModelSource(source=str(trained)), print, use)


def test_metrics_are_divided_by_context(trained: Path) -> None:
    done = succeeded(crossfade_here("evaluate", trained, "--segments", "device", "--k", 10, "--json"))
    results = json.loads(done.stdout)
    segments = results["segments"]
    assert {*segments} == {"device=d0", "device=d1", "device=d2", "no device", "all"}
    parts = [values for name, values in segments.items() if name != "all"]
    assert segments["all"]["queries"] == sum(values["queries"] for values in parts) == results["test"]["queries"]
    mean = sum(values["queries"] * values["ndcg@10"] for values in parts) / segments["all"]["queries"]
    assert mean == pytest.approx(segments["all"]["ndcg@10"]) == pytest.approx(results["test"]["ndcg@10"])
    # Without a device, the genre is unknown.
    assert segments["device=d2"]["ndcg@10"] > 1.3 * segments["no device"]["ndcg@10"]


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        ("device=boat: there is no device with the ID or name 'boat", ["--customer", "c8", "--context", "device=boat"]),
        ("has no context 'room", ["--customer", "c8", "--context", "room=18"]),
        ("is added to trained vectors, which histories do not", ["--history", "5", "--context", "device=d0"]),
    ],
)
def test_context_that_cannot_be_recommended_for_is_rejected(trained: Path, cause: str, options: list[str]) -> None:
    rejected_here(cause, "recommend", trained, *options)


def test_new_customer_has_the_mean_of_the_last_plays(workspace: Path) -> None:
    """Without an embedding of customers, a history is all that a vector needs, in each way of giving one."""
    run = train(workspace, "histories-alone", "--set", "model.query_features=[history]", *IDS_OF_ITEMS)
    written, plays = Written(workspace, run), [7, 12, 3, 8, 13, 18]
    weight_N = 0.5 ** (np.arange(LENGTH)[::-1] / 2)
    expected = written.best(weight_N @ written.of("track", *plays[-LENGTH:]), plays)
    assert recommended(run, "--history", *plays) == expected
    assert list(load(run).recommend(history=[str(play) for play in plays], k=8)["track"]) == expected
