"""``crossfade similar``: print the nearest neighbors of rows that are given by name or ID."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.cli.command import add_command
from crossfade.cli.options.filters import NOTES as FILTER_NOTES
from crossfade.cli.options.filters import add_filter_options, read_filters
from crossfade.cli.options.history import add_history_option
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.trainer.recommend.candidates import FilterOptions
    from crossfade.trainer.recommend.trained_model import TrainedModel

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ('crossfade similar runs/lastfm --entity artist "Radiohead" "Daft Punk"', "Look rows up by name."),
    ("crossfade similar runs/plays --entity track 1234 -k 5", "Look a row up by ID, and print five neighbors."),
    (
        'crossfade similar runs/lastfm "Miles Davis" --where "NOT list_contains(tag, \'jazz\')"',
        "Print neighbors outside jazz.",
    ),
    ("crossfade similar runs/plays 1234 --index indexes/tracks", "Search an index that 'crossfade index' built."),
)
_NOTES = f"""\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. The embeddings of a run are
used if it has written any, otherwise its newest complete checkpoint.

A row is named by its ID or, if the dataset was prepared with --names, by its name, in any case and with or without
accents; or by a part of its ID, such as the title, if that joins several columns. If several rows have the name or
part, they are listed, and the first is used. Similarity is the cosine of embeddings.
Items and customers without an interaction of positive weight in train are left out, unless they have features: their
vectors are random. With --index, some of the nearest rows may be missing.

{FILTER_NOTES}"""


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
    rows.add_argument("source", metavar="FROM", help="read this run folder, folder of checkpoints, or checkpoint")
    rows.add_argument("names", nargs="+", metavar="NAME", help="look up this name or ID")
    rows.add_argument("--entity", help="search this table (default: the item entity of the run's job)")
    rows.add_argument("--data", metavar="DATA", help="read IDs and names here (default: data.path of the job)")
    add_history_option(rows)
    rows.add_argument(
        "--index", type=Path, metavar="FOLDER", help="search this index, by cosine, instead of all rows exactly"
    )
    add_filter_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-k", type=int, default=8, metavar="N", help="print N neighbors of each row (default: 8)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the neighbors of each name.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: a name is unknown, or the model has no embeddings of the entity.
    """
    from crossfade.base.errors import InputError
    from crossfade.trainer.recommend.trained_model import with_trained_model

    if arguments.k < 1:
        raise InputError(f"-k {arguments.k}: expected 1 or more")
    filters = read_filters(arguments)
    with_trained_model(
        arguments.source,
        arguments.data,
        _logger.info,
        lambda model: _print_similar(model, filters, arguments),
        history_from_this_dataset_only=arguments.history_from_this_dataset_only,
    )
    return 0


def _print_similar(model: TrainedModel, filters: FilterOptions, arguments: argparse.Namespace) -> None:
    import numpy as np

    from crossfade.trainer.recommend.row_names import RowNames, distinct_labels
    from crossfade.trainer.recommend.similar import similar_rows

    entity = arguments.entity or model.spec.item.name
    names = RowNames(model.vocabulary(entity), entity)
    # All names are looked up before anything is printed: a misspelled one is an error, not half an answer.
    rows = names.find(arguments.names, _logger.warning)
    rows_QK, cosine_QK = similar_rows(model, entity, np.array(rows, np.int64), arguments.k, filters, arguments.index)
    labels = distinct_labels(names.labels(np.concatenate([rows, rows_QK[rows_QK >= 0]])))
    for row, other_K, cosine_K in zip(rows, rows_QK, cosine_QK, strict=True):
        print_line(labels[row])
        for other, cosine in zip(other_K, cosine_K, strict=True):
            if other >= 0:
                print_line(f"  {cosine:6.3f}  {labels[int(other)]}")
