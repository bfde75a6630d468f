"""Training with histories, planted plays whose genre lasts for a while: in process, on servers, in all commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_data import write_job
from command_here import crossfade_here
from finished_runs import quality, same_bits, vectors
from preparing import vocabulary_tuples, write_parquet
from running_command import crossfade, succeeded

from crossfade import load
from crossfade.base.arrays import IntArray
from crossfade.deploy.capacity.plan import plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.trainer.config.loading import load_job

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


def test_resumed_run_gives_the_same_bits(workspace: Path, by_history: Path) -> None:
    train(workspace, "resumed", "--set", "train.max_steps=33")
    train(workspace, "resumed", "--resume")
    assert same_bits(workspace / "resumed" / "embeddings", by_history / "embeddings")


@pytest.mark.parametrize("table", ["shared", "own"])
def test_export_has_the_vectors_with_histories(workspace: Path, by_history: Path, table: str) -> None:
    run = by_history
    if table == "own":
        run = train(workspace, "own", "--set", "model.history.table=own", "--set", "evaluate.by=query")
        assert quality(run)["ndcg@10"] > 0
    succeeded(crossfade_here("export", run, "--out", workspace / f"exported-{table}"))
    assert same_bits(workspace / f"exported-{table}", run / "embeddings")


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


def test_new_customer_has_the_mean_of_the_last_plays(workspace: Path, tmp_path: Path) -> None:
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
    pq.write_table(_table(plays), tmp_path / "plays.parquet")
    out = tmp_path / "recs.parquet"
    succeeded(crossfade_here("recommend", run, "--history-file", tmp_path / "plays.parquet", "-k", 8, "--out", out))
    assert [row["track"] for row in pq.read_table(out).to_pylist()] == expected


def _table(plays: list[int]) -> Any:
    import pyarrow as pa

    return pa.table({"customer": ["new"] * len(plays), "track": plays})


def test_plan_counts_rows_that_histories_use(workspace: Path, by_history: Path) -> None:
    plan = plan_capacity(read_inputs(load_job(workspace / "job.yaml")).with_counts())
    steps = [json.loads(line) for line in (by_history / "events.jsonl").read_text().splitlines()]
    moved: list[dict[str, Any]] = [step["rows"] for step in steps if step["event"] == "step"]
    assert plan.traffic is not None
    expected = {table.table: table.rows[0] for table in plan.traffic.tables}
    for name in ("customer", "track"):
        assert expected[name] == pytest.approx(np.mean([rows[name] for rows in moved]), rel=0.1), name
    items = [item for process in plan.processes for item in process.parts if "latest history" in item.what]
    assert sum(item.bytes for item in items) > 0


@pytest.mark.cluster
def test_two_workers_on_servers_equal_one_process(workspace: Path, by_history: Path) -> None:
    words = ("train", workspace / "job.yaml", "--run-dir", workspace / "servers", "--servers", 2, "--workers", 2)
    succeeded(crossfade(*words, cwd=workspace))
    found, expected = vectors(workspace / "servers" / "embeddings"), vectors(by_history / "embeddings")
    assert found.keys() == expected.keys()
    for name, vectors_ND in expected.items():
        # AdaGrad's first steps divide a gradient by its own size, which amplifies rounding in gradients near 0.
        np.testing.assert_allclose(found[name], vectors_ND, atol=1e-3, err_msg=name)
    assert quality(workspace / "servers") == pytest.approx(quality(by_history), abs=0.02)
