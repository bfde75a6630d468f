"""Baselines: the metrics of rankings without training, to compare those of a run with.

    found = load_baselines(job, ["valid", "test"], in_training=True)
    found["metrics"]["test"]["item_cosine"]["ndcg@10"], found["notes"]

- popularity: items by their number of interactions in train
- recent_popularity: items by their number of interactions among the latest ``RECENT_SHARE`` of train, then by that in
  all of train; only with timestamps
- item_cosine: items by the sum, over the items that the query has in train, of the cosine of the two items' sets of
  queries; of each item's neighbors, the ``NEIGHBORS`` nearest (item-based top-N recommendation; Deshpande and Karypis,
  TOIS 2004)

All rank the items that ``ranking.py`` ranks for the same queries, and have its metrics of a query's hits, with their
standard errors. They take the positive interactions of train and no hyperparameters, so a run that does not exceed them
has learned little.

A dataset of more than ``MAX_INTERACTIONS``, ``MAX_ITEMS`` or ``MAX_PRODUCTS`` gets popularity only, and a note that
says why. The queries are those of the run, all or a sample; with more than ``MAX_PAIRS`` pairs to hold out and exclude,
every n-th of them is ranked. Results are kept beside the data, in ``baselines.json``, unless it is on S3 or may not be
written.

Shapes: Q queries, K ranks or depths, M metrics, I items, R rows of the query entity, N pairs of a query and an item.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.json_text import validate_json
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.config.schema import EvaluateConfig, JobConfig
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import BASELINES_FILE, DatasetManifest, data_fingerprint
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.evaluation.baseline_kernels import nearest_items, rank_by_neighbors, rank_in_order
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out, train_pairs
from crossfade.trainer.evaluation.ranking import EvalMetrics, QuerySums
from crossfade.trainer.runs.job_inputs import open_inputs, open_lineage

NEIGHBORS = 400
RECENT_SHARE = 0.2
"""Of interactions, not of time: a few wrong timestamps may span decades."""
MAX_INTERACTIONS = 1 << 23
"""Interactions in train for ``item_cosine``; each takes at most about 100 bytes of memory."""
MAX_ITEMS = 1 << 17
"""Items for ``item_cosine``; each takes 3,200 bytes of memory."""
MAX_PRODUCTS = 1 << 30
"""Pairs of items that a query has, counted over all queries, for ``item_cosine``: seconds of work."""
MAX_PAIRS = 1 << 25
_MAX_RANKED = 1 << 23
"""Ranks of all queries of a chunk together."""
_PARTS_OF_THREAD = 16
"""The first items, which are the most frequent, take longer than others."""
_VERSION = 3

Ranking = Callable[[HeldOut, int], IntArray]
"""Returns the items of each query of a chunk, best first, to a depth: int64 (Q, K), padded with -1."""


def load_baselines(job: JobConfig, splits: Sequence[SplitName], *, in_training: bool = False) -> dict[str, Any]:
    """Return the ``metrics`` of the baselines by split and name, and ``notes`` in words, on them and on the hold-out.

    They are computed once per dataset, split, and number of queries.

    ``in_training``: on the queries of valid that are evaluated during training (``evaluate.max_queries``).

    Raises:
        InputError: the dataset cannot be read.
    """
    data, manifest, _, job = open_inputs(job)
    with closing(open_lineage(job, data, manifest)) as lineage:
        sizes = {split: _queries(manifest, job.evaluate, split, in_training=in_training) for split in splits}
        return _load_baselines(lineage, job.evaluate, sizes)


def _queries(manifest: DatasetManifest, spec: EvaluateConfig, split: SplitName, *, in_training: bool) -> int | None:
    """Return the size of the sample; None if it is no smaller than the split, as all such samples are the same."""
    size = spec.queries_of(split, in_training=in_training)
    return None if size is None or size >= manifest.splits[split].rows else size


def _load_baselines(
    lineage: LineageReader, spec: EvaluateConfig, sizes: Mapping[SplitName, int | None]
) -> dict[str, Any]:
    kept = _Kept(lineage)
    found = {split: kept.results.get(_key(split, spec, size)) for split, size in sizes.items()}
    missing = [split for split, result in found.items() if result is None]
    if missing:
        baselines = _Baselines(lineage, spec)
        for split in missing:
            key = _key(split, spec, sizes[split])
            found[split] = kept.results[key] = baselines.evaluate(split, sizes[split])
        kept.write()
    results = {split: result for split, result in found.items() if result is not None}
    of_data = lineage.manifest.random_test_notes() if "test" in results else []
    return {
        "metrics": {split: result["metrics"] for split, result in results.items()},
        "notes": [*dict.fromkeys(note for result in results.values() for note in result["notes"]), *of_data],
    }


def _key(split: SplitName, spec: EvaluateConfig, size: int | None) -> str:
    """Return what results depend on besides the dataset."""
    excluded = ", ".join(sorted(spec.excluded_from(split))) or "nothing"
    by = "" if spec.by == "query" else f", by {spec.by}"
    sample = "" if size is None else f", {size} queries"
    return f"{split}, without {excluded}, k {sorted(set(spec.k))}{by}{sample}"


class _Result(BaseModel):
    """The metrics of each baseline, and notes."""

    metrics: dict[str, dict[str, float]]
    notes: list[str]


class _File(BaseModel):
    """The file that keeps results."""

    version: int
    fingerprint: int
    base_datasets: list[int] = []
    results: dict[str, _Result]


class _Kept:
    """The results that are kept beside a dataset, by key; those of other versions of its lineage are left out."""

    def __init__(self, lineage: LineageReader) -> None:
        self._data = data = lineage.folder
        self._stamp: dict[str, Any] = {
            "version": _VERSION,
            "fingerprint": data_fingerprint(data),
            "base_datasets": lineage.fingerprints(),
        }
        self.results: dict[str, dict[str, Any]] = {}
        # A file that cannot be read or written costs time and nothing else.
        with suppress(OSError, ValueError):
            found = None if data.on_s3 else validate_json(_File, data.read(BASELINES_FILE)).model_dump()
            if found is not None and found.items() >= self._stamp.items():
                self.results = found["results"]

    def write(self) -> None:
        with suppress(OSError):
            if not self._data.on_s3:
                text = json.dumps({**self._stamp, "results": self.results}, indent=1) + "\n"
                self._data.write(BASELINES_FILE, text.encode())


class _Baselines:
    """Computes the baselines of a dataset."""

    def __init__(self, lineage: LineageReader, spec: EvaluateConfig) -> None:
        self._lineage, self._manifest, self._spec = lineage, lineage.manifest, spec

    def evaluate(self, split: SplitName, size: int | None) -> dict[str, Any]:
        """Return the metrics on ``size`` queries of ``split``, None: all, by name of the baseline, and notes."""
        every = max(1, -(-self._pairs(split, size) // MAX_PAIRS))
        held_out = load_held_out(self._lineage, split, self._spec, rank=0, workers=every, queries=size)
        notes = [f"baselines rank for one query in {every}"] if every > 1 else []
        metrics = {"popularity": self._metrics(held_out, self._popularity)}
        if self._manifest.has_timestamp and self._lineage.train_rows() <= MAX_INTERACTIONS:
            metrics["recent_popularity"] = self._metrics(held_out, self._recent_popularity)
        if excess := self._excess():
            notes.append(f"item_cosine is not computed: {excess}")
        else:
            metrics["item_cosine"] = self._metrics(held_out, self._item_cosine)
        return {"metrics": metrics, "notes": notes}

    def _pairs(self, split: SplitName, size: int | None) -> int:
        """Return about how many pairs are held out and excluded: as many for each row of the query entity."""
        pairs = self._manifest.splits[split].rows + self._lineage.known_rows(self._spec.excluded_from(split))
        rows = self._manifest.entities[self._manifest.query].rows
        return pairs if size is None else -(-pairs * min(size, rows) // rows)

    def _metrics(self, held_out: HeldOut, rank: Ranking) -> EvalMetrics:
        depths = sorted(set(self._spec.k))
        hits = QuerySums(depths)
        for chunk in held_out.chunks(max(1, _MAX_RANKED // depths[-1])):
            hits.add(rank(chunk, depths[-1]), chunk.truth)
        metrics, errors = EvalMetrics(), EvalMetrics()
        for place, depth in enumerate(depths):
            metrics |= hits.means(place, f"@{depth}")
            errors |= hits.errors(place, f"@{depth}")
        return metrics | errors

    def _excess(self) -> str:
        """Return which limit of ``item_cosine`` the dataset exceeds; empty if none."""
        counts_R = self._counts(self._manifest.query)
        found = (
            ("interactions in train", self._lineage.train_rows(), MAX_INTERACTIONS),
            (f"rows of {self._manifest.item}", self._manifest.entities[self._manifest.item].rows, MAX_ITEMS),
            (f"pairs of items of a {self._manifest.query}", int(np.square(counts_R).sum()), MAX_PRODUCTS),
        )
        return "; ".join(f"{number:,} {what}, of {limit:,} at most" for what, number, limit in found if number > limit)

    def _counts(self, entity: str) -> IntArray:
        return self._lineage.counts(entity)

    @cached_property
    def _order_I(self) -> IntArray:
        """The items, the most frequent first."""
        order_I = np.argsort(-self._counts(self._manifest.item), kind="stable")
        return order_I[~np.isin(order_I, self._manifest.entities[self._manifest.item].vacant_rows)]

    def _popularity(self, chunk: HeldOut, depth: int) -> IntArray:
        best_item_QK: IntArray = rank_in_order(self._order_I, chunk.excluded.starts_Q1, chunk.excluded.items_N, depth)
        return best_item_QK

    @cached_property
    def _recent_order_I(self) -> IntArray:
        """The items, the most frequent of the latest interactions first; ``_order_I`` breaks ties."""
        parts = [(part, part.weight_N > 0) for part in self._lineage.read_train(timestamps=True)]
        item_N = np.concatenate([part.item_N[positive_N] for part, positive_N in parts])
        timestamp_N = np.concatenate([part.timestamp_N[positive_N] for part, positive_N in parts])  # type: ignore[index]
        since = np.quantile(timestamp_N, 1 - RECENT_SHARE, method="lower")
        items = self._manifest.entities[self._manifest.item].rows
        recent_I = np.bincount(item_N[timestamp_N >= since], minlength=items)
        recent_order_I: IntArray = self._order_I[np.argsort(-recent_I[self._order_I], kind="stable")]
        return recent_order_I

    def _recent_popularity(self, chunk: HeldOut, depth: int) -> IntArray:
        excluded = chunk.excluded.starts_Q1, chunk.excluded.items_N
        best_item_QK: IntArray = rank_in_order(self._recent_order_I, *excluded, depth)
        return best_item_QK

    @cached_property
    def _neighbors(self) -> tuple[IntArray, IntArray, NDArray[np.int32], FloatArray]:
        """The items of each query, as starts and items, and the neighbors of each item, with their cosines."""
        items, rows = (self._manifest.entities[name].rows for name in (self._manifest.item, self._manifest.query))
        query_N, item_N = np.divmod(train_pairs(self._lineage), items)
        starts_R1, starts_I1 = (
            np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row_N, minlength=size))])
            for row_N, size in ((query_N, rows), (item_N, items))
        )
        by_item_N = query_N[np.argsort(item_N, kind="stable")]
        near_IK, cosine_IK = np.full((items, NEIGHBORS), -1, np.int32), np.zeros((items, NEIGHBORS), np.float32)
        _share(items, nearest_items, (starts_R1, item_N), (starts_I1, by_item_N), (near_IK, cosine_IK))
        return starts_R1, item_N, near_IK, cosine_IK

    def _item_cosine(self, chunk: HeldOut, depth: int) -> IntArray:
        excluded = chunk.excluded.starts_Q1, chunk.excluded.items_N
        best_item_QK = np.full((len(chunk.queries_Q), depth), -1, np.int64)
        _share(len(best_item_QK), rank_by_neighbors, chunk.queries_Q, self._neighbors, excluded, best_item_QK)
        return best_item_QK


def _share(count: int, kernel: Callable[..., None], *arguments: Any) -> None:
    """Call ``kernel`` with the bounds of parts of 0 to ``count``, and ``arguments``, in threads."""
    threads = get_num_threads()
    bounds = np.linspace(0, count, _PARTS_OF_THREAD * threads + 1).astype(np.int64)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="baselines")
    try:
        for done in [pool.submit(kernel, *part, *arguments) for part in pairwise(bounds.tolist())]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C waits only for the parts that have begun
