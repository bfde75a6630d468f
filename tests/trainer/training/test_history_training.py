"""Training with histories, planted plays whose genre lasts for a while, in all commands.

``test_all_towers.py`` resumes, plans, and trains on servers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import write_job
from command_here import crossfade_here
from finished_runs import quality, vectors
from preparing import vocabulary_tuples, write_parquet
from running_command import succeeded

from crossfade import load
from crossfade.base.arrays import IntArray

pytestmark = pytest.mark.slow

CUSTOMERS, TRACKS, GENRES, PLAYS, LENGTH = 240, 100, 5, 24, 4
CHECKPOINT = {"interval_steps": 20, "interval_seconds": None}


def write_plays(path: Path) -> None:
    """Write plays in order of time, of one genre until the customer turns to another; track t has genre t mod 5."""
    random = np.random.default_rng(3)
    turns = random.random((CUSTOMERS, PLAYS)) < 0.15
    genres = (np.cumsum(turns, axis=1) * 2 + random.integers(GENRES, size=(CUSTOMERS, 1))) % GENRES
    write_parquet(
        path,
        customer=[f"c{row}" for row in np.repeat(np.arange(CUSTOMERS), PLAYS)],
        track=random.integers(TRACKS // GENRES, size=genres.size) * GENRES + genres.ravel(),
        at=np.tile(np.arange(PLAYS), CUSTOMERS) * 100 + random.integers(100, size=genres.size),
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the plays, split by time, and a job whose queries are customers and their last plays."""
    folder = tmp_path_factory.mktemp("history")
    write_plays(folder / "plays.parquet")
    events = ("--events", folder / "plays.parquet", "--item", "track", "--timestamp", "at")
    hold_outs = ("--hold-out-test", "after:2100", "--hold-out-valid", "none")
    succeeded(crossfade_here("prepare", *events, *hold_outs, "--out", folder / "data"))
    model = {"dim": 16, "query_features": ["customer", "history"], "history": {"length": LENGTH, "half_life": 2}}
    train = {"batch_size": 256, "epochs": 8}
    evaluate = {"by": "moment", "task": "repeat"}
    write_job(folder / "job.yaml", folder / "data", model=model, train=train, evaluate=evaluate, checkpoint=CHECKPOINT)
    return folder


def train(workspace: Path, run: str, *options: object) -> Path:
    words = (workspace / "job.yaml", "--run-dir", workspace / run, "--set", "metrics.port=null", *options)
    succeeded(crossfade_here("train", *words))
    return workspace / run


@pytest.fixture(scope="module")
def by_history(workspace: Path) -> Path:
    """Train with histories."""
    return train(workspace, "by-history")


@pytest.fixture(scope="module")
def plain(workspace: Path) -> Path:
    """Train without histories on the same dataset."""
    return train(workspace, "plain", "--set", "model.query_features=[customer]")


def test_history_ranks_far_better_on_the_same_queries(workspace: Path, by_history: Path, plain: Path) -> None:
    found, without = quality(by_history), quality(plain)
    assert [found[name] for name in ("queries", "pairs")] == [without[name] for name in ("queries", "pairs")]
    assert found["queries"] > CUSTOMERS  # a customer is a query at each moment
    assert found["ndcg@10"] > 1.3 * without["ndcg@10"]
    compared = json.loads(succeeded(crossfade_here("evaluate", by_history, "--compare", plain, "--json")).stdout)
    assert compared["test"] == pytest.approx(found)
    assert compared["comparison"]["metrics"]["ndcg@10"]["p_holm"] < 0.01
    # The latest history of train is older than that at the moment of most held-out plays.
    by_query = json.loads(succeeded(crossfade_here("evaluate", by_history, "--by", "query", "--json")).stdout)
    assert by_query["test"]["queries"] == CUSTOMERS
    assert by_query["baselines"] != compared["baselines"]


def rows_of_tracks(workspace: Path) -> dict[Any, int]:
    return {row[1]: row[0] for row in vocabulary_tuples(workspace / "data", "track")}


def recommended(run: Path, *options: object) -> list[int]:
    done = succeeded(crossfade_here("recommend", run, *options, "-k", 8, "--json"))
    return [each["track"] for each in json.loads(done.stdout)[0]["recommendations"]]


def best(track_ND: Any, query_D: Any, rows: dict[Any, int], known: IntArray) -> list[int]:
    """Return the eight tracks nearest to a vector by cosine, without those at ``known``."""
    scores_N = track_ND @ query_D / np.linalg.norm(track_ND, axis=1)
    scores_N[known] = -np.inf
    ids = {row: id for id, row in rows.items()}
    return [ids[int(row)] for row in np.argsort(-scores_N, kind="stable")[:8]]


def test_new_customer_has_the_mean_of_the_last_plays(workspace: Path) -> None:
    """Without an embedding of customers, a history is all that a vector needs; the planted genre leads the ranking."""
    run = train(workspace, "histories-alone", "--set", "model.query_features=[history]")
    rows, track_ND = rows_of_tracks(workspace), vectors(run / "embeddings")["track"]
    plays = [7, 12, 3, 8, 13, 18]  # the last four are of genre 3
    weight_N = 0.5 ** (np.arange(LENGTH)[::-1] / 2)
    query_D = weight_N @ track_ND[[rows[track] for track in plays[-LENGTH:]]]
    expected = best(track_ND, query_D, rows, np.array([rows[track] for track in plays]))
    assert recommended(run, "--history", *plays) == expected
    assert sum(track % GENRES == 3 for track in expected) >= 7
    from_python = load(run).recommend(history=[str(play) for play in plays], k=8)
    assert list(from_python["track"]) == expected
