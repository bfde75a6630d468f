"""``crossfade evaluate``: judge the embeddings that a run wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
Examples:
  crossfade evaluate runs/lastfm                                   on the test split, as the run's job says
  crossfade evaluate runs/lastfm --split valid --k 5 100
  crossfade evaluate runs/lastfm --exclude train                   items of valid stay in the rankings
"""


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
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge, and print the metrics."""
    import json

    from crossfade.progress import print_metrics
    from trainer.job import check_job
    from trainer.run import evaluate_embeddings
    from trainer.run_folder import RunFolder

    folder = RunFolder(arguments.run_dir)
    values = folder.job().model_dump(mode="json")
    if arguments.k is not None:
        values["evaluate"].update(k=arguments.k, select=f"ndcg@{arguments.k[0]}")
    if arguments.exclude is not None:
        values["evaluate"]["exclude"] = arguments.exclude
    metrics = evaluate_embeddings(check_job(values, "the command line"), folder.embeddings, arguments.split)
    if arguments.json:
        print(json.dumps({arguments.split: metrics}))
    else:
        print_metrics({arguments.split: metrics})
    return 0
