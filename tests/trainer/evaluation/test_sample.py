"""Which queries are evaluated: samples are nested, and the same for any number of workers, with memory that follows."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import make_interactions, write_data_set
from cluster_data import CUSTOMERS, write_job, write_planted
from command_here import crossfade_here, rejected_here
from preparing import prepare_files, write_parquet
from run_results import report_of
from running_command import succeeded

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.evaluation.baselines import _Baselines
from crossfade.trainer.evaluation.held_out import HeldOut, _draw_sample, _read_events, load_held_out
from crossfade.trainer.evaluation.paired_gain import GROUPS, GroupSums, exceeds_error
from crossfade.trainer.evaluation.sample import QuerySample, draw_sample
from crossfade.trainer.recommend.item_lists import ItemLists
from crossfade.trainer.runs.run_folder import RunFolder

QUERIES, ITEMS = 400, 50
PER_QUERY = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in which each query has five items in each of train and test, in parts in no order."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(1)
    item_QN = np.array([draw.permutation(ITEMS)[: 2 * PER_QUERY] for _ in range(QUERIES)])
    splits = {}
    for name, of_split_QN in (("train", item_QN[:, :PER_QUERY]), ("test", item_QN[:, PER_QUERY:])):
        pairs = [(query, int(item), 1.0) for query, items in enumerate(of_split_QN) for item in items]
        pairs = [pairs[place] for place in draw.permutation(len(pairs))]
        parts = [pairs[start : start + 500] for start in range(0, len(pairs), 500)]
        splits[name] = [[make_interactions(*zip(*part, strict=True)) for part in parts]]
    write_data_set(folder, splits, queries=QUERIES, items=ITEMS)
    return folder


def load(data: Path, queries: int | None, rank: int = 0, workers: int = 1, by: str = "query") -> HeldOut:
    spec = EvaluateConfig.model_validate({"by": by})
    lineage = LineageReader(Folder(data), read_manifest(Folder(data)))
    return load_held_out(lineage, "test", spec, rank, workers, queries=queries)


def lists(held_out: HeldOut) -> dict[int, tuple[list[int], list[int]]]:
    found = {}
    for place, query in enumerate(held_out.queries_Q):
        truth, excluded = (of.slice(place, place + 1).items_N.tolist() for of in (held_out.truth, held_out.excluded))
        found[int(query)] = truth, excluded
    return found


@pytest.mark.slow
def test_smaller_sample_is_part_of_a_larger_one(data: Path) -> None:
    everything = load(data, None)
    samples = {size: load(data, size) for size in (40, 160, QUERIES, 10 * QUERIES)}
    assert [(size, len(found.queries_Q), found.sampled_from) for size, found in samples.items()] == [
        *((size, size, QUERIES) for size in (40, 160)),
        *((size, QUERIES, None) for size in (QUERIES, 10 * QUERIES)),
    ]
    small, large, *complete = (lists(found) for found in samples.values())
    assert small.items() < large.items() < lists(everything).items()
    assert complete == [lists(everything)] * 2
    # It is drawn from all, not from the first.
    assert max(small) > QUERIES * 0.9
    assert min(small) < QUERIES * 0.1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_divide_the_sample(data: Path, workers: int) -> None:
    parts = [lists(load(data, 100, rank, workers)) for rank in range(workers)]
    assert {query: found for part in parts for query, found in part.items()} == lists(load(data, 100))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow
def test_query_in_a_context_is_drawn_by_itself(tmp_path: Path) -> None:
    """Ten customers have an event on each of 20 devices: a sample has some of each customer, and not all of any."""
    columns = {
        "customer": [f"c{place % 10}" for place in range(200)],
        "item": [place % 7 for place in range(200)],
        "device": [f"d{place // 10}" for place in range(200)],
    }
    heard = {"customer": columns["customer"][:20], "item": [7] * 20, "device": [f"d{place}" for place in range(20)]}
    train, test = (write_parquet(tmp_path / f"{n}.parquet", **c) for n, c in (("train", heard), ("test", columns)))
    prepare_files(tmp_path / "out", train, test=[test], context={"device": "device"}, item="item")
    found, everything = load(tmp_path / "out", 60), load(tmp_path / "out", None)
    assert (len(found.queries_Q), found.sampled_from, everything.sampled_from) == (60, 200, None)
    pairs, of_all = (
        set(zip(part.queries_Q.tolist(), part.context["device"].tolist(), strict=True)) for part in (found, everything)
    )
    assert pairs < of_all
    counts = np.unique(found.queries_Q, return_counts=True)[1]
    assert len(counts) == 10
    assert counts.max() < 20


@pytest.mark.slow
def test_pairs_in_memory_follow_the_sample(data: Path) -> None:
    """Both held-out and excluded pairs are those of the sampled queries, before workers take their part."""
    found = load(data, 10)
    assert (len(found.queries_Q), len(found.truth.items_N), len(found.excluded.items_N)) == (10, 50, 50)
    lineage = LineageReader(Folder(data), read_manifest(Folder(data)))
    sample = _draw_sample(lineage, "test", 10, by_moment=False)
    assert sum(map(len, _read_events(lineage, "test", sample, by_moment=False))) == 50


def rows(*columns: list[int]) -> IntArray:
    return np.array(columns, np.int64).T


def test_sample_does_not_depend_on_parts_or_repetition() -> None:
    numbers = list(range(1000))
    sample = draw_sample([rows(numbers, numbers)], 100)
    assert sample is not None
    assert sample == draw_sample([rows(numbers[500:] * 2, numbers[500:] * 2), rows(numbers, numbers)], 100)
    within_N = sample.contains(rows(numbers, numbers))
    assert (int(within_N.sum()), sample.queries) == (100, 1000)
    assert draw_sample([rows(numbers, numbers)], 1000) is None
    # Another column of the same rows is another query.
    assert (sample.contains(rows(numbers, numbers[::-1])) != within_N).any()


def test_first_queries_of_the_order_stay_the_same() -> None:
    """Runs of this version and later ones are compared on the same queries."""
    sample = draw_sample([rows(list(range(1000)), [0] * 1000)], 5)
    assert isinstance(sample, QuerySample)
    assert np.flatnonzero(sample.contains(rows(list(range(1000)), [0] * 1000))).tolist() == [320, 392, 439, 673, 998]


def test_group_sums_give_the_error_of_the_paired_difference() -> None:
    """With 20,000 queries, a gain a little above the paired error counts, and one a little below it does not."""
    draw = np.random.default_rng(1)
    queries = 20_000
    value_Q, noise_Q = draw.random(queries), draw.normal(0, 0.1, queries)
    group_Q = draw.integers(0, GROUPS, queries)
    noise_Q -= noise_Q.mean()
    error = noise_Q.std(ddof=1) / math.sqrt(queries)
    assert error < value_Q.std() / math.sqrt(queries) / 2

    def sums(of_Q: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(group_Q, of_Q, GROUPS))

    for factor, expected in ((0.0, False), (0.8, False), (1.2, True), (-1.2, False)):
        assert exceeds_error(sums(value_Q + noise_Q + factor * error), sums(value_Q)) is expected


def test_any_rise_of_a_single_query_is_a_gain() -> None:
    """The sum of its differences equals their error, so that rounding would decide."""
    sums = [np.where(np.arange(GROUPS) == 7, value, 0.0) for value in np.random.default_rng(1).random(200).cumsum()]
    assert all(exceeds_error(later, earlier) for earlier, later in pairwise(sums))
    assert not any(exceeds_error(earlier, later) for earlier, later in pairwise(sums))
    assert not exceeds_error(sums[0], sums[0])


@pytest.mark.slow
def test_run_and_command_evaluate_samples_and_baselines_on_the_same(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), evaluate={"max_queries": 20, "final": 50})
    succeeded(crossfade_here("train", job, "--run-dir", "run", cwd=tmp_path))
    report = report_of(tmp_path / "run")
    options = ("--max-queries", 10, "--json")
    again = json.loads(succeeded(crossfade_here("evaluate", "run", *options, cwd=tmp_path)).stdout)
    lineage = LineageReader(Folder(tmp_path / "data"), read_manifest(Folder(tmp_path / "data")))
    baselines = _Baselines(lineage, RunFolder(tmp_path / "run").job().evaluate)
    for split, queries, metrics, found in (
        ("valid", 20, report["metrics"]["valid"], report["baselines"]),
        ("test", 50, report["metrics"]["test"], report["baselines"]),
        ("test", 10, again["test"], again["baselines"]),
    ):
        assert (metrics["queries"], metrics["queries_in_split"]) == (queries, CUSTOMERS)
        assert found["metrics"][split] == baselines.evaluate(split, queries)["metrics"], (split, queries)


def test_sample_of_no_queries_is_rejected(tmp_path: Path) -> None:
    rejected_here(
        "0: expected a number of queries from 1, auto, or all", "evaluate", "run", "--max-queries", 0, cwd=tmp_path
    )


def test_group_sums_do_not_depend_on_chunks_or_workers() -> None:
    ranked_QK = np.random.default_rng(2).integers(0, 10, (QUERIES, 3))
    truth = ItemLists(np.arange(QUERIES + 1), np.full(QUERIES, 4))
    whole = HeldOut(np.arange(QUERIES), truth, ItemLists(np.zeros(QUERIES + 1, np.int64), np.empty(0, np.int64)))
    together, workers = GroupSums("hit_rate@2"), [GroupSums("hit_rate@2") for _ in range(2)]
    together.observe(whole, ranked_QK)
    for number, chunk in enumerate(whole.chunks(70)):
        workers[number % 2].observe(chunk, ranked_QK[chunk.queries_Q])
    sums_G = together.of_all(np.asarray)
    assert sums_G.sum() == (ranked_QK[:, :2] == 4).any(axis=1).sum() > 10
    assert np.array_equal(sum(each.of_all(np.asarray) for each in workers), sums_G)
