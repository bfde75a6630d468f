"""Baselines: the metrics of rankings without training, to compare those of a run with.

    found = load_baselines(job, ["valid", "test"], in_training=True)
    found["metrics"]["test"]["item_cosine"]["ndcg@10"], found["notes"]

- popularity: items by their number of interactions in train
- recent_popularity: items by their number of interactions among the latest ``RECENT_SHARE`` of train, then by that in
  all of train; only with timestamps
- item_cosine: items by the sum, over the items that the query has in train, of the cosine of the two items' sets of
  queries; of each item's neighbors, the ``NEIGHBORS`` nearest (item-based top-N recommendation; Deshpande and Karypis,
  TOIS 2004)

With ``tuned``, als and ease of ``tuned_baselines.py`` stand beside them, fit to train with the settings that have the
highest ``evaluate.best_metric`` on valid.

All rank the items that ``ranking.py`` ranks for the same queries, and have its metrics of a query's hits, with their
standard errors. The first three take the positive interactions of train and no hyperparameters, so a run that does
not exceed them has learned little.

A dataset of more than ``MAX_INTERACTIONS``, ``MAX_ITEMS`` or ``MAX_PRODUCTS`` gets no item_cosine, one of more than
``MAX_INTERACTIONS`` popularity only, and a note that says why. The queries are those of the run, all or a sample; with
more than ``MAX_PAIRS`` pairs to hold out and exclude, every n-th of them is ranked. Results are kept beside the data,
in ``baselines.json``, unless it is on S3 or may not be written. Tuned ones that are kept there are returned whether
they are asked for or not, and settings that have been measured are not measured again.

Shapes: Q queries, K ranks or depths, M metrics, I items, R rows of the query entity, N pairs of a query and an item.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import MissingExtraError
from crossfade.base.json_text import validate_json
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.config.schema import EvaluateConfig, JobConfig
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import BASELINES_FILE, DatasetManifest, data_fingerprint
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.evaluation.baseline_kernels import nearest_items, rank_by_neighbors, rank_in_order
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out, train_pairs
from crossfade.trainer.evaluation.paired_gain import GroupSums
from crossfade.trainer.evaluation.ranking import EvalMetrics, QuerySums
from crossfade.trainer.evaluation.tuned_baselines import (
    MAX_SIDE,
    TUNED,
    Scores,
    Settings,
    TunedBaseline,
    choose,
    fits_of,
    rank_by_scores,
)
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
_VERSION = 4

Ranking = Callable[[HeldOut, int], IntArray]
"""Returns the items of each query of a chunk, best first, to a depth: int64 (Q, K), padded with -1."""


def load_baselines(
    job: JobConfig,
    splits: Sequence[SplitName],
    *,
    in_training: bool = False,
    tuned: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Return the ``metrics`` of the baselines by split and name, their ``sums``, and ``notes`` in words.

    Notes are on the baselines and on the hold-out. Results are computed once per dataset, split, and number of queries.
    ``sums`` are those of ``GroupSums`` for ``evaluate.best_metric``, empty where a sample of the run's queries is
    ranked.

    Args:
        job: the job of a run.
        splits: the splits to rank.
        in_training: rank the queries of valid that are evaluated during training (``evaluate.max_queries``).
        tuned: compute the tuned baselines too, which takes minutes; it gets their progress.

    Raises:
        InputError: the dataset cannot be read.
    """
    data, manifest, _, job = open_inputs(job)
    with closing(open_lineage(job, data, manifest)) as lineage:
        sizes = {split: _queries(manifest, job.evaluate, split, in_training=in_training) for split in splits}
        return _load_baselines(lineage, job.evaluate, sizes, tuned)


def _queries(manifest: DatasetManifest, spec: EvaluateConfig, split: SplitName, *, in_training: bool) -> int | None:
    """Return the size of the sample; None if it is no smaller than the split, as all such samples are the same."""
    size = spec.queries_of(split, in_training=in_training)
    return None if size is None or size >= manifest.splits[split].rows else size


def _load_baselines(
    lineage: LineageReader,
    spec: EvaluateConfig,
    sizes: Mapping[SplitName, int | None],
    tuned: ProgressReporter | None,
) -> dict[str, Any]:
    kept = _Kept(lineage)
    quick, slow = _Baselines(lineage, spec), _TunedBaselines(lineage, spec, kept, tuned or NullReporter())
    found: dict[str, Any] = {"metrics": {split: {} for split in sizes}, "sums": {split: {} for split in sizes}}
    notes: list[str] = []
    for split, size in sizes.items():
        key = _key(split, spec, size)
        parts: dict[str, Callable[[], dict[str, Any]]] = {key: partial(quick.evaluate, split, size)}
        for name in TUNED:
            if f"{name}: {key}" in kept.results or (tuned is not None and not slow.excess_of(name)):
                parts[f"{name}: {key}"] = partial(slow.evaluate_tuned, name, split, size)
            elif tuned is not None:
                notes.append(f"{name} is not computed: {slow.excess_of(name)}")
        for part, evaluate in parts.items():
            try:
                result = kept.result(part, evaluate)
            except MissingExtraError as error:
                notes.append(str(error))
                continue
            found["metrics"][split] |= result["metrics"]
            found["sums"][split] |= result["sums"]
            notes += result["notes"]
    if "test" in sizes:
        notes += lineage.manifest.hold_out_notes()
    return {**found, "notes": list(dict.fromkeys(notes))}


def _key(split: SplitName, spec: EvaluateConfig, size: int | None) -> str:
    """Return what results depend on besides the dataset."""
    excluded = ", ".join(sorted(spec.excluded_from(split))) or "nothing"
    by = "" if spec.by == "query" else f", by {spec.by}"
    sample = "" if size is None else f", {size} queries"
    return f"{split}, without {excluded}, k {sorted(set(spec.k))}, {spec.best_metric}{by}{sample}"


class _Result(BaseModel):
    """The metrics of each baseline, the sums of its best metric by group of queries, and notes."""

    metrics: dict[str, dict[str, float]]
    sums: dict[str, list[float]]
    notes: list[str]


class _File(BaseModel):
    """The file that keeps results, and the best metric on valid of the settings that were tried, by baseline."""

    version: int
    fingerprint: int
    results: dict[str, _Result]
    tried: dict[str, dict[str, float]] = {}


class _Kept:
    """The results that are kept beside a dataset, by key; those of other versions of its lineage are left out."""

    def __init__(self, lineage: LineageReader) -> None:
        self._data = data = lineage.folder
        self._stamp: dict[str, Any] = {
            "version": _VERSION,
            "fingerprint": data_fingerprint(data),
        }
        self.results: dict[str, dict[str, Any]] = {}
        self.tried: dict[str, dict[str, float]] = {}
        # A file that cannot be read or written costs time and nothing else.
        with suppress(OSError, ValueError):
            found = None if data.on_s3 else validate_json(_File, data.read(BASELINES_FILE)).model_dump()
            if found is not None and found.items() >= self._stamp.items():
                self.results, self.tried = found["results"], found["tried"]

    def result(self, key: str, evaluate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of ``key``, which ``evaluate`` computes if it is not kept yet."""
        if key not in self.results:
            self.results[key] = evaluate()
            self.write()
        return self.results[key]

    def write(self) -> None:
        with suppress(OSError):
            if not self._data.on_s3:
                text = json.dumps({**self._stamp, "results": self.results, "tried": self.tried}) + "\n"
                self._data.write(BASELINES_FILE, text.encode())


class _Baselines:
    """Computes the baselines of a dataset."""

    def __init__(self, lineage: LineageReader, spec: EvaluateConfig) -> None:
        self._lineage, self._manifest, self._spec = lineage, lineage.manifest, spec

    def evaluate(self, split: SplitName, size: int | None) -> dict[str, Any]:
        """Return the results on ``size`` queries of ``split``, None: all, as ``_Result`` describes them."""
        rankings: dict[str, Ranking] = {"popularity": self._popularity}
        notes = []
        if self._manifest.has_timestamp and self._lineage.train_rows() <= MAX_INTERACTIONS:
            rankings["recent_popularity"] = self._recent_popularity
        if excess := self._excess():
            notes.append(f"item_cosine is not computed: {excess}")
        else:
            rankings["item_cosine"] = self._item_cosine
        return self._results(split, size, rankings, notes)

    def _results(
        self, split: SplitName, size: int | None, rankings: Mapping[str, Ranking], notes: list[str]
    ) -> dict[str, Any]:
        """Return the metrics of ``rankings`` by name, and their sums, and ``notes``."""
        every = max(1, -(-self._pairs(split, size) // MAX_PAIRS))
        held_out = load_held_out(self._lineage, split, self._spec, rank=0, workers=every, queries=size)
        sampled = [f"baselines rank for one query in {every}"] if every > 1 else []
        sums = {name: GroupSums(self._spec.best_metric) for name in rankings}
        metrics = {name: self._metrics(held_out, rank, sums[name]) for name, rank in rankings.items()}
        of_groups = {name: found.of_all(np.asarray).tolist() for name, found in sums.items()} if every == 1 else {}
        return {"metrics": metrics, "sums": of_groups, "notes": sampled + notes}

    def _pairs(self, split: SplitName, size: int | None) -> int:
        """Return about how many pairs are held out and excluded: as many for each row of the query entity."""
        pairs = self._manifest.splits[split].rows + self._lineage.known_rows(self._spec.excluded_from(split))
        rows = self._manifest.entities[self._manifest.query].rows
        return pairs if size is None else -(-pairs * min(size, rows) // rows)

    def _metrics(self, held_out: HeldOut, rank: Ranking, sums: GroupSums) -> EvalMetrics:
        depths = sorted(set(self._spec.k))
        hits = QuerySums(depths)
        for chunk in held_out.chunks(max(1, _MAX_RANKED // depths[-1])):
            best_item_QK = rank(chunk, depths[-1])
            hits.add(best_item_QK, chunk.truth)
            sums.observe(chunk, best_item_QK)
        metrics, errors = EvalMetrics(), EvalMetrics()
        for place, depth in enumerate(depths):
            metrics |= hits.means(place, f"@{depth}")
            errors |= hits.errors(place, f"@{depth}")
        return metrics | errors

    def _excess(self) -> str:
        """Return which limit of ``item_cosine`` the dataset exceeds; empty if none."""
        counts_R = self._counts(self._manifest.query)
        return self._above(
            (f"rows of {self._manifest.item}", self._manifest.entities[self._manifest.item].rows, MAX_ITEMS),
            (f"pairs of items of a {self._manifest.query}", int(np.square(counts_R).sum()), MAX_PRODUCTS),
        )

    def _above(self, *limits: tuple[str, int, int]) -> str:
        """Describe which of ``limits`` the dataset exceeds, and ``MAX_INTERACTIONS``; empty if none."""
        found = (("interactions in train", self._lineage.train_rows(), MAX_INTERACTIONS), *limits)
        return "; ".join(f"{number:,} {what}, of {limit:,} at most" for what, number, limit in found if number > limit)

    def _counts(self, entity: str) -> IntArray:
        return self._lineage.counts(entity)

    @cached_property
    def _order_I(self) -> IntArray:
        """The items, the most frequent first."""
        order_I = np.argsort(-self._counts(self._manifest.item), kind="stable")
        return order_I[~np.isin(order_I, self._manifest.entities[self._manifest.item].vacant_rows)]

    def _popularity(self, chunk: HeldOut, depth: int) -> IntArray:
        best_item_QK: IntArray = rank_in_order(self._order_I, chunk.excluded.starts_L1, chunk.excluded.values_N, depth)
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
        excluded = chunk.excluded.starts_L1, chunk.excluded.values_N
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
        excluded = chunk.excluded.starts_L1, chunk.excluded.values_N
        best_item_QK = np.full((len(chunk.queries_Q), depth), -1, np.int64)
        _share(len(best_item_QK), rank_by_neighbors, chunk.queries_Q, self._neighbors, excluded, best_item_QK)
        return best_item_QK


class _TunedBaselines(_Baselines):
    """Computes the baselines of ``tuned_baselines.py``, each with the settings that are best on valid."""

    def __init__(self, lineage: LineageReader, spec: EvaluateConfig, kept: _Kept, reporter: ProgressReporter) -> None:
        super().__init__(lineage, spec)
        self._kept, self._reporter = kept, reporter

    def evaluate_tuned(self, name: str, split: SplitName, size: int | None) -> dict[str, Any]:
        """Return the results of the baseline ``name``.

        Raises:
            MissingExtraError: its package is not installed.
        """
        model = TUNED[name](self._train_RI)
        settings = self._choose(name, model)
        chosen = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        notes = [f"{name}: {chosen}, chosen on valid by {self._spec.best_metric}"]
        return self._results(split, size, {name: self._ranking(model.fit(**settings))}, notes)

    def excess_of(self, name: str) -> str:
        """Describe why the baseline ``name`` cannot be computed; empty: it can."""
        if "valid" not in self._manifest.splits:
            return "its settings are chosen on the split valid, which the dataset does not have"
        entities = self._manifest.entities
        sides = {side: entities[side].rows for side in (self._manifest.query, self._manifest.item)}
        smaller = min(sides, key=lambda side: sides[side])
        return self._above(*([(f"rows of {smaller}", sides[smaller], MAX_SIDE)] if name == "ease" else []))

    @cached_property
    def _train_RI(self) -> Any:
        """The distinct pairs of train, as a sparse matrix of ones."""
        from scipy.sparse import csr_matrix

        shape = [self._manifest.entities[name].rows for name in (self._manifest.query, self._manifest.item)]
        query_N, item_N = np.divmod(train_pairs(self._lineage), shape[1])
        return csr_matrix((np.ones(len(item_N), np.float32), (query_N, item_N)), shape=shape)

    def _ranking(self, scores: Scores) -> Ranking:
        rankable_I = np.zeros(self._train_RI.shape[1], np.bool_)
        rankable_I[self._order_I] = True
        return partial(rank_by_scores, scores, rankable_I)

    def _choose(self, name: str, model: TunedBaseline) -> Settings:
        """Return the settings with the best metric on the queries of valid that training evaluates."""
        size = _queries(self._manifest, self._spec, "valid", in_training=True)
        metric = self._spec.best_metric
        at_cutoff = self._spec.model_copy(update={"k": [int(metric.partition("@")[2])]})
        tried = self._kept.tried.setdefault(f"{name}: {_key('valid', at_cutoff, size)}", {})

        def measure(settings: Settings) -> float:
            key = json.dumps(settings)
            if key not in tried:
                results = self._results("valid", size, {name: self._ranking(model.fit(**settings))}, [])
                tried[key] = results["metrics"][name][metric]
                self._kept.write()
            self._reporter.advance(1)
            return tried[key]

        self._reporter.phase(f"choose settings of {name} on valid", fits_of(model), "fit")
        return choose(model, measure)


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
