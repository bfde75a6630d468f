"""Find a smooth path through the embedding space from one row to another, such as a playlist between two artists.

    path = PathFinder(model, SequenceOptions(source="runs/lastfm", start="Björk", end="Low")).named_path(log)
    path.row_K, path.cosine_K, path.progress_K

The progress of a row is its angle from the start, in the plane of both ends, as a fraction of the angle between them.
Of all sequences of rows near the arc from start to end with increasing progress, whose rows are therefore distinct, a
path has the least sum of the fourth powers of the angles between consecutive rows (``path_search.py``). A path has any
length that is asked for, unlike a shortest path in a graph of neighbors.

``measure_paths`` compares how smooth paths are, over random pairs of rows, with other ways from one to the other:

- path: what ``PathFinder`` finds
- interpolation: at each point of the arc at equal distances, the nearest row that is not used yet
- walk: from each row to the nearest that is not used yet, then a jump to the end
- random: random rows

Shapes: K places of a path, I rows near the arc, Q points, queries, or pairs, N elements of anything else, D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, Option
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import read_lists, select_candidates
from crossfade.trainer.recommend.item_lists import ItemLists
from crossfade.trainer.recommend.options import SequenceOptions
from crossfade.trainer.recommend.path_search import GroupLimits, least_sum_path
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.row_names import RowNames, untrained
from crossfade.trainer.recommend.top_k import unit_rows
from crossfade.trainer.recommend.trained_model import TrainedModel

_ARC_POINTS = 32
"""Points of the arc whose nearest rows a path may use."""
_NEAREST = 100
"""Rows near each point; twice the length of the path, if that is more."""
_CHOICES = 10
"""Rows per place of a path from which on only those between the two ends are used."""
_WIDER = 8
"""How many times as many rows are used if limits per group leave too few."""
_MAX_NEAR = 4000
"""Rows that a path may use: those nearest to the arc, if there are more. Memory grows with their square."""
_MIN_ANGLE = 1e-4


@dataclass(frozen=True)
class SequencePath:
    """Rows from start to end, int64 (K,), the cosine of each with the previous one (K - 1,), and progress (K,)."""

    row_K: IntArray
    cosine_K: FloatArray
    progress_K: FloatArray

    @property
    def deviation(self) -> float:
        """How far progress deviates from equal steps, on average over places."""
        return float(np.abs(self.progress_K - np.linspace(0, 1, len(self.progress_K))).mean())


@dataclass(frozen=True)
class Arc:
    """The arc from one unit vector to another: two orthogonal unit vectors, the first at the start, and its angle."""

    basis_2D: FloatArray
    angle: float

    def progress(self, vectors_ND: FloatArray) -> FloatArray:
        """Return the progress of vectors, float64 (N,): 0 at the start of the arc, 1 at its end."""
        along_2N = self.basis_2D @ vectors_ND.T
        progress_N: FloatArray = np.arctan2(along_2N[1], along_2N[0]) / self.angle
        return progress_N

    def points(self, count: int) -> FloatArray:
        """Return ``count`` points at equal distances, both ends among them: float32 (Q, D)."""
        angle_Q = np.linspace(0, self.angle, count)
        point_QD: FloatArray = np.stack([np.cos(angle_Q), np.sin(angle_Q)], axis=1) @ self.basis_2D
        return point_QD.astype(np.float32)


class PathFinder:
    """Finds paths between rows of one entity of a model."""

    def __init__(self, model: TrainedModel, options: SequenceOptions) -> None:
        """Select the rows that paths may use: those with a trained vector that the filters of ``options`` keep.

        Raises:
            InputError: a filter is invalid or leaves no row, or the entity has no vectors.
        """
        self.entity = entity = options.entity or model.spec.item.name
        vocabulary = model.vocabulary(entity)
        table = next(table for table in model.spec.vectors if table.name == entity)
        self._trained_R = model.trained_rows(table)
        candidates = select_candidates(model, entity, read_lists(options, RowNames(vocabulary, entity), entity))
        self._groups, self._max_per_group = candidates.groups, candidates.max_per_group
        candidates = replace(candidates, kept_R=candidates.kept_R & self._trained_R, groups=None)
        self.candidate_I = np.flatnonzero(candidates.kept_R)
        self.options, self._source = options, model.vectors
        self.names = RowNames(vocabulary, entity)
        self._ranker = Ranker(model.vectors, table, Score.of("cosine", 1.0), candidates)

    def named_path(self, log: Callable[[str], None]) -> SequencePath:
        """Return the path between the rows that the options name; ``log`` gets a line for each ambiguous name.

        Raises:
            InputError: a name is unknown, its row has no trained vector, or there is no path.
        """
        texts = [str(self.options.start), str(self.options.end)]
        rows = self.names.find(texts, log)
        for row, text in zip(rows, texts, strict=True):
            if not self._trained_R[row]:
                raise InputError(untrained(self.entity, [text]))
        return self.find(*rows)

    def find(self, start: int, end: int) -> SequencePath:
        """Return the path from ``start`` to ``end``, both included.

        Raises:
            InputError: the vectors of both are parallel, or too few rows are left between them.
        """
        length = self.options.length
        for factor in (1, _WIDER):
            near = self.near(start, end, factor)
            path_K = least_sum_path(near.unit_ID, length, self._limits(near.row_I))
            if path_K is not None:
                return self.describe(near.row_I[path_K])
        raise InputError(
            f"the {len(near.row_I) - 2} of {self.entity} near the path from '{self._label(start)}' to "
            f"'{self._label(end)}' are too few for {length - 2} between them: lower ",
            Option("length"),
            ", or relax the filters",
        )

    def near(self, start: int, end: int, factor: int = 1) -> NearRows:
        """Return the rows that a path may use, ``factor`` times as many where there are more.

        Raises:
            InputError: the vectors of both ends are parallel.
        """
        arc, length = self.arc(start, end), self.options.length
        ends = np.array(sorted([start, end]))
        excluded = ItemLists(np.arange(0, 2 * _ARC_POINTS + 1, 2), np.tile(ends, _ARC_POINTS))
        rows_QK, cosine_QK = self._ranker.rank(arc.points(_ARC_POINTS), excluded, factor * max(_NEAREST, 2 * length))
        row_I, place_N = np.unique(rows_QK[rows_QK >= 0], return_inverse=True)
        best_I = np.full(len(row_I), -np.inf, np.float32)
        np.maximum.at(best_I, place_N, cosine_QK[rows_QK >= 0])
        row_I = np.sort(row_I[np.argsort(-best_I, kind="stable")[:_MAX_NEAR]])
        unit_ID = self.unit_vectors(row_I)
        progress_I = arc.progress(unit_ID)
        # Near ends have few rows between them: those that lie least beyond are used too.
        beyond_I = np.maximum(np.maximum(-progress_I, progress_I - 1), 0)
        choices = min(len(row_I), factor * _CHOICES * (length - 2))
        kept_I = beyond_I <= (np.sort(beyond_I)[choices - 1] if choices else 0)
        order_I = np.flatnonzero(kept_I)[np.argsort(progress_I[kept_I], kind="stable")]
        end_2D = self.unit_vectors(ends)[np.searchsorted(ends, [start, end])]
        return NearRows(
            np.concatenate([[start], row_I[order_I], [end]]), np.vstack([end_2D[:1], unit_ID[order_I], end_2D[1:]])
        )

    def arc(self, start: int, end: int) -> Arc:
        """Return the arc between the vectors of two rows.

        Raises:
            InputError: they are parallel.
        """
        ends = np.unique([start, end])
        start_D, end_D = self.unit_vectors(ends)[np.searchsorted(ends, [start, end])]
        across_D = end_D - (start_D @ end_D) * start_D
        length = float(np.linalg.norm(across_D))
        if length < _MIN_ANGLE:
            raise InputError(
                f"the vectors of '{self._label(start)}' and '{self._label(end)}' are parallel, so that no row lies "
                f"between them; expected two different {self.entity}"
            )
        return Arc(np.stack([start_D, across_D / length]), float(np.arctan2(length, start_D @ end_D)))

    def describe(self, row_K: IntArray) -> SequencePath:
        """Compute the cosines and the progress of a sequence of rows."""
        row_N, place_K = np.unique(row_K, return_inverse=True)
        unit_KD = self.unit_vectors(row_N)[place_K]
        cosine_K = np.sum(unit_KD[1:] * unit_KD[:-1], axis=1)
        return SequencePath(row_K, cosine_K, self.arc(int(row_K[0]), int(row_K[-1])).progress(unit_KD))

    def nearest(self, row_Q: IntArray, excluded: ItemLists) -> IntArray:
        """Return the row nearest to each of ``row_Q`` outside ``excluded``, int64 (Q,)."""
        row_N, place_Q = np.unique(row_Q, return_inverse=True)
        query_QD = self._source.vectors(self.entity, row_N)[place_Q]
        rows_QK, _ = self._ranker.rank(query_QD, excluded, 1)
        nearest_Q: IntArray = rows_QK[:, 0]
        return nearest_Q

    def unit_vectors(self, row_N: IntArray) -> FloatArray:
        """Return the vectors of ``row_N``, sorted and unique, at length 1: float64 (N, D)."""
        return unit_rows(self._source.vectors(self.entity, row_N).astype(np.float64))

    def _limits(self, row_I: IntArray) -> GroupLimits | None:
        if self._groups is None:
            return None
        groups = self._groups.take(row_I)
        place_N = np.repeat(np.arange(len(row_I)), np.diff(groups.starts_R1))
        return GroupLimits(place_N, groups.values_N, len(row_I), self._max_per_group)

    def _label(self, row: int) -> str:
        return str(self.names.labels(np.array([row]))[row])


@dataclass(frozen=True)
class NearRows:
    """The rows near an arc by increasing progress, between its start and its end, and their unit vectors, float64."""

    row_I: IntArray
    unit_ID: FloatArray


Smoothness = dict[str, float]
"""Means over pairs: of mean and minimum cosine, and of the deviation of progress from equal steps."""


def measure_paths(finder: PathFinder, reporter: ProgressReporter) -> dict[str, Smoothness]:
    """Measure the smoothness of sequences between as many random pairs of candidates as the options of ``finder`` say.

    Raises:
        InputError: there are fewer candidates than rows of a sequence, or too few between the two of a pair.
    """
    candidate_I, length, pairs = finder.candidate_I, finder.options.length, finder.options.measure or 0
    if len(candidate_I) < length:
        least = Option("length", length)
        raise InputError(f"the filters leave {len(candidate_I)} rows; expected at least ", least, ": relax them")
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
