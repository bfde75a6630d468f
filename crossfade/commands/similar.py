"""``crossfade similar``: the nearest neighbours of a few rows, by name."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
Examples:
  crossfade similar runs/lastfm --entity artist "Radiohead" "Daft Punk"
  crossfade similar runs/plays --entity track 1234 --count 5

A row is named by its id or, where the data was prepared with --names, by its name (upper and lower case are the same).
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "similar",
        help="print the nearest neighbours of a few items or queries",
        description="Print the nearest neighbours, by the cosine of their embeddings.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("names", nargs="+", metavar="NAME", help="names or ids")
    parser.add_argument("--entity", help="which table (default: the item side of the run's job)")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="neighbours to print (default: 8)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the neighbours of each name."""
    from kvstore.errors import InputError
    from trainer.evaluation.neighbors import NearestNeighbors
    from trainer.runs.folder import RunFolder
    from trainer.runs.inputs import open_inputs

    if arguments.count < 1:
        raise InputError(f"--count {arguments.count}: expected 1 or more")
    folder = RunFolder(arguments.run_dir)
    job = folder.job()
    entity = arguments.entity or open_inputs(job)[1].item
    neighbors = NearestNeighbors(folder.embeddings, entity)
    # All names are looked up before anything is printed: a misspelt one is an error and not half an answer.
    for row in [neighbors.find(name) for name in arguments.names]:
        print(neighbors.label(row))
        for other, cosine in neighbors.nearest(row, arguments.count):
            print(f"  {cosine:6.3f}  {neighbors.label(other)}")
    return 0
