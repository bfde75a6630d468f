"""The comparison of two runs: values per query, the test and the interval against plain ones, and the command."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ITEM, QUERY, random_rows
from cluster_data import CUSTOMERS, TRACKS, planted_splits, write_data, write_job, write_planted, write_vocabulary
from command_here import crossfade_here, rejected_here
from running_command import succeeded

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.evaluation.comparison import (
    MAX_UNITS,
    QueryMetrics,
    compare,
    confidence_interval,
    holm,
    permutation_test,
)
from crossfade.trainer.evaluation.held_out import HeldOut
from crossfade.trainer.evaluation.ranking import evaluate
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.recommend.item_lists import ItemLists

pytestmark = pytest.mark.slow

QUERIES, ITEMS = 2_500, 60
"""Queries of more than two blocks of sums."""


class Vectors:
    """Vectors in memory."""

    def __init__(self) -> None:
        self.tables = {QUERY: random_rows(QUERIES, 4, 1), ITEM: random_rows(ITEMS, 4, 2)}

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        return self.tables[entity][rows_N]


def random_lists(seed: int) -> ItemLists:
    """Return one to five items of each query."""
    draw = np.random.default_rng(seed)
    lists = [np.sort(draw.choice(ITEMS, draw.integers(1, 6), replace=False)) for _ in range(QUERIES)]
    return ItemLists(np.cumsum([0, *map(len, lists)]), np.concatenate(lists))


def test_values_of_queries_are_those_of_a_plain_implementation() -> None:
    source, truth, nothing = (
        Vectors(),
        random_lists(5),
        ItemLists(np.zeros(QUERIES + 1, np.int64), np.empty(0, np.int64)),
    )
    model = ModelSpec(TableSpec(QUERY, QUERIES, 4, 0.1), TableSpec(ITEM, ITEMS, 4, 0.1), Score.of("dot", 1.0))
    observer, spec = QueryMetrics([10, 3, 10]), EvaluateConfig(k=[3, 10])
    held_out = HeldOut(np.arange(QUERIES), truth, nothing)
    metrics = evaluate(source, model, held_out, spec, np.ones(ITEMS, np.int64), np.asarray, [observer])
    values = observer.values()
    assert list(values) == ["recall@3", "recall@10", "ndcg@3", "ndcg@10"]
    assert observer.queries().tolist() == list(range(QUERIES))
    for name, value_Q in values.items():
        assert value_Q.mean() == pytest.approx(metrics[name])
    for query in (0, 7, 2_400):
        score_I = source.tables[ITEM].astype(float) @ source.tables[QUERY][query].astype(float)
        shown = np.argsort(-score_I)[:10].tolist()
        items = truth.items_N[truth.starts_Q1[query] : truth.starts_Q1[query + 1]].tolist()
        gains = [1 / np.log2(rank + 1) for rank, item in enumerate(shown, 1) if item in items]
        ideal = sum(1 / np.log2(rank + 1) for rank in range(1, len(items) + 1))
        assert values["recall@10"][query] == pytest.approx(len(gains) / len(items))
        assert values["ndcg@10"][query] == pytest.approx(sum(gains) / ideal)


@pytest.mark.parametrize(("size", "zeros"), [(2, 4), (3, 0), (7, 4), (11, 0)])
def test_p_of_few_differences_counts_all_permutations(size: int, zeros: int) -> None:
    difference_N = np.random.default_rng(size).normal(0.4, 0.5, size)
    signs = np.array(list(itertools.product([-1, 1], repeat=size)))
    means = np.abs(signs @ difference_N)
    expected = (means >= abs(difference_N.sum()) - 1e-12).mean()
    assert permutation_test(np.append(difference_N, np.zeros(zeros))) == pytest.approx(expected)
    assert permutation_test(-difference_N) == pytest.approx(expected)


@pytest.mark.parametrize(("size", "effect"), [(400, 0.0), (400, 3.0), (3 * MAX_UNITS, 2.0)])
def test_p_and_interval_of_many_differences_are_close_to_those_of_the_t_test(size: int, effect: float) -> None:
    from scipy import stats  # type: ignore[import-untyped]  # it takes a second

    difference_N = np.random.default_rng(8).choice([-0.5, -0.1, 0.2, 0.4], size)
    error = difference_N.std(ddof=1) / np.sqrt(size)
    difference_N += effect * error - difference_N.mean()
    expected = stats.ttest_1samp(difference_N, 0.0)
    assert permutation_test(difference_N) == pytest.approx(expected.pvalue, abs=0.02)
    low, high = confidence_interval(difference_N)
    assert [low, high] == pytest.approx([*expected.confidence_interval()], abs=0.15 * error)


def test_p_is_below_a_threshold_as_often_as_the_threshold_without_a_difference() -> None:
    draw = np.random.default_rng(6)
    p_values = [permutation_test(draw.exponential(1.0, 8) - draw.exponential(1.0, 8)) for _ in range(400)]
    for threshold in (0.05, 0.2, 0.5):
        standard_error = np.sqrt(threshold * (1 - threshold) / len(p_values))
        assert np.mean(np.array(p_values) <= threshold) == pytest.approx(threshold, abs=3 * standard_error)


def test_holm_correction_matches_a_case_worked_by_hand() -> None:
    # Sorted: 0.005·4, 0.01·3, 0.03·2, and 0.04·1, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one run well, one too briefly, and one with another seed."""
    folder = tmp_path_factory.mktemp("comparison")
    job = write_job(folder / "job.yaml", write_planted(folder / "data"), train={"epochs": 6})
    for run, *options in (("good",), ("brief", "train.max_steps=4"), ("other", "train.seed=2")):
        overrides = [word for option in options for word in ("--set", option)]
        succeeded(crossfade_here("train", job, "--run-dir", run, *overrides, cwd=folder))
    return folder


def comparison(workspace: Path, run: str, other: str, *options: object) -> dict[str, Any]:
    result = succeeded(crossfade_here("evaluate", run, "--compare", other, *options, "--json", cwd=workspace))
    found: dict[str, Any] = json.loads(result.stdout)["comparison"]
    return found


def test_better_run_is_found_better(workspace: Path) -> None:
    found = comparison(workspace, "good", "brief")
    assert (found["other"], found["queries"]) == ("brief", CUSTOMERS)
    means = {
        run: json.loads(succeeded(crossfade_here("evaluate", run, "--json", cwd=workspace)).stdout)["test"]
        for run in ("good", "brief")
    }
    assert list(found["metrics"]) == ["recall@5", "recall@10", "ndcg@5", "ndcg@10"]
    for name, metric in found["metrics"].items():
        assert metric["run"] == pytest.approx(means["good"][name])
        assert metric["other"] == pytest.approx(means["brief"][name])
        assert metric["difference"] == pytest.approx(metric["run"] - metric["other"])
        assert 0 < metric["low"] < metric["difference"] < metric["high"]
        assert metric["p"] <= metric["p_holm"] < 0.01
        assert metric["better"] > 2 * metric["worse"]
        assert metric["better"] + metric["worse"] + metric["equal"] == CUSTOMERS


def test_exchanged_runs_have_the_opposite_difference(workspace: Path) -> None:
    there, back = (
        comparison(workspace, *pair, "--k", 10)["metrics"] for pair in (("good", "other"), ("other", "good"))
    )
    for name in ("recall@10", "ndcg@10"):
        assert there[name]["difference"] == -back[name]["difference"]
        assert (there[name]["better"], there[name]["worse"]) == (back[name]["worse"], back[name]["better"])
        assert there[name]["p"] == pytest.approx(back[name]["p"], abs=0.02)
        assert there[name]["worse"] > 0


def test_text_shows_the_comparison_below_the_metrics(workspace: Path) -> None:
    found = comparison(workspace, "good", "brief", "--split", "valid")
    printed = succeeded(
        crossfade_here("evaluate", "good", "--compare", "brief", "--split", "valid", cwd=workspace)
    ).stdout
    title, head, *lines = printed.partition("\n\n")[2].splitlines()
    assert title == f"good less brief, over the same {CUSTOMERS} queries"
    assert head.split() == ["run", "other", "difference", "95%", "interval", "p", "(Holm)", "better", "worse", "equal"]
    for line, (name, metric) in zip(lines, found["metrics"].items(), strict=True):
        values = [metric["run"], metric["other"]]
        signed = [metric["difference"], metric["low"], metric["high"]]
        cells = [name, *(f"{value:.4f}" for value in values), *(f"{value:+.4f}" for value in signed)]
        cells += [f"{metric['p_holm']:.4f}", *(str(metric[key]) for key in ("better", "worse", "equal"))]
        assert line.replace(" to ", " ").split() == cells


def move_run(run: Path, to: Path, data: Path) -> None:
    """Copy a run, as if it had been trained on ``data``."""
    shutil.copytree(run, to)
    job = (to / "job.yaml").read_text()
    assert str(run.parent / "data") in job
    (to / "job.yaml").write_text(job.replace(str(run.parent / "data"), str(data)))


def test_run_of_another_dataset_is_rejected_and_of_a_copy_is_not(workspace: Path, tmp_path: Path) -> None:
    move_run(workspace / "good", tmp_path / "moved", write_planted(tmp_path / "data", tracks=TRACKS + 1))
    cause = "another dataset or version of it than"
    message = rejected_here(cause, "evaluate", workspace / "good", "--compare", tmp_path / "moved", cwd=tmp_path)
    assert f"--compare {tmp_path / 'moved'}: was trained on {tmp_path / 'data'}" in message
    shutil.copytree(workspace / "data", tmp_path / "copy")
    move_run(workspace / "brief", tmp_path / "of_copy", tmp_path / "copy")
    copied, original = (
        comparison(tmp_path, workspace / "good", run) for run in (tmp_path / "of_copy", workspace / "brief")
    )
    assert copied["metrics"] == original["metrics"]
    move_run(workspace / "brief", tmp_path / "of_lost", tmp_path / "lost")
    given = comparison(tmp_path, workspace / "good", tmp_path / "of_lost", "--data", tmp_path / "copy")
    assert given["metrics"] == original["metrics"]


@pytest.mark.parametrize("change", ["rows", "ids"])
def test_dataset_that_was_replaced_is_rejected(workspace: Path, tmp_path: Path, change: str) -> None:
    if change == "rows":
        write_planted(tmp_path / "data", tracks=TRACKS + 1)
    else:
        entities = {
            "customer": write_vocabulary(tmp_path / "data", "customer", [f"c{row:03d}" for row in range(CUSTOMERS)]),
            "track": write_vocabulary(tmp_path / "data", "track", [6000 + row for row in range(TRACKS)]),
        }
        splits = {name: (pairs, [[len(pairs[0])]]) for name, pairs in planted_splits().items()}
        write_data(tmp_path / "data", entities, splits)
    for run in ("good", "brief"):
        move_run(workspace / run, tmp_path / run, tmp_path / "data")
    cause = "which was prepared again since"
    message = rejected_here(cause, "evaluate", "good", "--compare", "brief", cwd=tmp_path)
    assert "has other rows of 'track'" in message


def test_runs_are_compared_on_the_same_queries() -> None:
    found, other = QueryMetrics([3]), QueryMetrics([3])
    for metrics, queries_Q in ((found, np.array([1, 2])), (other, np.array([1, 3]))):
        truth = ItemLists(np.array([0, 1, 2]), np.array([0, 1]))
        metrics.observe(HeldOut(queries_Q, truth, truth), np.array([[0, 1, 2], [0, 1, 2]]))
    with pytest.raises(AssertionError):
        compare(found, other)
