"""The search for paths: optimal without limits per group, within them otherwise, compared with all paths."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from crossfade.base.arrays import FloatArray
from crossfade.trainer.recommend.path_search import GroupLimits, least_sum_path
from crossfade.trainer.recommend.top_k import unit_rows

Path = tuple[int, ...]


def rows(count: int, seed: int) -> FloatArray:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, 3)))


def cost(unit_ID: FloatArray, path: Path) -> float:
    return float(sum(np.arccos(np.clip(unit_ID[one] @ unit_ID[other], -1, 1)) ** 4 for one, other in pairwise(path)))


def all_paths(count: int, length: int) -> list[Path]:
    return [(0, *between, count - 1) for between in combinations(range(1, count - 1), length - 2)]


def search(unit_ID: FloatArray, length: int, limits: GroupLimits | None) -> Path | None:
    path_K = least_sum_path(unit_ID, length, limits)
    return None if path_K is None else tuple(path_K.tolist())


@pytest.mark.parametrize("length", [2, 3, 5, 8])
def test_path_has_the_least_sum(length: int) -> None:
    unit_ID = rows(8, length)
    assert search(unit_ID, length, None) == min(all_paths(8, length), key=lambda path: cost(unit_ID, path))


def test_path_longer_than_the_rows_is_none() -> None:
    assert search(rows(8, 1), 9, None) is None


@pytest.mark.slow
def test_paths_keep_limits_per_group_and_are_near_the_best() -> None:
    ratios, missed = [], 0
    for seed in range(40):
        unit_ID = rows(12, seed)
        draw = np.random.default_rng(seed)
        pairs = sorted({(place, int(draw.integers(4))) for place in range(12) for _ in range(1 + place % 2)})
        groups = [{group for other, group in pairs if other == place} for place in range(12)]
        columns = (np.array(column) for column in zip(*pairs, strict=True))

        def is_within(path: Path, groups: list[set[int]] = groups) -> bool:
            ends = [sum(group in groups[place] for place in (0, 11)) for group in range(4)]
            counts = [sum(group in groups[place] for place in path) for group in range(4)]
            return all(count <= max(2, end) for count, end in zip(counts, ends, strict=True))

        found = search(unit_ID, 6, GroupLimits(*columns, 12, 2))
        best = min(filter(is_within, all_paths(12, 6)), key=lambda path: cost(unit_ID, path), default=None)
        if found is None or best is None:
            assert found is None
            missed += best is not None
            continue
        assert is_within(found)
        ratios.append(cost(unit_ID, found) / cost(unit_ID, best))
    # In so few rows, a path that exists may be missed.
    assert len(ratios) > 20 > 8 >= missed
    assert np.mean(ratios) < 1.2
