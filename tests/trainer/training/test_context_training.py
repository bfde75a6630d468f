"""Training with context, planted plays whose genre goes with the device, in all commands.

``test_all_towers.py`` resumes, exports, plans, and trains on servers.
"""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cluster_data import write_job
from command_here import crossfade_here, rejected_here
from finished_runs import quality, vectors
from preparing import vocabulary_tuples, write_parquet
from running_command import succeeded

from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend.fold_in import FoldIn
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import RecommendOptions
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.serving.version import open_version
from crossfade.trainer.serving.version_folder import VersionOptions, write_version

pytestmark = pytest.mark.slow

CUSTOMERS, TRACKS, GENRES, PLAYS = 240, 100, 5, 24
DEVICES = ("car", "phone", "tv")
TABLES = ["customer", "device", "hour", "track"]
CHECKPOINT = {"interval_steps": 20, "interval_seconds": None}


def write_plays(path: Path) -> None:
    """Write plays: four in five are of the genre of the device, the others of the customer's; track t has t mod 5."""
    random = np.random.default_rng(3)
    customers = np.repeat(np.arange(CUSTOMERS), PLAYS)
    devices = random.integers(len(DEVICES), size=len(customers))
    genres = np.where(random.random(len(customers)) < 0.8, devices, customers)
    write_parquet(
        path,
        customer=[f"c{row}" for row in customers],
        track=random.integers(TRACKS // GENRES, size=len(customers)) * GENRES + genres % GENRES,
        at=random.integers(86_400, size=len(customers)),
        # One event in twenty has no device.
        device=[None if random.random() < 0.05 else DEVICES[row] for row in devices],
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the plays with the device and the hour as context, and a job that trains with both."""
    folder = tmp_path_factory.mktemp("context")
    write_plays(folder / "plays.parquet")
    context = ("--context", "device=device", "--context", "hour=timestamp:hour", "--timestamp", "at")
    events = ("--events", folder / "plays.parquet", "--item", "track")
    hold_outs = ("--hold-out-test", "random:0.15", "--hold-out-valid", "none")
    succeeded(crossfade_here("prepare", *events, *context, *hold_outs, "--out", folder / "data"))
    model = {"dim": 16, "query_features": ["customer", "device", "hour"]}
    train = {"batch_size": 256, "epochs": 12}
    write_job(folder / "job.yaml", folder / "data", model=model, train=train, checkpoint=CHECKPOINT)
    return folder


def train(workspace: Path, run: str, *options: object) -> Path:
    words = (workspace / "job.yaml", "--run-dir", workspace / run, "--set", "metrics.port=null", *options)
    succeeded(crossfade_here("train", *words))
    return workspace / run


@pytest.fixture(scope="module")
def in_context(workspace: Path) -> Path:
    """Train with context."""
    return train(workspace, "in-context")


@pytest.fixture(scope="module")
def plain(workspace: Path) -> Path:
    """Train without context on the same dataset."""
    return train(workspace, "plain", "--set", "model.query_features=[customer]")


def test_context_ranks_far_better_on_the_same_queries(workspace: Path, in_context: Path, plain: Path) -> None:
    found, without = quality(in_context), quality(plain)
    assert [found[name] for name in ("queries", "pairs")] == [without[name] for name in ("queries", "pairs")]
    assert found["queries"] > CUSTOMERS  # a customer is a query in each context
    assert found["ndcg@10"] > 1.3 * without["ndcg@10"]
    compared = succeeded(crossfade_here("evaluate", in_context, "--compare", plain, "--json"))
    results = json.loads(compared.stdout)
    assert results["test"] == pytest.approx(found)
    assert results["comparison"]["metrics"]["ndcg@10"]["p_holm"] < 0.01


def test_recommendations_are_for_the_given_context(workspace: Path, in_context: Path) -> None:
    """The ranking is that of the sum of three written vectors, and the planted genre leads it."""
    written = vectors(in_context / "embeddings")
    rows = {name: {row[1]: row[0] for row in vocabulary_tuples(workspace / "data", name)} for name in TABLES}
    for device, genre in (("car", 0), ("tv", 2)):
        options = ("--context", f"device={device}", "--context", "hour=13", "--exclude", "-k", 8, "--json")
        done = succeeded(crossfade_here("recommend", in_context, "--customer", "c8", *options))
        (found,) = json.loads(done.stdout)
        query = sum(
            written[name][rows[name][id]] for name, id in (("customer", "c8"), ("device", device), ("hour", 13))
        )
        track_ND = written["track"]
        scores = track_ND @ query / np.linalg.norm(track_ND, axis=1) / np.linalg.norm(query)
        ids = {row: id for id, row in rows["track"].items()}
        expected = [ids[row] for row in np.argsort(-scores, kind="stable")[:8]]
        assert [each["track"] for each in found["recommendations"]] == expected
        assert sum(track % GENRES == genre for track in expected) >= 6


def test_context_that_is_left_out_adds_its_average_over_train(workspace: Path, in_context: Path) -> None:
    """One event in twenty has no device, which adds nothing to the average."""
    written = vectors(in_context / "embeddings")
    tables = {name: vocabulary_tuples(workspace / "data", name) for name in TABLES}
    plays = sum(row[2] for row in tables["track"])
    average = {name: sum(row[2] * written[name][row[0]] for row in tables[name]) / plays for name in ("device", "hour")}
    row_of = {name: {row[1]: row[0] for row in tables[name]} for name in TABLES}
    for options, device in (
        ((), average["device"]),
        (("--context", "device=tv"), written["device"][row_of["device"]["tv"]]),
    ):
        done = succeeded(
            crossfade_here("recommend", in_context, "--customer", "c8", *options, "--exclude", "-k", 8, "--json")
        )
        query = written["customer"][row_of["customer"]["c8"]] + device + average["hour"]
        scores = written["track"] @ query / np.linalg.norm(written["track"], axis=1) / np.linalg.norm(query)
        found = json.loads(done.stdout)[0]["recommendations"]
        assert [each["score"] for each in found] == pytest.approx(np.sort(scores)[:-9:-1], abs=1e-5)


def test_served_and_new_customers_are_in_the_average_context(workspace: Path, in_context: Path) -> None:
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

    with_trained_model(ModelSource(source=str(in_context)), print, use)


def test_metrics_are_divided_by_context(in_context: Path) -> None:
    done = succeeded(crossfade_here("evaluate", in_context, "--segments", "device", "--k", 10, "--json"))
    results = json.loads(done.stdout)
    segments = results["segments"]
    # In the order of the vocabulary, the most frequent device first.
    assert sorted(list(segments)[:3]) == [f"device={device}" for device in DEVICES]
    assert list(segments)[3:] == ["no device", "all"]
    means = [segments[name] for name in segments if name != "all"]
    assert all(values["queries"] > 0 for values in means)
    assert segments["all"]["queries"] == sum(values["queries"] for values in means) == results["test"]["queries"]
    mean = sum(values["queries"] * values["ndcg@10"] for values in means) / segments["all"]["queries"]
    assert mean == pytest.approx(segments["all"]["ndcg@10"]) == pytest.approx(results["test"]["ndcg@10"])
    # Without a device, the genre is unknown.
    assert segments["device=tv"]["ndcg@10"] > 1.3 * segments["no device"]["ndcg@10"]
    printed = succeeded(crossfade_here("evaluate", in_context, "--segments", "device", "--k", 10)).stdout
    lines = printed.partition("\n\n")[2].splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["segment", "queries", "recall@10"]


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        ("device=boat: there is no device with the ID or name 'boat", ["--customer", "c8", "--context", "device=boat"]),
        ("has no context 'room", ["--customer", "c8", "--context", "room=18"]),
        (
            "device=car: is added to trained vectors, which histories do not",
            ["--history", "5", "--context", "device=car"],
        ),
    ],
)
def test_context_that_cannot_be_recommended_for_is_rejected(in_context: Path, cause: str, options: list[str]) -> None:
    rejected_here(cause, "recommend", in_context, *options)
