"""Beyond accuracy: what rankings show, and to whom, by segments of queries.

    segments = load_segment_metrics(job, embeddings, [])
    evaluate_embeddings(job, embeddings, "test", observers=[segments])
    segments.metrics()["heavy"]["diversity@10"]

With L the items of a ranking cut at k:

- diversity@k = mean of 1 − cos(i, j) over the pairs of items i, j in L, by their vectors      (intra-list diversity;
  Ziegler et al., WWW 2005; Vargas and Castells, RecSys 2011); rankings of fewer than two items are left out
- novelty@k = mean of −log₂(share of the queries with an interaction in train that have item i) over i in L, in bits
  (mean self-information; Zhou et al., PNAS 2010); an item that no query has counts as if one had it

averaged over the queries of a segment, like the recall and ndcg of ``ranking.py``. Over the rankings of all queries,
with x₁ ≤ … ≤ xₙ the number of rankings that show each of the n items of the catalog:

- gini@k = Σᵢ (2i − n − 1) xᵢ / ((n − 1) Σᵢ xᵢ)      (Gini index of exposure; Fleder and Hosanagar, Management Science
  2009): 0 if all items are shown equally often, 1 if all rankings show the same item

The Gini index is not computed for segments, since it depends on the number of rankings: few cannot show all items.
Vectors are read for a part of the queries at a time, so memory is bounded.

Shapes: Q queries, K ranks or depths, M metrics, I items, S segments, R rows of the query entity, E items of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.files import EmbeddingFiles, VectorSource
from crossfade.trainer.evaluation.exact_sums import ExactSums
from crossfade.trainer.evaluation.held_out import HeldOut, count_owners
from crossfade.trainer.evaluation.list_metrics import hit_metrics, list_diversity, mean_over_ranks, shown_at
from crossfade.trainer.evaluation.segments import ActivitySegments, ContextSegments, QuerySegments, parse_segments
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.recommend.top_k import unit_rows
from crossfade.trainer.runs.job_inputs import open_inputs, open_lineage
from crossfade.trainer.runs.shown_metrics import error_of

_MAX_VECTOR_VALUES = 1 << 24
"""Values of the item vectors that are in memory together."""
_NAMES = ("recall", "ndcg", "diversity", "novelty")
_LARGEST = 64.0
"""No value is above: novelty is in bits."""
ALL = "all"

SegmentValues = dict[str, float | int | None]
"""Values by name; None where no query has one."""


def load_segment_metrics(job: JobConfig, embeddings: Path | Folder, texts: Sequence[str]) -> SegmentMetrics:
    """Read what the metrics need from the dataset of ``job``.

    Segments are those of ``texts``, the option ``segments`` (``parse_segments``); without any, terciles.

    Raises:
        InputError: the dataset or the embeddings cannot be read, the bounds do not rise, or there is no such context.
    """
    data, manifest, model, _ = open_inputs(job)
    with closing(open_lineage(job, data, manifest)) as lineage:
        counts_R = lineage.counts(manifest.query)
        owners_I, queries = count_owners(lineage, counts_R)
    segments: QuerySegments
    match parse_segments(texts, manifest.context):
        case str(entity):
            segments = ContextSegments.of(Vocabulary(data, manifest, entity), entity)
        case bounds:
            by_count = ActivitySegments
            segments = by_count.from_bounds(bounds, counts_R) if bounds else by_count.from_terciles(counts_R)
    vacant_I = manifest.entities[manifest.item].vacant_rows
    self_information_I = np.log2(max(queries, 1) / np.maximum(owners_I, 1))
    depths = sorted(set(job.evaluate.k))
    source = EmbeddingFiles(embeddings)
    return SegmentMetrics(source, model, segments, self_information_I, depths, np.array(vacant_I, np.int64))


class SegmentMetrics:
    """Accumulates the metrics over queries; implements ``RankingObserver``."""

    def __init__(
        self,
        source: VectorSource,
        model: ModelSpec,
        segments: QuerySegments,
        self_information_I: FloatArray,
        depths: list[int],
        vacant_N: IntArray,
    ) -> None:
        """Take what describes queries and items.

        Args:
            source: vectors of the items.
            model: names the tables.
            segments: of queries.
            self_information_I: of each item, in bits.
            depths: of rankings, rising.
            vacant_N: items that are not in the catalog.
        """
        self._source, self._item, self._segments = source, model.item, segments
        self._self_information_I, self._depths, self._vacant_N = self_information_I, depths, vacant_N
        self._queries_S = np.zeros(len(segments.names), np.int64)
        shape = (len(segments.names), len(depths), len(_NAMES))
        self._sums, self._squares = ExactSums(shape, _LARGEST), ExactSums(shape, _LARGEST**2)
        self._defined_SKM = np.zeros(shape, np.int64)
        self._exposure_KI = np.zeros((len(depths), model.item.rows), np.int64)

    def observe(self, chunk: HeldOut, best_item_QK: IntArray) -> None:
        """Add the rankings of a chunk's queries."""
        part_queries, first = max(1, _MAX_VECTOR_VALUES // (self._item.dim * best_item_QK.shape[1])), 0
        if self._item.rows * self._item.dim <= _MAX_VECTOR_VALUES:
            part_queries = max(1, len(best_item_QK))
        for part in chunk.chunks(part_queries):
            self._add(part, best_item_QK[first : first + len(part.queries_Q)])
            first += len(part.queries_Q)
        for place, shown_N in enumerate(shown_at(best_item_QK, self._depths)):
            self._exposure_KI[place] += np.bincount(shown_N, minlength=self._item.rows)

    def _add(self, part: HeldOut, best_item_QK: IntArray) -> None:
        hits_QKM = hit_metrics(best_item_QK, part.truth, self._depths)[:, :, :2]
        novelty_QK = mean_over_ranks(best_item_QK, self._self_information_I, self._depths)
        metrics_QKM = np.dstack([hits_QKM, self._diversity(best_item_QK), novelty_QK])
        segment_Q = self._segments.assign(part)
        for segment in range(len(self._queries_S)):
            of_segment_QKM = metrics_QKM[segment_Q == segment]
            self._queries_S[segment] += len(of_segment_QKM)
            self._defined_SKM[segment] += (~np.isnan(of_segment_QKM)).sum(axis=0)
            defined_QKM = np.nan_to_num(of_segment_QKM)
            self._sums.add(defined_QKM, (segment,))
            self._squares.add(np.square(defined_QKM), (segment,))

    def _diversity(self, best_item_QK: IntArray) -> FloatArray:
        row_E = np.unique(best_item_QK)
        row_E = row_E[row_E >= 0]
        unit_ED = unit_rows(self._source.vectors(self._item.name, row_E))
        best_place_QK = np.where(best_item_QK >= 0, np.searchsorted(row_E, best_item_QK), -1)
        return list_diversity(best_place_QK, unit_ED, self._depths)

    def metrics(self) -> dict[str, SegmentValues]:
        """Return the metrics of each segment, with their errors and what describes it, and of ``all`` queries."""
        result: dict[str, SegmentValues] = {}
        for segment, name in enumerate(self._segments.names):
            result[name] = {**self._segments.describe(segment), **self._means([segment])}
        result[ALL] = self._means(range(len(self._queries_S)))
        exposure_KI = np.delete(np.cumsum(self._exposure_KI, axis=0), self._vacant_N, axis=1)
        for depth, exposure_I in zip(self._depths, exposure_KI, strict=True):
            result[ALL][f"gini@{depth}"] = gini_index(exposure_I)
        return result

    def _means(self, segments: Sequence[int]) -> SegmentValues:
        """Return the means over the queries of ``segments`` and, of two queries or more, their standard errors."""
        means: SegmentValues = {"queries": int(self._queries_S[segments].sum())}
        errors: SegmentValues = {}
        of_segments = [
            array_SKM[list(segments)].sum(axis=0)
            for array_SKM in (self._sums.values(), self._squares.values(), self._defined_SKM)
        ]
        for m, name in enumerate(_NAMES):
            for k, depth in enumerate(self._depths):
                total, squares, defined = (array_KM[k, m] for array_KM in of_segments)
                means[f"{name}@{depth}"] = float(total / defined) if defined else None
                if defined > 1:
                    variance = max(squares - total**2 / defined, 0.0) / (defined - 1)
                    errors[error_of(f"{name}@{depth}")] = float(np.sqrt(variance / defined))
        return means | errors


def gini_index(exposure_I: IntArray) -> float:
    """Return the Gini index of ``exposure_I``, none below 0; 0 if no item is shown or there is only one."""
    items, total = len(exposure_I), int(exposure_I.sum())
    if items < 2 or not total:
        return 0.0
    weight_I = 2 * np.arange(1, items + 1) - items - 1
    return float(np.sort(exposure_I).astype(np.float64) @ weight_I) / ((items - 1) * total)
