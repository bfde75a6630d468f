"""Which queries are evaluated: samples are nested, and the same for any number of workers, with memory that follows."""

import math
from pathlib import Path

import numpy as np
import pytest
from builders import make_interactions, write_data_set
from preparing import prepare_files, write_parquet

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out
from crossfade.trainer.evaluation.paired_gain import GROUPS, GroupSums, exceeds_error
from crossfade.trainer.evaluation.sample import QuerySample, draw_sample

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
        truth, excluded = (of.take(np.array([place])).values_N.tolist() for of in (held_out.truth, held_out.excluded))
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


def rows(*columns: list[int]) -> IntArray:
    return np.array(columns, np.int64).T


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


def test_group_sums_do_not_depend_on_chunks_or_workers() -> None:
    ranked_QK = np.random.default_rng(2).integers(0, 10, (QUERIES, 3))
    truth = JaggedArray(np.arange(QUERIES + 1), np.full(QUERIES, 4))
    whole = HeldOut(np.arange(QUERIES), truth, JaggedArray.empty(QUERIES))
    together, workers = GroupSums("hit_rate@2"), [GroupSums("hit_rate@2") for _ in range(2)]
    together.observe(whole, ranked_QK)
    for number, chunk in enumerate(whole.chunks(70)):
        workers[number % 2].observe(chunk, ranked_QK[chunk.queries_Q])
    sums_G = together.of_all(np.asarray)
    assert sums_G.sum() == (ranked_QK[:, :2] == 4).any(axis=1).sum() > 10
    assert np.array_equal(sum(each.of_all(np.asarray) for each in workers), sums_G)
