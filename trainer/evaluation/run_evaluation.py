"""Evaluate a run: the metrics of its rankings, by segments of queries, and compared with another run.

    evaluate_run(EvaluateOptions.of(source="runs/lastfm", split="valid"))["valid"]["ndcg@10"]

Shapes: G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import Option, OptionError
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.evaluation.beyond_accuracy import ALL, SegmentValues, load_segment_metrics
from crossfade.trainer.evaluation.comparison import QueryMetrics, RunEmbeddings, check_same_dataset, compare
from crossfade.trainer.evaluation.options import EvaluateOptions
from crossfade.trainer.evaluation.paired_gain import GroupSums
from crossfade.trainer.evaluation.ranking import Alone, EvalMetrics, RankingObserver, evaluate_embeddings
from crossfade.trainer.evaluation.shortfall import compare_with_baselines
from crossfade.trainer.runs.run_folder import RunFolder


def evaluate_run(options: EvaluateOptions, reporter: ProgressReporter | None = None) -> dict[str, Any]:
    """Return the metrics of a run by split, of baselines and, as ``options`` say, of segments.

    ``reporter`` gets the progress of tuning baselines.

    Raises:
        InputError: an option or the job is invalid, the run has no embeddings or its dataset no such split, or the runs
            that are compared have different datasets.
    """
    folder, job = RunFolder(Path(options.source)), job_for(options)
    other = _open_other(RunEmbeddings(job, folder.embeddings), options) if options.compare is not None else None
    queries = [] if other is None else [QueryMetrics(job.evaluate.k)]
    ranked = _rank(options, job, folder, queries)
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
    observers: Sequence[RankingObserver] = (),
) -> _Ranked:
    split = options.split
    of_segments = (
        [load_segment_metrics(job, folder.embeddings, options.segments)] if options.segments is not None else []
    )
    shown = [load_segment_metrics(job, folder.embeddings, []) for _ in range(2 if options.is_reranked else 0)]
    sums = GroupSums(job.evaluate.best_metric)
    own: list[RankingObserver] = [sums, *of_segments, *shown[:1], *observers]
    metrics = evaluate_embeddings(job, folder.embeddings, split, observers=own, reranking=options)
    reranking = None
    if options.is_reranked:
        of_model = evaluate_embeddings(job, folder.embeddings, split, observers=shown[1:])
        reranking = {"model": shown[1].metrics()[ALL] | of_model, "reranked": shown[0].metrics()[ALL] | metrics}
    segments = of_segments[0].metrics() if of_segments else None
    return _Ranked(metrics, sums.of_all(Alone().all_reduce), segments, reranking)


def evaluate_rankings(options: EvaluateOptions) -> EvalMetrics:
    """Return the metrics of a run alone, without baselines, segments, and other runs.

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
