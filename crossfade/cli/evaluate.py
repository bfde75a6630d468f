"""``crossfade evaluate``: compute ranking metrics and label precision of a run, by segments, and compare two runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.cli.command import add_command
from crossfade.cli.options.history import add_history_option
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.evaluation.comparison import QueryMetrics, RunEmbeddings
    from crossfade.trainer.evaluation.label_precision import LabelPrecision
    from crossfade.trainer.runs.folder import RunFolder

_EXAMPLES = (
    ("crossfade evaluate runs/lastfm", "Evaluate on the test split, as the run's job specifies."),
    ("crossfade evaluate runs/lastfm --split valid --k 5 100", "Evaluate another split at other depths."),
    ("crossfade evaluate runs/lastfm --exclude train", "Keep items of the valid split in the rankings."),
    ("crossfade evaluate runs/plays --task repeat", "Rank all items, also those that a customer has heard already."),
    ("crossfade evaluate runs/lastfm --segments", "Compare customers who have listened a little and a lot."),
    ("crossfade evaluate runs/lastfm --segments 10 40", "Divide them at 10 and at 40 artists."),
    ("crossfade evaluate runs/kinds --segments kind", "Compare plays and likes, or other values of context."),
    ("crossfade evaluate runs/new --compare runs/old", "Test whether a run ranks better than another."),
    ("crossfade evaluate runs/lastfm --labels artist=tag", "Measure whether neighbors share a tag of the dataset."),
    (
        "crossfade evaluate runs/plays --labels track=songs.csv:id:genre --label-min-count 20",
        "Measure whether neighbors share a genre from a file, for tracks with 20 interactions.",
    ),
)
_PRECISIONS = {
    "precision": "by the embeddings",
    "precision_of_counts": "by the cosine of counts in train",
    "precision_by_chance": "by chance",
}

_NOTES = """\
Baselines are rankings by popularity, and by the sum of an item's cosines to those that the query has in train.

--segments groups queries by their interactions of positive weight in train: new has none, and casual, regular, and
heavy are thirds of the others; with N, segments start at each N; with a context entity of the dataset, they have the
queries of one value each (the eight most frequent in train), of other values, and of none.

Diversity is the mean of 1 - cosine between two items of a ranking, novelty the mean of -log2(share of queries that have
an item in train), and gini the inequality of how often items are ranked: 0 if all are equally often, 1 if all rankings
show one item.

--compare ranks for the same queries by OTHER_RUN, with the options and the evaluate section of RUN's job. Differences
are RUN less OTHER_RUN. p is that of a paired permutation test, by Holm's correction for the number of metrics; the
interval is a bootstrap over queries."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "evaluate",
        "evaluate the embeddings of a run",
        "Rank every item for every query with held-out items, and print the metrics beside those of two baselines.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    _add_rankings(parser)
    _add_comparisons(parser)
    labels = parser.add_argument_group("label precision")
    labels.add_argument(
        "--labels",
        metavar="ENTITY=FILE:ID_COLUMN:LABEL_COLUMN",
        help="print how many of the ten nearest neighbors share a label, compared with chance and with neighbors by "
        "raw counts; labels come from a Parquet, CSV or TSV file, or with ENTITY=FEATURE from the dataset",
    )
    labels.add_argument(
        "--label-min-count",
        type=int,
        default=1,
        metavar="N",
        help="with --labels: use only rows with N interactions of positive weight in train (default: 1)",
    )
    add_history_option(parser.add_argument_group("input"))
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.set_defaults(run=run)


def _add_rankings(parser: argparse.ArgumentParser) -> None:
    rankings = parser.add_argument_group("rankings")
    rankings.add_argument("run_dir", type=Path, metavar="RUN", help="evaluate the embeddings in this run folder")
    rankings.add_argument(
        "--split", choices=["train", "valid", "test"], default="test", help="evaluate on this split (default: test)"
    )
    rankings.add_argument(
        "--k", type=int, nargs="+", metavar="K", help="cut rankings at these depths (default: those of the job)"
    )
    rankings.add_argument(
        "--task",
        choices=["new", "repeat"],
        help="count held-out items that are new to a query, and rank no others that it has in an excluded split; or "
        "rank and count all (default: that of the job)",
    )
    rankings.add_argument(
        "--by",
        choices=["query", "moment"],
        help="judge all held-out items of a query together, or those of each timestamp by themselves, with the history "
        "before it (default: that of the job)",
    )
    rankings.add_argument(
        "--exclude",
        nargs="*",
        choices=["train", "valid", "test"],
        help="leave items of these splits out of the rankings with task new (default: those of the job)",
    )


def _add_comparisons(parser: argparse.ArgumentParser) -> None:
    segments = parser.add_argument_group("segments and comparison")
    segments.add_argument(
        "--segments",
        nargs="*",
        metavar="N|CONTEXT",
        help="print metrics, diversity and novelty by segments of queries, and the inequality of exposure; with N, "
        "start segments at these numbers of interactions in train (default: thirds); with a context entity, such as "
        "hour, divide queries by its value",
    )
    segments.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER_RUN",
        help="compare recall and ndcg with those of another run, query by query, and test the difference",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the metrics.

    Raises:
        InputError: an option or the job is invalid, the run has no embeddings or its dataset no such split, or the runs
            that are compared have different datasets.
    """
    from crossfade.base.errors import InputError
    from crossfade.trainer.evaluation.baselines import load_baselines
    from crossfade.trainer.evaluation.beyond_accuracy import load_segment_metrics
    from crossfade.trainer.evaluation.comparison import QueryMetrics, RunEmbeddings
    from crossfade.trainer.evaluation.from_files import evaluate_embeddings, evaluate_labels
    from crossfade.trainer.evaluation.labels import LabelSource
    from crossfade.trainer.evaluation.ranking import RankingObserver
    from crossfade.trainer.runs.folder import RunFolder

    folder = RunFolder(arguments.run_dir)
    job = _load_job(folder, arguments)
    if arguments.label_min_count < 1:
        raise InputError(f"--label-min-count {arguments.label_min_count}: expected 1 or more")
    source = LabelSource.parse(arguments.labels) if arguments.labels is not None else None
    this = RunEmbeddings(job, folder.embeddings)
    other = _open_other(this, arguments.compare) if arguments.compare is not None else None
    precision = evaluate_labels(job, folder.embeddings, source, arguments.label_min_count) if source else None
    observers: list[RankingObserver] = []
    if arguments.segments is not None:
        observers.append(segments := load_segment_metrics(job, folder.embeddings, arguments.segments))
    if other is not None:
        observers.append(queries := QueryMetrics(job.evaluate.k))
    results: dict[str, Any] = {
        "task": job.evaluate.task,
        arguments.split: evaluate_embeddings(job, folder.embeddings, arguments.split, observers=observers),
    }
    results["baselines"] = load_baselines(job, [arguments.split])
    if source:
        results["labels"] = {source.entity: precision}
    if arguments.segments is not None:
        results["segments"] = segments.metrics()
    if other is not None:
        results["comparison"] = _compare(queries, other, arguments)
    _print_results(results, arguments, job.evaluate.best_metric)
    return 0


def _open_other(this: RunEmbeddings, run_dir: Path) -> RunEmbeddings:
    """Return the run that ``this`` is compared with, to be evaluated by the same rules.

    Raises:
        InputError: it is not a run, or was trained on another dataset.
    """
    from crossfade.trainer.evaluation.comparison import RunEmbeddings, check_same_dataset
    from crossfade.trainer.runs.folder import RunFolder

    folder = RunFolder(run_dir)
    job = folder.job().model_copy(update={"evaluate": this.job.evaluate})
    other = RunEmbeddings(job, folder.embeddings)
    check_same_dataset(this, other)
    return other


def _compare(queries: QueryMetrics, other: RunEmbeddings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate ``other`` and compare it with the metrics of ``queries``."""
    from dataclasses import asdict

    from crossfade.trainer.evaluation.comparison import QueryMetrics, compare
    from crossfade.trainer.evaluation.from_files import evaluate_embeddings

    others = QueryMetrics(other.job.evaluate.k)
    evaluate_embeddings(other.job, other.embeddings, arguments.split, observers=[others])
    metrics = {name: asdict(found) for name, found in compare(queries, others).items()}
    return {"other": str(arguments.compare), "queries": len(queries.queries()), "metrics": metrics}


def _print_results(results: dict[str, Any], arguments: argparse.Namespace, best_metric: str) -> None:
    import json

    from crossfade.cli.evaluation_tables import print_comparison, print_segments
    from crossfade.display import print_metrics

    if arguments.json:
        print(json.dumps(results))
        return
    print_metrics({arguments.split: results[arguments.split]}, results["task"], best_metric, results["baselines"])
    if "segments" in results:
        print_line()
        print_segments(results["segments"])
    if "comparison" in results:
        print_line()
        print_comparison(results["comparison"], str(arguments.run_dir))
    for entity, found in results.get("labels", {}).items():
        _print_precision(entity, found)


def _load_job(folder: RunFolder, arguments: argparse.Namespace) -> JobConfig:
    """Load the job of the run, with the options of the command line in place of its ``evaluate`` section.

    Raises:
        InputError: an option is invalid, or conflicts with the task.
    """
    from crossfade.base.errors import InputError
    from crossfade.trainer.config.loading import check_job
    from crossfade.trainer.evaluation.from_files import with_depths

    job = folder.job()
    if arguments.k is not None:
        job = with_depths(job, arguments.k)
    values = job.model_dump(mode="json")
    if arguments.task is not None:
        values["evaluate"]["task"] = arguments.task
    if arguments.by is not None:
        values["evaluate"]["by"] = arguments.by
    if arguments.exclude is not None:
        values["evaluate"]["exclude_splits"] = arguments.exclude
    if arguments.history_from_this_dataset_only:
        values["data"]["history_from_this_dataset_only"] = True
    if arguments.exclude and values["evaluate"]["task"] == "repeat":
        raise InputError(
            f"--exclude {' '.join(arguments.exclude)}: the task repeat excludes nothing; add --task new, or leave out "
            "--exclude"
        )
    return check_job(values, "the command line")


def _print_precision(entity: str, found: LabelPrecision) -> None:
    sampled = "" if found["sampled"] == found["rows"] else f", sampled {found['sampled']:,}"
    print_line(
        f"share of the {found['neighbors']} nearest neighbors with a common label: {found['rows']:,} rows of {entity} "
        f"with {found['labels']:,} labels, each at least {found['min_count']:,} times in train{sampled}"
    )
    for name, method in _PRECISIONS.items():
        print_line(f"{found[name]:>8.4f}  {method}")
