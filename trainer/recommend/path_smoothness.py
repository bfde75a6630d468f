"""Measure how smooth paths are, over random pairs of rows, against other ways to get from one to the other.

    finder = PathFinder(model, SequenceOptions(source="runs/lastfm", length=10, measure=200))
    measured = measure_paths(finder, NullReporter())
    measured["path"]["min_cosine"], measured["random"]["min_cosine"]

- path: what ``sequence.py`` finds
- interpolation: at each point of the arc at equal distances, the nearest row that is not used yet
- walk: from each row to the nearest that is not used yet, then a jump to the end
- random: random rows

Shapes: Q pairs, K places of a path.
"""

from __future__ import annotations

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError, option_named
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.recommend.sequence import PathFinder

Smoothness = dict[str, float]
"""Means over pairs: of mean and minimum cosine, and of the deviation of progress from equal steps."""


def measure_paths(finder: PathFinder, reporter: ProgressReporter) -> dict[str, Smoothness]:
    """Measure the smoothness of sequences between as many random pairs of candidates as the options of ``finder`` say.

    Raises:
        InputError: there are fewer candidates than rows of a sequence, or too few between the two of a pair.
    """
    candidate_I, length, pairs = finder.candidate_I, finder.options.length, finder.options.measure or 0
    if len(candidate_I) < length:
        least = option_named("length", length)
        raise InputError(f"the filters leave {len(candidate_I)} rows; expected at least {least}: relax them")
    random = np.random.default_rng(finder.options.seed)
    random_QK = np.array([random.choice(candidate_I, length, replace=False) for _ in range(pairs)])
    methods = {"path": [], "interpolation": [], "walk": _walks(finder, random_QK), "random": list(random_QK)}
    reporter.phase("measure paths", pairs, "pair")
    for start, *_, end in random_QK.tolist():
        methods["path"].append(finder.find(start, end).row_K)
        methods["interpolation"].append(_interpolate(finder, start, end))
        reporter.advance(1)
    return {name: _smoothness(finder, paths) for name, paths in methods.items()}


def _smoothness(finder: PathFinder, paths: list[IntArray]) -> Smoothness:
    described = [finder.describe(row_K) for row_K in paths]
    return {
        "mean_cosine": float(np.mean([path.cosine_K.mean() for path in described])),
        "min_cosine": float(np.mean([path.cosine_K.min() for path in described])),
        "deviation": float(np.mean([path.deviation for path in described])),
    }


def _interpolate(finder: PathFinder, start: int, end: int) -> IntArray:
    near, length = finder.near(start, end), finder.options.length
    similarity_KI = finder.arc(start, end).points(length) @ near.unit_ID.T
    similarity_KI[:, [0, -1]] = -np.inf
    path = [start]
    for k in range(1, length - 1):
        place = int(similarity_KI[k].argmax())
        similarity_KI[:, place] = -np.inf
        path.append(int(near.row_I[place]))
    return np.array([*path, end])


def _walks(finder: PathFinder, random_QK: IntArray) -> list[IntArray]:
    path_QK = random_QK.copy()
    for k in range(1, path_QK.shape[1] - 1):
        used_QK = np.sort(np.hstack([path_QK[:, :k], path_QK[:, -1:]]), axis=1)
        excluded = ItemLists(np.arange(len(used_QK) + 1) * (k + 1), used_QK.ravel())
        path_QK[:, k] = finder.nearest(path_QK[:, k - 1], excluded)
    return list(path_QK)
