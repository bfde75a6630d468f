"""``crossfade evaluate``: compute ranking metrics and label precision of the embeddings of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.options.command import add_command

if TYPE_CHECKING:
    from trainer.config.schema import JobConfig
    from trainer.evaluation.label_precision import LabelPrecision
    from trainer.runs.folder import RunFolder

_EXAMPLES = (
    ("crossfade evaluate runs/lastfm", "Evaluate on the test split, as the run's job specifies."),
    ("crossfade evaluate runs/lastfm --split valid --k 5 100", "Evaluate another split at other depths."),
    ("crossfade evaluate runs/lastfm --exclude train", "Keep items of the valid split in the rankings."),
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


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "evaluate",
        "evaluate the embeddings of a run",
        "Rank every item for every query with held-out items, and print the metrics of the rankings.",
        examples=_EXAMPLES,
    )
    rankings = parser.add_argument_group("rankings")
    rankings.add_argument("run_dir", type=Path, metavar="RUN", help="evaluate the embeddings in this run folder")
    rankings.add_argument(
        "--split", choices=["train", "valid", "test"], default="test", help="evaluate on this split (default: test)"
    )
    rankings.add_argument(
        "--k", type=int, nargs="+", metavar="K", help="cut rankings at these depths (default: those of the job)"
    )
    rankings.add_argument(
        "--exclude",
        nargs="*",
        choices=["train", "valid", "test"],
        help="leave items of these splits out of the rankings (default: those of the job)",
    )
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
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the metrics.

    Raises:
        InputError: an option or the job is invalid, or the run has no embeddings or its dataset no such split.
    """
    import json

    from crossfade.display import print_metrics
    from kvstore.errors import InputError
    from trainer.evaluation.from_files import evaluate_embeddings, evaluate_labels
    from trainer.evaluation.labels import LabelSource
    from trainer.runs.folder import RunFolder

    folder = RunFolder(arguments.run_dir)
    job = _load_job(folder, arguments)
    if arguments.label_min_count < 1:
        raise InputError(f"--label-min-count {arguments.label_min_count}: expected 1 or more")
    source = LabelSource.parse(arguments.labels) if arguments.labels is not None else None
    precision = evaluate_labels(job, folder.embeddings, source, arguments.label_min_count) if source else None
    metrics = evaluate_embeddings(job, folder.embeddings, arguments.split)
    if arguments.json:
        labels = {"labels": {source.entity: precision}} if source else {}
        print(json.dumps({arguments.split: metrics, **labels}))
        return 0
    print_metrics({arguments.split: metrics})
    if source and precision:
        _print_precision(source.entity, precision)
    return 0


def _load_job(folder: RunFolder, arguments: argparse.Namespace) -> JobConfig:
    """Load the job of the run, with the options of the command line in place of its ``evaluate`` section."""
    from trainer.config.loading import check_job

    values = folder.job().model_dump(mode="json")
    if arguments.k is not None:
        values["evaluate"].update(k=arguments.k, best_metric=f"ndcg@{arguments.k[0]}")
    if arguments.exclude is not None:
        values["evaluate"]["exclude_splits"] = arguments.exclude
    return check_job(values, "the command line")


def _print_precision(entity: str, found: LabelPrecision) -> None:
    sampled = "" if found["sampled"] == found["rows"] else f", sampled {found['sampled']:,}"
    print(
        f"share of the {found['neighbors']} nearest neighbors with a common label: {found['rows']:,} rows of {entity} "
        f"with {found['labels']:,} labels, each at least {found['min_count']:,} times in train{sampled}"
    )
    for name, method in _PRECISIONS.items():
        print(f"{found[name]:>8.4f}  {method}")
