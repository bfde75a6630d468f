"""Rankings and metrics against a plain implementation that scores every item and sorts."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from builders import ITEM, QUERY, make_interactions, random_rows, write_data_set

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import EvaluateConfig, EvaluationTask
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.evaluation import exact_sums, ranking
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out
from crossfade.trainer.evaluation.ranking import EvalMetrics, evaluate
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.recommend import top_k

pytestmark = pytest.mark.numbers

QUERIES, ITEMS, DIM = 30, 50, 4
DEPTHS = [1, 3, 10, 45]
COUNTS_N = np.random.default_rng(9).integers(0, 1000, ITEMS)
"""Count of each item in train."""


class Vectors:
    """Vectors in memory."""

    def __init__(self, query_ND: FloatArray, item_ND: FloatArray) -> None:
        self.tables = {QUERY: query_ND, ITEM: item_ND}

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        return self.tables[entity][rows_N]

    def model(self, score: ScoreKind) -> ModelSpec:
        query, item = (TableSpec(name, *table.shape, 0.1) for name, table in self.tables.items())
        return ModelSpec(query, item, Score.of(score, temperature=0.25))


def vectors_with_ties() -> Vectors:
    """Return vectors whose scores are exact in float32 in any order of summation, and often equal."""
    rng = np.random.default_rng(3)
    signs_ND = rng.choice([-1.0, 1.0], size=(QUERIES + ITEMS, DIM)) * rng.choice([1.0, 2.0], size=(QUERIES + ITEMS, 1))
    return Vectors(*np.split(signs_ND.astype(np.float32), [QUERIES]))


def vectors_without_ties() -> Vectors:
    return Vectors(random_rows(QUERIES, DIM, seed=1), random_rows(ITEMS, DIM, seed=2))


SOURCES = {"ties": vectors_with_ties(), "no ties": vectors_without_ties()}


def plain_score(score: ScoreKind, query_D: FloatArray, item_D: FloatArray) -> float:
    query, item = query_D.astype(float), item_D.astype(float)
    if score == "euclidean":
        return -float(((query - item) ** 2).sum())
    lengths = math.sqrt(float(query @ query) * float(item @ item)) if score == "cosine" else 1.0
    return float(query @ item) / lengths


def plain_ranking(source: Vectors, score: ScoreKind, query: int, excluded: set[int]) -> list[int]:
    """Rank all items but the excluded ones, best first; of equal ones, the lower row is first."""
    query_D = source.tables[QUERY][query]
    scores = {
        item: round(plain_score(score, query_D, item_D), 9)
        for item, item_D in enumerate(source.tables[ITEM])
        if item not in excluded
    }
    return sorted(scores, key=lambda item: (-scores[item], item))


def plain_metrics(
    source: Vectors,
    score: ScoreKind,
    truth: Mapping[int, set[int]],
    excluded: Mapping[int, set[int]],
    depths: list[int],
) -> EvalMetrics:
    names = ("recall", "ndcg", "map", "mrr", "hit_rate")
    values: dict[str, list[float]] = {f"{name}@{k}": [] for k in depths for name in names}
    shown: dict[int, set[int]] = {k: set() for k in depths}
    popularity = dict.fromkeys(depths, 0.0)
    own_popularity = 0.0
    for query, held_out in truth.items():
        own_popularity += statistics.fmean(COUNTS_N[list(held_out)])
        ranking = plain_ranking(source, score, query, excluded.get(query, set()))
        for k in depths:
            ranks = [rank for rank, item in enumerate(ranking[:k], start=1) if item in held_out]
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(held_out)) + 1))
            precisions = [n / rank for n, rank in enumerate(ranks, start=1)]
            values[f"recall@{k}"].append(len(ranks) / len(held_out))
            values[f"ndcg@{k}"].append(sum(1 / math.log2(rank + 1) for rank in ranks) / ideal)
            values[f"map@{k}"].append(sum(precisions) / min(k, len(held_out)))
            values[f"mrr@{k}"].append(1 / ranks[0] if ranks else 0.0)
            values[f"hit_rate@{k}"].append(float(bool(ranks)))
            shown[k] |= set(ranking[:k])
            popularity[k] += statistics.fmean(COUNTS_N[ranking[:k]]) if ranking else 0.0
    means: EvalMetrics = {name: statistics.fmean(of_queries) for name, of_queries in values.items()}
    errors = {f"{name}_se": np.std(found, ddof=1) / math.sqrt(len(found)) for name, found in values.items()}
    for k in depths:
        means |= {f"coverage@{k}": len(shown[k]) / ITEMS, f"popularity@{k}": popularity[k] / own_popularity}
    ranked = {name: means[name] for k in depths for name in means if name.endswith(f"@{k}")}
    return {**ranked, "queries": len(truth), "pairs": sum(map(len, truth.values())), "pairs_dropped": 0, **errors}


Pairs = list[tuple[int, int, float]]


def random_pairs(seed: int, count: int, queries: list[int]) -> Pairs:
    """Query, item and weight: some pairs twice, some of weight zero or less."""
    rng = np.random.default_rng(seed)
    rows = zip(rng.choice(queries, count), rng.integers(0, ITEMS, count), rng.choice([0, 1, 2, -1], count), strict=True)
    return [(int(query), int(item), float(weight)) for query, item, weight in rows]


PAIRS: dict[str, Pairs] = {
    # Query 0 has interactions with nearly all items, so few are ranked; query 29 with none.
    "train": [*random_pairs(1, 500, list(range(QUERIES - 1))), *((0, item, 1.0) for item in range(4, ITEMS))],
    "valid": random_pairs(2, 150, list(range(0, QUERIES, 2))),
    "test": [*random_pairs(3, 150, list(range(0, QUERIES, 3))), (0, 2, 1.0), (29, 7, 1.0), (28, 5, 0.0)],
}


def by_query(*splits: str) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for query, item, weight in sorted(pair for split in splits for pair in PAIRS[split]):
        if weight > 0:
            found.setdefault(query, set()).add(item)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    splits = {}
    for name, pairs in PAIRS.items():
        halves = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        splits[name] = [[make_interactions(*zip(*half, strict=True)) for half in halves]]
    write_data_set(folder, splits, queries=QUERIES, items=ITEMS)
    return folder


def new_to(held_out: Mapping[int, set[int]], excluded: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Return the held-out items that are not excluded, of the queries that have some."""
    new = {query: items - excluded.get(query, set()) for query, items in held_out.items()}
    return {query: items for query, items in new.items() if items}


def held_out(
    data: Path,
    split: SplitName,
    exclude: list[SplitName],
    rank: int = 0,
    workers: int = 1,
    task: EvaluationTask = "new",
) -> HeldOut:
    manifest = read_manifest(Folder(data))
    spec = EvaluateConfig(task=task, exclude_splits=exclude)
    return load_held_out(LineageReader(Folder(data), manifest), split, spec, rank, workers)


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank items in blocks of 7, in tiles of 3, and queries in blocks of 4, of which four run at a time."""
    monkeypatch.setattr(top_k, "_ITEM_BLOCK", 7)
    monkeypatch.setattr(top_k, "_TILE_SCORES", 12)
    monkeypatch.setattr(top_k, "QUERY_BLOCK", 4)
    monkeypatch.setattr(ranking, "QUERY_BLOCK", 4)
    monkeypatch.setattr(ranking, "_MAX_RANKED", 16)


@pytest.mark.parametrize(
    ("split", "exclude", "excluded_splits", "score"),
    [
        *(("test", ["train", "valid"], ["train", "valid"], score) for score in get_args(ScoreKind)),
        ("valid", ["train", "valid"], ["train"], "dot"),  # never those of the split that is evaluated
        ("test", ["train"], ["train"], "cosine"),
        ("test", [], [], "euclidean"),
    ],
)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_metrics_match_formulas(
    data: Path,
    source: Vectors,
    score: ScoreKind,
    split: SplitName,
    exclude: list[SplitName],
    excluded_splits: list[SplitName],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_blocks(monkeypatch)
    spec = EvaluateConfig(k=[10, 1, 45, 3, 10], best_metric="ndcg@10")
    metrics = evaluate(source, source.model(score), held_out(data, split, exclude), spec, COUNTS_N, np.asarray)
    excluded = by_query(*excluded_splits)
    truth = new_to(by_query(split), excluded)
    expected = plain_metrics(source, score, truth, excluded, DEPTHS)
    expected["pairs_dropped"] = sum(map(len, by_query(split).values())) - expected["pairs"]
    # Some pairs and, where all splits are excluded, some queries are dropped, or this would test nothing.
    assert (expected["pairs_dropped"] > 0) is bool(excluded)
    assert list(metrics) == list(expected)
    assert metrics == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("workers", "cold"), [(3, False), (40, True)])
def test_metrics_do_not_depend_on_number_of_workers(
    data: Path, workers: int, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts_N = COLD_COUNTS_N if cold else COUNTS_N
    monkeypatch.setattr(exact_sums, "MAX_ALL_REDUCE_LENGTH", 7)
    source, spec = SOURCES["no ties"], EvaluateConfig(k=[10, 20])
    parts = [held_out(data, "test", ["train"], rank, workers) for rank in range(workers)]
    queries = np.sort(np.concatenate([part.queries_Q for part in parts]))
    assert queries.tolist() == sorted(new_to(by_query("test"), by_query("train")))
    # What a worker sums does not depend on the results, so workers can run one after the other.
    requests: list[list[FloatArray]] = [[] for _ in parts]
    for part, own in zip(parts, requests, strict=True):
        evaluate(
            source,
            source.model("dot"),
            part,
            spec,
            counts_N,
            lambda values_N, own=own: own.append(values_N) or values_N,
        )
    sums = iter([np.sum(values, axis=0) for values in zip(*requests, strict=True)])
    assert all(len(values_N) <= 7 for own in requests for values_N in own)
    together = evaluate(source, source.model("dot"), parts[0], spec, counts_N, lambda _: next(sums))
    assert next(sums, None) is None
    alone = evaluate(source, source.model("dot"), held_out(data, "test", ["train"]), spec, counts_N, np.asarray)
    assert together == alone
    assert ("recall_cold@10" in together) is cold


def test_vacant_rows_are_not_ranked() -> None:
    # The ranking of all is 0, 1, 2, 3, 4; rows 0 and 3 are vacant, and of the others 4 is cold.
    source = Vectors(np.ones((1, 1), np.float32), np.array([[5], [4], [3], [2], [1]], np.float32))
    held_out_data = HeldOut(np.array([0]), JaggedArray.of([[2, 4]]), JaggedArray.of([[1]]), item_I=np.array([1, 2, 4]))
    metrics = evaluate(
        source,
        source.model("dot"),
        held_out_data,
        EvaluateConfig(k=[1, 2], best_metric="ndcg@1"),
        np.array([0, 9, 3, 0, 0]),
        np.asarray,
    )
    assert (metrics["recall@1"], metrics["recall@2"], metrics["mrr@2"]) == (0.5, 1.0, 1.0)
    assert (metrics["coverage@1"], metrics["coverage@2"]) == pytest.approx((1 / 3, 2 / 3))
    assert metrics["recall_among_cold@1"] == 1.0


COLD_COUNTS_N = np.where(np.arange(ITEMS) % 4 == 1, 0, COUNTS_N + 1)
"""The same, with a quarter of the items in no interaction of train."""


@pytest.mark.parametrize("score", get_args(ScoreKind))
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_warm_and_cold_items_are_evaluated_separately(
    data: Path, source: Vectors, score: ScoreKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    held_out_data, model = held_out(data, "test", ["train", "valid"]), source.model(score)
    metrics = evaluate(
        source, model, held_out_data, EvaluateConfig(k=DEPTHS, best_metric="ndcg@10"), COLD_COUNTS_N, np.asarray
    )
    warm = {item for item in range(ITEMS) if COLD_COUNTS_N[item] > 0}
    cold = set(range(ITEMS)) - warm
    excluded = by_query("train", "valid")
    truth = new_to(by_query("test"), excluded)
    for kind, kind_items, excluded_splits in (("warm", warm, set()), ("cold", cold, set()), ("among_cold", cold, warm)):
        of_kind = {query: items & kind_items for query, items in truth.items() if items & kind_items}
        leaving = {query: excluded.get(query, set()) | excluded_splits for query in of_kind}
        expected = plain_metrics(source, score, of_kind, leaving, DEPTHS)
        for name in ("recall", "ndcg"):
            for k in DEPTHS:
                for error in ("", "_se"):
                    found, wanted = metrics[f"{name}_{kind}@{k}{error}"], expected[f"{name}@{k}{error}"]
                    assert found == pytest.approx(wanted), (name, kind, k)
        assert metrics["queries_cold" if kind == "among_cold" else f"queries_{kind}"] == len(of_kind) > 3
    same = evaluate(
        source, model, held_out_data, EvaluateConfig(k=DEPTHS, best_metric="ndcg@10"), COLD_COUNTS_N + 1, np.asarray
    )
    assert {name for name in metrics if name not in same} == {
        name for name in metrics if "warm" in name or "cold" in name
    }


def test_metrics_without_queries_are_zero() -> None:
    source = SOURCES["no ties"]
    none = HeldOut(np.empty(0, np.int64), JaggedArray.of([]), JaggedArray.of([]))
    metrics = evaluate(source, source.model("cosine"), none, EvaluateConfig(k=[10]), COUNTS_N, np.asarray)
    assert set(metrics.values()) == {0.0}
    assert len(metrics) == 10
