"""``crossfade evaluate``: judge the embeddings that a run wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.evaluation.label_precision import Found

_EPILOG = """\
Examples:
  crossfade evaluate runs/lastfm                                   on the test split, as the run's job says
  crossfade evaluate runs/lastfm --split valid --k 5 100
  crossfade evaluate runs/lastfm --exclude train                   items of valid stay in the rankings
  crossfade evaluate runs/lastfm --labels artist=tag               do neighbours share a tag, a feature of the data?
  crossfade evaluate runs/plays --labels track=songs.csv:id:genre --label-min-count 20
                                                                   or a genre that a file has, of tracks that are known
"""
_PRECISIONS = {
    "precision": "by the embeddings",
    "precision_of_counts": "by the cosine of counts in train",
    "precision_by_chance": "by chance",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="judge the embeddings that a run wrote",
        description="Rank every item for every query that has held-out items, and print how good the rankings are.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--split", choices=["train", "valid", "test"], default="test", help="default: test")
    parser.add_argument("--k", type=int, nargs="+", metavar="K", help="depths (default: as in the job)")
    parser.add_argument(
        "--exclude",
        nargs="*",
        choices=["train", "valid", "test"],
        help="splits left out of rankings (default: as in the job)",
    )
    parser.add_argument(
        "--labels",
        metavar="ENTITY=FILE:ID_COLUMN:LABEL_COLUMN",
        help="also print how many of the ten nearest rows have a label in common, against chance and against the "
        "nearest by raw counts; a Parquet, CSV or TSV file, or ENTITY=FEATURE for a feature of the data",
    )
    parser.add_argument(
        "--label-min-count",
        type=int,
        default=1,
        metavar="N",
        help="with --labels: only rows with N interactions of positive weight in train (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge, and print the metrics."""
    import json

    from crossfade.display import print_metrics
    from kvstore.errors import InputError
    from trainer.config.loading import check_job
    from trainer.evaluation.from_files import evaluate_embeddings, evaluate_labels
    from trainer.evaluation.labels import LabelSource
    from trainer.runs.folder import RunFolder

    folder = RunFolder(arguments.run_dir)
    values = folder.job().model_dump(mode="json")
    if arguments.k is not None:
        values["evaluate"].update(k=arguments.k, select=f"ndcg@{arguments.k[0]}")
    if arguments.exclude is not None:
        values["evaluate"]["exclude_splits"] = arguments.exclude
    job = check_job(values, "the command line")
    if arguments.label_min_count < 1:
        raise InputError(f"--label-min-count {arguments.label_min_count}: expected 1 or more")
    wanted = LabelSource.parse(arguments.labels) if arguments.labels is not None else None
    found = evaluate_labels(job, folder.embeddings, wanted, arguments.label_min_count) if wanted else None
    metrics = evaluate_embeddings(job, folder.embeddings, arguments.split)
    if arguments.json:
        labels = {"labels": {wanted.entity: found}} if wanted else {}
        print(json.dumps({arguments.split: metrics, **labels}))
        return 0
    print_metrics({arguments.split: metrics})
    if wanted and found:
        _print_labels(wanted.entity, found)
    return 0


def _print_labels(entity: str, found: Found) -> None:
    asked = "" if found["asked"] == found["rows"] else f", of which {found['asked']:,} ask"
    print(
        f"of the {found['neighbours']} nearest, the share with a label in common: {found['rows']:,} rows of {entity} "
        f"with {found['labels']:,} labels, each {found['least']:,} times in train at the least{asked}"
    )
    for name, said in _PRECISIONS.items():
        print(f"{found[name]:>8.4f}  {said}")
