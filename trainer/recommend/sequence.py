"""Find a smooth path through the embedding space from one row to another, such as a playlist between two artists.

    path = find_path(model, SequenceOptions.of(source="runs/lastfm", start="Björk", end="Low"))
    path.row_K, path.cosine_K, path.progress_K

The progress of a row is its angle from the start, in the plane of both ends, as a fraction of the angle between them.
Of all sequences of rows near the arc from start to end with increasing progress, whose rows are therefore distinct, a
path has the least sum of the fourth powers of the angles between consecutive rows, which dynamic programming finds. The
fourth power lies between the sum of the angles, which tolerates one long jump, and their maximum, which does not
distinguish the others.

Shapes: K places of a path, I rows near the arc, Q points, N elements of anything else, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, Option
from crossfade.kvstore.jit import njit
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import read_lists
from crossfade.trainer.recommend.item_lists import ItemLists
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import SequenceOptions
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.row_names import RowLabel
from crossfade.trainer.recommend.top_k import unit_rows

_ARC_POINTS = 32
"""Points of the arc whose nearest rows a path may use."""
_NEAREST = 100
"""Rows near each point; twice the length of the path, if that is more."""
_CHOICES = 10
"""Rows per place of a path from which on only those between the two ends are used."""
_MAX_NEAR = 4000
"""Rows that a path may use: those nearest to the arc, if there are more. Memory grows with their square."""
_MIN_ANGLE = 1e-4


@dataclass(frozen=True)
class SequencePath:
    """Rows of ``entity`` from start to end.

    Attributes:
        entity: whose rows they are.
        row_K: the rows, int64.
        labels: ID and name of each row.
        cosine_K: the cosine of each with the previous one, (K - 1,).
        progress_K: the progress of each, (K,).
    """

    entity: str
    row_K: IntArray
    labels: Mapping[int, RowLabel]
    cosine_K: FloatArray
    progress_K: FloatArray


def find_path(model: Model, options: SequenceOptions) -> SequencePath:
    """Return the path between the rows that ``options`` name.

    Raises:
        InputError: a name is unknown or its row has no trained vector, a filter is invalid, or there is no path.
    """
    entity = model.entity(options.entity)
    ends = model.find(entity, [options.start, options.end])
    candidates = model.candidates(entity, read_lists(options, entity))
    ranker = Ranker(model.trained.vectors, model.tables[entity], Score.of("cosine", 1.0), candidates)

    def unit_vectors(row_N: IntArray) -> FloatArray:
        return unit_rows(model.vectors(entity, row_N).astype(np.float64))

    arc = Arc.between(*unit_vectors(ends))
    if arc is None:
        raise InputError(
            f"the vectors of '{options.start}' and '{options.end}' are parallel, so that no row lies between them; "
            f"expected two different {entity}"
        )
    row_I = _near_rows(ranker, arc, unit_vectors, ends, options.length)
    path_K = least_sum_path(unit_vectors(row_I), options.length)
    if path_K is None:
        raise InputError(
            f"the {len(row_I) - 2} of {entity} near the path from '{options.start}' to '{options.end}' are too few for "
            f"{options.length - 2} between them: lower ",
            Option("length"),
            ", or relax the filters",
        )
    row_K = row_I[path_K]
    unit_KD = unit_vectors(row_K)
    cosine_K = np.sum(unit_KD[1:] * unit_KD[:-1], axis=1)
    return SequencePath(entity, row_K, model.labels(entity, row_K), cosine_K, arc.progress(unit_KD))


@dataclass(frozen=True)
class Arc:
    """The arc from one unit vector to another: two orthogonal unit vectors, the first at the start, and its angle."""

    basis_2D: FloatArray
    angle: float

    @staticmethod
    def between(start_D: FloatArray, end_D: FloatArray) -> Arc | None:
        """Return the arc between two unit vectors; None if they are parallel."""
        across_D: FloatArray = end_D - (start_D @ end_D) * start_D
        length = float(np.linalg.norm(across_D))
        if length < _MIN_ANGLE:
            return None
        return Arc(np.stack([start_D, across_D / length]), float(np.arctan2(length, start_D @ end_D)))

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


def _near_rows(
    ranker: Ranker,
    arc: Arc,
    unit_vectors: Callable[[IntArray], FloatArray],
    ends: IntArray,
    length: int,
) -> IntArray:
    """Return the rows that a path may use by progress, between both ends."""
    excluded = ItemLists(np.arange(0, 2 * _ARC_POINTS + 1, 2), np.tile(np.sort(ends), _ARC_POINTS))
    rows_QK, cosine_QK = ranker.rank(arc.points(_ARC_POINTS), excluded, max(_NEAREST, 2 * length))
    row_I, place_N = np.unique(rows_QK[rows_QK >= 0], return_inverse=True)
    best_I = np.full(len(row_I), -np.inf, np.float32)
    np.maximum.at(best_I, place_N, cosine_QK[rows_QK >= 0])
    row_I = np.sort(row_I[np.argsort(-best_I, kind="stable")[:_MAX_NEAR]])
    progress_I = arc.progress(unit_vectors(row_I))
    # Near ends have few rows between them: those that lie least beyond are used too.
    beyond_I = np.maximum(np.maximum(-progress_I, progress_I - 1), 0)
    choices = min(len(row_I), _CHOICES * (length - 2))
    kept_I = beyond_I <= (np.sort(beyond_I)[choices - 1] if choices else 0)
    order_I = np.flatnonzero(kept_I)[np.argsort(progress_I[kept_I], kind="stable")]
    return np.concatenate([ends[:1], row_I[order_I], ends[1:]])


def least_sum_path(unit_ID: FloatArray, length: int) -> IntArray | None:
    """Return the path of ``length`` places, at least 2, from the first row to the last; None if there is none.

    ``unit_ID`` are unit vectors in the order that a path visits them in.
    """
    unit_ID = unit_ID.astype(np.float32)
    path_K: IntArray = _least_sum_path(np.arccos(np.clip(unit_ID @ unit_ID.T, -1, 1)) ** 4, length)
    return None if path_K[0] < 0 else path_K


@njit(cache=True)
def _least_sum_path(cost_II, length):  # type: ignore[no-untyped-def]
    """Return the places of the best path; all -1 if there is none."""
    rows = cost_II.shape[0]
    total_I = np.full(rows, np.inf)
    total_I[0] = 0.0
    previous_KI = np.zeros((length, rows), np.int64)
    for k in range(1, length):
        next_I = np.full(rows, np.inf)
        for before in range(rows):
            if total_I[before] < np.inf:
                for after in range(before + 1, rows):
                    total = total_I[before] + cost_II[before, after]
                    if total < next_I[after]:
                        next_I[after] = total
                        previous_KI[k, after] = before
        total_I = next_I
    path_K = np.full(length, -1, np.int64)
    if total_I[-1] < np.inf:
        path_K[-1] = rows - 1
        for k in range(length - 1, 0, -1):
            path_K[k - 1] = previous_KI[k, path_K[k]]
    return path_K
