"""Evaluate a run: the metrics of its rankings, by segments of queries, compared with another run, and by labels.

    evaluate_run(EvaluateOptions.of(source="runs/lastfm", split="valid"))["valid"]["ndcg@10"]

Shards are workers that do not run together: each records what it would sum with the others, in
OUT/sums-00002-of-00016.npy. Merging them is the evaluation of a worker without queries, for which these are summed.

Shapes: G groups, N values.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import InputError, Option, OptionError
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import data_fingerprint, read_manifest
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.evaluation.beyond_accuracy import ALL, SegmentValues, load_segment_metrics
from crossfade.trainer.evaluation.comparison import QueryMetrics, RunEmbeddings, check_same_dataset, compare
from crossfade.trainer.evaluation.label_precision import LabelPrecision, label_precision
from crossfade.trainer.evaluation.labels import read_labels
from crossfade.trainer.evaluation.options import EvaluateOptions, LabelSource, RerankingOptions
from crossfade.trainer.evaluation.paired_gain import GroupSums
from crossfade.trainer.evaluation.ranking import Alone, EvalMetrics, RankingObserver, Workers, evaluate_embeddings
from crossfade.trainer.evaluation.shortfall import compare_with_baselines
from crossfade.trainer.runs.job_inputs import open_inputs, open_lineage
from crossfade.trainer.runs.options import Shard
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.runs.shards import ShardFolder, shard_errors

_MAX_BYTES = 1 << 34
"""Of the sums of a shard: eight for a dozen items, or for one with segments, at each depth."""
_LABEL_SEED = 1
"""The seed of the sample of rows whose labels are compared, so that runs with other seeds are measured on the same."""


def evaluate_run(options: EvaluateOptions, reporter: ProgressReporter | None = None) -> dict[str, Any]:
    """Return the metrics of a run by split, those of baselines and, as ``options`` say, of segments and labels.

    ``reporter`` gets the progress of tuning baselines.

    Raises:
        InputError: an option or the job is invalid, the run has no embeddings or its dataset no such split, or the runs
            that are compared have different datasets.
    """
    folder, job = RunFolder(Path(options.source)), job_for(options)
    other = _open_other(RunEmbeddings(job, folder.embeddings), options) if options.compare is not None else None
    labels = options.labels
    precision = evaluate_labels(job, folder.embeddings, labels, options.label_min_count) if labels else None
    shards = _MergedSums(options, job, folder) if options.merge else None
    queries = [] if other is None else [QueryMetrics(job.evaluate.k)]
    ranked = _rank(options, job, folder, shards, queries)
    results: dict[str, Any] = {"task": job.evaluate.task, options.split: ranked.metrics}
    if ranked.reranking is not None:
        results["reranking"] = ranked.reranking
    results["baselines"] = compare_with_baselines(
        job,
        {options.split: ranked.metrics},
        {options.split: ranked.sums_G},
        tuned=(reporter or NullReporter()) if options.baselines else None,
        reranking=options,
    )
    if labels:
        results["labels"] = {labels.entity: precision}
    if ranked.segments is not None:
        results["segments"] = ranked.segments
    if other is not None:
        results["comparison"] = {"other": options.compare, **_compare(queries[0], other, options)}
    return results


class _Ranked(NamedTuple):
    """What the rankings of a run have given."""

    metrics: EvalMetrics
    sums_G: FloatArray
    segments: dict[str, SegmentValues] | None
    reranking: dict[str, Any] | None


def _rank(
    options: EvaluateOptions,
    job: JobConfig,
    folder: RunFolder,
    among: Workers | None,
    observers: Sequence[RankingObserver] = (),
) -> _Ranked:
    """Rank for the queries that are divided ``among`` several, or for all. What is summed, and when, is always same."""
    all_reduce, split = (among or Alone()).all_reduce, options.split
    of_segments = (
        [load_segment_metrics(job, folder.embeddings, options.segments)] if options.segments is not None else []
    )
    shown = [load_segment_metrics(job, folder.embeddings, []) for _ in range(2 if options.is_reranked else 0)]
    sums = GroupSums(job.evaluate.best_metric)
    own: list[RankingObserver] = [sums, *of_segments, *shown[:1], *observers]
    metrics = evaluate_embeddings(job, folder.embeddings, split, among, own, reranking=options)
    reranking = None
    if options.is_reranked:
        of_model = evaluate_embeddings(job, folder.embeddings, split, among, shown[1:])
        for each in shown:
            each.add_others(all_reduce)
        reranking = {"model": shown[1].metrics()[ALL] | of_model, "reranked": shown[0].metrics()[ALL] | metrics}
    for each in of_segments:
        each.add_others(all_reduce)
    segments = of_segments[0].metrics() if of_segments else None
    return _Ranked(metrics, sums.of_all(all_reduce), segments, reranking)


def evaluate_shard(options: EvaluateOptions, shard: Shard) -> int:
    """Rank for the queries of ``shard``, and write their sums to the folder ``out``, unless it has them; return how
    many queries they are.

    Raises:
        CrossfadeError: the folder cannot be written.
        InputError: as ``evaluate_run``, or the folder has shards of another request.
    """
    job, folder, out = job_for(options), RunFolder(Path(options.source)), Folder(str(options.out))
    shards = ShardFolder(out, "evaluate", _made_from(options, job, folder))
    found, name = shards.begin(shard), f"sums-{shards.name(shard)}.npy"
    with shard_errors(out):
        is_there = out.exists(name)
    if found is None or not is_there:
        sums = _ShardSums(shard)
        ranked, content = _rank(options, job, folder, sums), BytesIO()
        np.save(content, np.concatenate(sums.recorded))
        with shard_errors(out):
            out.write(name, content.getvalue())
        found = {"queries": ranked.metrics["queries"], "file": name, "crc32": zlib.crc32(content.getvalue())}
        shards.complete(shard, found)
    queries: int = found["queries"]
    return queries


def _made_from(options: EvaluateOptions, job: JobConfig, folder: RunFolder) -> dict[str, Any]:
    """Return what sums depend on, as JSON."""
    data, _, _, _ = open_inputs(job)
    of_options = {"split", "segments", *RerankingOptions.model_fields}
    return {
        "vectors": EmbeddingFiles(folder.embeddings).fingerprint(),
        "data": data_fingerprint(data),
        "model": job.model.model_dump(mode="json"),
        "evaluate": job.evaluate.model_dump(mode="json"),
        "options": options.model_dump(mode="json", include=of_options),
    }


class _ShardSums:
    """Records what a shard would sum with the others, were they there; a ``Workers``."""

    def __init__(self, shard: Shard) -> None:
        self.rank, self.workers = shard.number - 1, shard.count
        self.recorded: list[FloatArray] = []

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Record ``values_N``, and return them."""
        self.recorded.append(np.array(values_N, np.float64))
        return values_N


class _MergedSums:
    """A worker without queries, which the recorded values of all shards are summed for; a ``Workers``."""

    rank = sys.maxsize

    def __init__(self, options: EvaluateOptions, job: JobConfig, folder: RunFolder) -> None:
        """Read the values of all shards.

        Raises:
            InputError: one is missing, incomplete, damaged, or of another request.
        """
        out = Folder(str(options.out))
        results = ShardFolder(out, "evaluate", _made_from(options, job, folder)).results()
        self.workers, self._place, self._sums_N = len(results), 0, np.zeros(0)
        for result in results:
            uri, again = f"{out.uri}/{result['file']}", "delete it, and repeat its shard"
            with translate_storage_errors(uri, action="read", if_missing="no such file; repeat its shard"):
                content = out.read(result["file"], _MAX_BYTES)
            if zlib.crc32(content) != result["crc32"]:
                raise InputError(f"{uri}: is damaged: its CRC-32 is not that of its shard; {again}")
            values_N = np.load(BytesIO(content), allow_pickle=False)
            self._sums_N = values_N + (self._sums_N if len(self._sums_N) else 0)

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Return the sums of what each shard recorded at this place."""
        first, self._place = self._place, self._place + len(values_N)
        return self._sums_N[first : self._place]


def evaluate_rankings(options: EvaluateOptions) -> EvalMetrics:
    """Return the metrics of a run alone, without baselines, segments, labels, and other runs.

    Raises:
        InputError: as ``evaluate_run``.
    """
    embeddings = RunFolder(Path(options.source)).embeddings
    return evaluate_embeddings(job_for(options), embeddings, options.split, reranking=options)


def job_for(options: EvaluateOptions) -> JobConfig:
    """Return the job of the run, with ``options`` in place of its ``evaluate`` section.

    Raises:
        InputError: an option is invalid, or conflicts with the task.
    """
    values = RunFolder(Path(options.source)).job().model_dump(mode="json")
    evaluation = {
        "task": options.task,
        "by": options.by,
        "exclude_splits": options.exclude,
        "final": options.max_queries,
    }
    values["evaluate"].update({name: value for name, value in evaluation.items() if value is not None})
    values["data"].update(options.data_changes)
    if options.k is not None:
        # A depth of more items than there are means all of them.
        manifest = read_manifest(Folder(values["data"]["path"]))
        items = manifest.entities[manifest.item].rows
        depths = list(dict.fromkeys(min(depth, items) for depth in options.k))
        values["evaluate"].update(k=depths, best_metric=f"ndcg@{depths[0]}")
    if options.exclude and values["evaluate"]["task"] == "repeat":
        raise OptionError(
            "exclude",
            found=" ".join(options.exclude),
            problem="the task repeat excludes nothing",
            fix=("add ", Option("task", "new"), ", or leave out ", Option("exclude")),
        )
    return check_job(values, "the command line")


def _open_other(this: RunEmbeddings, options: EvaluateOptions) -> RunEmbeddings:
    """Return the run that ``options`` compare ``this`` with, to be evaluated by the same rules.

    Raises:
        InputError: it is not a run, or was trained on another dataset.
    """
    folder = RunFolder(Path(str(options.compare)))
    job = folder.job()
    data = job.data.model_copy(update=options.data_changes)
    other = RunEmbeddings(job.model_copy(update={"data": data, "evaluate": this.job.evaluate}), folder.embeddings)
    check_same_dataset(this, other)
    return other


def _compare(queries: QueryMetrics, other: RunEmbeddings, options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate ``other`` and compare it with the metrics of ``queries``."""
    others = QueryMetrics(other.job.evaluate.k)
    evaluate_embeddings(other.job, other.embeddings, options.split, observers=[others])
    metrics = {name: asdict(found) for name, found in compare(queries, others).items()}
    return {"queries": len(queries.queries()), "metrics": metrics}


def evaluate_labels(job: JobConfig, embeddings: Path | Folder, labels: LabelSource, min_count: int) -> LabelPrecision:
    """Measure how often neighbors share a label (``label_precision.py``), among rows with ``min_count`` in train.

    Raises:
        InputError: the dataset, the embeddings or the labels cannot be read, or too few rows have labels.
    """
    data, manifest, model, _ = open_inputs(job)
    pairs = read_labels(data, manifest, labels)
    with closing(open_lineage(job, data, manifest)) as lineage:
        source, counts_R = EmbeddingFiles(embeddings), lineage.counts(labels.entity)
        return label_precision(
            source, model, lineage, labels.entity, pairs, counts_R, min_count=min_count, seed=_LABEL_SEED
        )
