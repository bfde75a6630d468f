"""Segments, diversity, novelty and the Gini index against plain implementations over pairs and sets."""

import itertools
import math
import statistics
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from builders import ITEM, QUERY, make_interactions, random_rows, write_data_set, write_vocabulary
from written_runs import ArrayVectors

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest, Entity
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.evaluation import beyond_accuracy, held_out, ranking
from crossfade.trainer.evaluation.beyond_accuracy import SegmentMetrics, gini_index
from crossfade.trainer.evaluation.held_out import HeldOut, count_owners
from crossfade.trainer.evaluation.list_metrics import list_diversity
from crossfade.trainer.evaluation.ranking import evaluate
from crossfade.trainer.evaluation.segments import (
    ActivitySegments,
    ContextSegments,
    parse_segments,
)
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.recommend import top_k

QUERIES, ITEMS, DIM, DEPTHS = 40, 30, 5, [1, 4, 10]
VACANT = [3, 17]
TRUTH = [sorted({(query * 7) % ITEMS, (query * 5 + 1) % ITEMS} - set(VACANT)) or [0] for query in range(QUERIES)]
EXCLUDED = [
    [item for item in range(ITEMS) if (query + item) % 6 == 0 and item not in TRUTH[query]] for query in range(QUERIES)
]
# Queries 0 and 1 have one and three items left to rank.
EXCLUDED[0] = [item for item in range(ITEMS) if item != TRUTH[0][0]]
EXCLUDED[1] = [item for item in range(ITEMS) if item not in {*TRUTH[1], 5}]
COUNTS_R = np.arange(QUERIES) % 8
BITS_I = np.random.default_rng(4).random(ITEMS)
TABLES = {QUERY: random_rows(QUERIES, DIM, 1), ITEM: random_rows(ITEMS, DIM, 2)}
TABLES[ITEM][2] = 0.0
SOURCE = ArrayVectors(TABLES)
MODEL = ModelSpec(TableSpec(QUERY, QUERIES, DIM, 0.1), TableSpec(ITEM, ITEMS, DIM, 0.1), Score.of("dot", 1.0))


def plain_rankings() -> list[list[int]]:
    rankings = []
    for query in range(QUERIES):
        score_I = TABLES[ITEM].astype(float) @ TABLES[QUERY][query].astype(float)
        items = set(range(ITEMS)) - set(EXCLUDED[query]) - set(VACANT)
        rankings.append(sorted(items, key=lambda item: (-score_I[item], item)))
    return rankings


def plain_values(rankings: list[list[int]], queries: list[int]) -> dict[str, float | int | None]:
    """Compute the metrics of ``queries`` one pair and one item at a time."""
    values: dict[str, float | int | None] = {"queries": len(queries)}
    for k in DEPTHS:
        found: dict[str, list[float]] = {"recall": [], "ndcg": [], "diversity": [], "novelty": []}
        for query in queries:
            shown, truth = rankings[query][:k], TRUTH[query]
            gains = [1 / math.log2(rank + 1) for rank, item in enumerate(shown, 1) if item in truth]
            found["recall"].append(len(gains) / len(truth))
            found["ndcg"].append(sum(gains) / sum(1 / math.log2(r + 1) for r in range(1, min(k, len(truth)) + 1)))
            distances = [1 - cosine(*pair) for pair in itertools.combinations(shown, 2)]
            if distances:
                found["diversity"].append(sum(distances) / len(distances))
            found["novelty"].append(sum(BITS_I[item] for item in shown) / len(shown))
        values |= {f"{name}@{k}": sum(each) / len(each) if each else None for name, each in found.items()}
        several = {name: each for name, each in found.items() if len(each) > 1}
        values |= {f"{name}@{k}_se": statistics.stdev(each) / len(each) ** 0.5 for name, each in several.items()}
    return values


def cosine(first: int, second: int) -> float:
    one_D, other_D = TABLES[ITEM][first].astype(float), TABLES[ITEM][second].astype(float)
    lengths = math.sqrt(float(one_D @ one_D) * float(other_D @ other_D))
    return float(one_D @ other_D) / lengths if lengths else 0.0


def plain_gini(counts: list[int]) -> float:
    """Return the mean absolute difference of two counts, relative to twice their mean, with n - 1 in place of n."""
    differences = sum(abs(one - other) for one in counts for other in counts)
    return differences / (2 * (len(counts) - 1) * sum(counts))


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["one block", "small blocks"])
def test_metrics_of_segments_match_plain_implementation(blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks == "small blocks":  # two queries of vectors at a time, and rankings of four
        monkeypatch.setattr(beyond_accuracy, "_MAX_VECTOR_VALUES", 2 * DIM * DEPTHS[-1])
        monkeypatch.setattr(top_k, "QUERY_BLOCK", 4)
        monkeypatch.setattr(ranking, "QUERY_BLOCK", 4)
        monkeypatch.setattr(ranking, "_MAX_RANKED", 16)
    segments = ActivitySegments.from_bounds([4, 7], COUNTS_R)
    observer = SegmentMetrics(SOURCE, MODEL, segments, BITS_I, DEPTHS, np.array(VACANT))
    item_I = np.delete(np.arange(ITEMS), VACANT)
    held_out_data = HeldOut(np.arange(QUERIES), JaggedArray.of(TRUTH), JaggedArray.of(EXCLUDED), item_I=item_I)
    spec = EvaluateConfig(k=DEPTHS, best_metric="ndcg@4")
    metrics = evaluate(SOURCE, MODEL, held_out_data, spec, np.ones(ITEMS, np.int64), np.asarray, [observer])

    found, rankings = observer.metrics(), plain_rankings()
    assert {len(rankings[0]), len(rankings[1])} == {1, 3}
    members = {
        "new": [query for query in range(QUERIES) if COUNTS_R[query] == 0],
        "from 1": [query for query in range(QUERIES) if 1 <= COUNTS_R[query] < 4],
        "from 4": [query for query in range(QUERIES) if 4 <= COUNTS_R[query] < 7],
        "from 7": [query for query in range(QUERIES) if COUNTS_R[query] >= 7],
    }
    assert list(found) == [*members, "all"]
    limits = [(found[name]["min_interactions"], found[name]["max_interactions"]) for name in members]
    assert limits == [(0, 0), (1, 3), (4, 6), (7, None)]
    for name, queries in {**members, "all": list(range(QUERIES))}.items():
        for key, value in plain_values(rankings, queries).items():
            assert found[name][key] == (None if value is None else pytest.approx(value, abs=1e-6)), (name, key)
    for k in DEPTHS:
        shown = [item for one in rankings for item in one[:k]]
        exposure = [shown.count(item) for item in range(ITEMS) if item not in VACANT]
        assert found["all"][f"gini@{k}"] == pytest.approx(plain_gini(exposure))
        assert found["all"][f"recall@{k}"] == pytest.approx(metrics[f"recall@{k}"])


def test_rankings_without_an_item_have_no_diversity() -> None:
    found_QJ = list_diversity(np.full((2, 3), -1), np.zeros((0, 4), np.float32), [2, 3])
    assert found_QJ.shape == (2, 2)
    assert np.isnan(found_QJ).all()


def test_gini_index_is_0_for_equal_exposure_and_1_for_a_single_item() -> None:
    assert gini_index(np.array([5, 5, 5, 5])) == 0.0
    assert gini_index(np.array([0, 0, 9, 0])) == 1.0
    assert gini_index(np.array([0, 0, 0])) == gini_index(np.array([4])) == 0.0
    assert gini_index(np.array([1, 2, 0, 7])) == pytest.approx(plain_gini([1, 2, 0, 7]))


def test_terciles_are_thirds_and_equal_counts_stay_together() -> None:
    of_counts = ActivitySegments.from_terciles
    segments = of_counts(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]))
    assert segments.names == ("new", "casual", "regular", "heavy")
    nothing = JaggedArray.of([[]] * 11)
    assert segments.assign(HeldOut(np.arange(11), nothing, nothing)).tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0]
    tied = of_counts(np.array([1, 1, 1, 1, 1, 2, 9, 9]))  # two thirds end at 1 and at 2
    assert [(name, *tied.describe(segment).values()) for segment, name in enumerate(tied.names)] == [
        ("new", 0, 0),
        ("casual", 1, 1),
        ("regular", 2, 2),
        ("heavy", 3, None),
    ]
    assert of_counts(np.array([4, 4, 4])).names == ("new", "casual")
    assert of_counts(np.array([0, 0])).names == ("new",)


def vocabulary_of(folder: Path, entity: str, ids: list[str] | list[int], counts: list[int]) -> Vocabulary:
    """Write the vocabulary of a context entity, and open it."""
    entities = {name: Entity(rows=1, id_type="int64", files=[]) for name in (QUERY, ITEM)}
    entities[entity] = write_vocabulary(folder, entity, ids, counts=counts)
    manifest = DatasetManifest(query=QUERY, item=ITEM, entities=entities, splits={}, context=[entity])
    return Vocabulary(Folder(folder), manifest, entity)


def test_values_of_context_are_segments_and_rare_ones_share_one(tmp_path: Path) -> None:
    """Play and like are in train; skip is there with negative weights only, and a query may have no kind."""
    segments = ContextSegments.of(vocabulary_of(tmp_path, "kind", ["play", "like", "skip"], [9, 5, 0]), "kind")
    assert segments.names == ("kind=play", "kind=like", "other kind", "no kind")
    context = {"kind": np.array([1, 0, -1, 2, 1])}
    chunk = HeldOut(np.arange(5), JaggedArray.of(TRUTH[:5]), JaggedArray.of(EXCLUDED[:5]), context=context)
    assert segments.assign(chunk).tolist() == [1, 0, 3, 2, 1]

    observer = SegmentMetrics(SOURCE, MODEL, segments, BITS_I, DEPTHS, np.array(VACANT))
    rankings = plain_rankings()
    observer.observe(chunk, np.array([(one + [-1] * 10)[:10] for one in rankings[:5]]))
    found = observer.metrics()
    members = {"kind=play": [1], "kind=like": [0, 4], "other kind": [3], "no kind": [2], "all": [0, 1, 2, 3, 4]}
    assert list(found) == list(members)
    for name, queries in members.items():
        for key, value in plain_values(rankings, queries).items():
            assert found[name][key] == (None if value is None else pytest.approx(value, abs=1e-6)), (name, key)


def test_segments_are_bounds_or_a_context_entity() -> None:
    assert parse_segments([], ["kind"]) == []
    assert parse_segments(["5", "12"], ["kind"]) == [5, 12]
    assert parse_segments(["kind"], ["hour", "kind"]) == "kind"
    for context, texts, cause in (
        (["kind", "hour"], ["kind", "hour"], "kind hour: expected numbers of interactions, or a context"),
        ([], ["kind"], "kind: expected numbers of interactions, or a context entity of"),
    ):
        with pytest.raises(InputError) as caught:
            parse_segments(texts, context)
        assert cause in str(caught.value)


@pytest.mark.parametrize("most", [1 << 24, 60])
def test_owners_are_distinct_customers(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "_MAX_COUNTED", most)
    draw = np.random.default_rng(3)
    query_N, item_N = draw.integers(0, 9, 400) * 2, draw.integers(0, ITEMS - 1, 400)
    weight_N = draw.choice([1.0, -1.0, 2.0], 400)
    weight_N[query_N == 4] = -1.0
    group = make_interactions(query_N, item_N, weight_N)
    manifest = write_data_set(tmp_path, {"train": [[group]]}, queries=20, items=ITEMS)
    counts_R = np.bincount(query_N[weight_N > 0], minlength=20)
    with closing(LineageReader(Folder(tmp_path), manifest)) as lineage:
        owners_I, queries = count_owners(lineage, counts_R)
    pairs = {(q, i) for q, i, w in zip(query_N.tolist(), item_N.tolist(), weight_N, strict=True) if w > 0}
    assert len(pairs) < (weight_N > 0).sum()
    assert owners_I.tolist() == [sum(item == i for _, i in pairs) for item in range(ITEMS)]
    assert queries == len({q for q, _ in pairs}) == 8


@pytest.mark.parametrize("bounds", [[12, 5], [5, 5], [1, 5], [-2]])
def test_bounds_that_do_not_rise_are_rejected(bounds: list[int]) -> None:
    with pytest.raises(InputError) as caught:
        ActivitySegments.from_bounds(bounds, COUNTS_R)
    assert "expected rising numbers of interactions, each 2 or more" in str(caught.value)
