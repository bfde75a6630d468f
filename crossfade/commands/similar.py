"""``crossfade similar``: print the nearest neighbors of rows that are given by name or ID."""

from __future__ import annotations

import argparse
from pathlib import Path

from crossfade.options.command import add_command

_EXAMPLES = (
    ('crossfade similar runs/lastfm --entity artist "Radiohead" "Daft Punk"', "Look rows up by name."),
    ("crossfade similar runs/plays --entity track 1234 --count 5", "Look a row up by ID, and print five neighbors."),
)
_NOTES = """\
A row is named by its ID or, if the dataset was prepared with --names, by its name in upper or lower case. Similarity
is the cosine of embeddings.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "similar",
        "print the nearest neighbors of items or queries",
        "Print the nearest neighbors of rows by the cosine of their embeddings.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument("run_dir", type=Path, metavar="RUN", help="read the embeddings in this run folder")
    rows.add_argument("names", nargs="+", metavar="NAME", help="look up this name or ID")
    rows.add_argument("--entity", help="search this table (default: the item entity of the run's job)")
    output = parser.add_argument_group("output")
    output.add_argument("--count", type=int, default=8, metavar="N", help="print N neighbors of each row (default: 8)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the neighbors of each name.

    Raises:
        InputError: a name is unknown, or the run has no embeddings of the entity.
    """
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
    # All names are looked up before anything is printed: a misspelled one is an error, not half an answer.
    for row in [neighbors.find(name) for name in arguments.names]:
        print(neighbors.label(row))
        for other, cosine in neighbors.nearest(row, arguments.count):
            print(f"  {cosine:6.3f}  {neighbors.label(other)}")
    return 0
