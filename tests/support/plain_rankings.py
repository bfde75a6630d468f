"""A small dataset with replays and pairs of no weight, and the metrics of plain rankings of its items."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from builders import ITEM, QUERY, make_interactions, write_manifest, write_vocabulary

from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import DatasetManifest

QUERIES, ITEMS, DEPTHS = 25, 30, [1, 4, 12]
Pairs = list[tuple[int, int, float]]


def random_pairs(seed: int, count: int) -> Pairs:
    """Query, item and weight: some pairs twice, some of weight zero or less, and few of the items often."""
    draw = np.random.default_rng(seed)
    items_N = np.minimum(draw.geometric(0.12, count) - 1, ITEMS - 1)
    rows = zip(draw.integers(0, QUERIES - 1, count), items_N, draw.choice([1, 1, 2, 0, -1], count), strict=True)
    return [(int(query), int(item), float(weight)) for query, item, weight in rows]


PAIRS: dict[str, Pairs] = {"train": random_pairs(1, 200), "valid": random_pairs(2, 60), "test": random_pairs(3, 90)}


def write_pairs(folder: Path) -> DatasetManifest:
    """Write the dataset of ``PAIRS``, with the items' counts of positive interactions in train."""
    counts = Counter(item for _, item, weight in PAIRS["train"] if weight > 0)
    queries = Counter(query for query, _, weight in PAIRS["train"] if weight > 0)
    entities = {
        QUERY: write_vocabulary(folder, QUERY, range(QUERIES), counts=[queries[row] for row in range(QUERIES)]),
        ITEM: write_vocabulary(folder, ITEM, range(ITEMS), counts=[counts[row] for row in range(ITEMS)]),
    }
    splits = {
        name: [[make_interactions(*zip(*pairs, strict=True))]]  # type: ignore[misc]
        for name, pairs in PAIRS.items()
    }
    return write_manifest(folder, entities, splits)


def make_job(data: Path, **evaluate: Any) -> JobConfig:
    sections = {"k": DEPTHS, "best_metric": "ndcg@4", **evaluate}
    return check_job({"name": "plain", "data": {"path": str(data)}, "evaluate": sections}, "a test")


def by_query(*splits: str) -> dict[int, set[int]]:
    """Return the items of positive weight that ``splits`` have, by query."""
    found: dict[int, set[int]] = {}
    for query, item, weight in (pair for split in splits for pair in PAIRS[split]):
        if weight > 0:
            found.setdefault(query, set()).add(item)
    return found


def plain_recall_and_ndcg(
    scores: dict[int, dict[int, float]], truth: dict[int, set[int]], excluded: dict[int, set[int]]
) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for query, held_out in truth.items():
        of_query = {item: score for item, score in scores[query].items() if item not in excluded.get(query, ())}
        ranking = sorted(of_query, key=lambda item: (-of_query[item], item))
        for k in DEPTHS:
            ranks = [rank for rank, item in enumerate(ranking[:k], start=1) if item in held_out]
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(held_out)) + 1))
            totals[f"recall@{k}"] += len(ranks) / len(held_out)
            totals[f"ndcg@{k}"] += sum(1 / math.log2(rank + 1) for rank in ranks) / ideal
            totals[f"hit_rate@{k}"] += bool(ranks)
    return {name: total / len(truth) for name, total in totals.items()}
