"""Options that filter recommended or similar rows, the same for all commands that have them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError

if TYPE_CHECKING:
    from crossfade.trainer.recommend.candidates import FilterOptions
    from crossfade.trainer.recommend.metadata_table import MetadataFile

NOTES = """\
Filters: CONDITION is an SQL expression of DuckDB. Its columns are id, name and count (interactions of positive weight
in train), each feature of the dataset, as a list of its values, and those of the --metadata file. The message for a
function that is not accepted lists those that are:

  --where "count >= 100"
  --where "list_contains(tag, 'jazz')"
  --where "genre = 'jazz' AND year > 1990" --metadata songs.csv

A metadata file may have several lines for an ID; one of them must meet the condition. Files of --allow and --deny have
one ID per line or, as Parquet, CSV or TSV, a column named as the entity.
"""


def add_filter_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``parser``."""
    filters = parser.add_argument_group("filters")
    filters.add_argument("--where", metavar="CONDITION", help="keep only rows that meet this SQL condition")
    add_metadata_options(filters, "use the columns of this Parquet, CSV or TSV file in conditions and groups")
    filters.add_argument("--allow", nargs="+", default=[], metavar="FILE", help="keep only the IDs in these files")
    filters.add_argument("--deny", nargs="+", default=[], metavar="FILE", help="leave out the IDs in these files")
    filters.add_argument(
        "--max-per", metavar="COLUMN=N", help="list at most N rows with the same value, such as artist=2"
    )


def add_metadata_options(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Add the options that name a file of metadata; ``purpose`` is the help of --metadata."""
    parser.add_argument("--metadata", metavar="FILE", help=purpose)
    parser.add_argument(
        "--metadata-id",
        metavar="COLUMN",
        help="take IDs from this column of the metadata (default: the one named as the entity, ENTITY_id, or id)",
    )


def read_metadata(arguments: argparse.Namespace) -> MetadataFile | None:
    """Read the options that ``add_metadata_options`` added.

    Raises:
        InputError: a column is named, but no file.
    """
    from crossfade.trainer.recommend.metadata_table import MetadataFile

    if arguments.metadata_id is not None and arguments.metadata is None:
        raise InputError(f"--metadata-id {arguments.metadata_id}: is a column of a file; name the file with --metadata")
    return MetadataFile(arguments.metadata, arguments.metadata_id) if arguments.metadata is not None else None


def read_filters(arguments: argparse.Namespace) -> FilterOptions:
    """Read the options that ``add_filter_options`` added.

    Raises:
        InputError: a value has another form.
    """
    from crossfade.trainer.recommend.candidates import FilterOptions

    metadata = read_metadata(arguments)
    max_per = None
    if arguments.max_per is not None:
        column, _, number = arguments.max_per.partition("=")
        if not column or not number.isdecimal() or int(number) < 1:
            raise InputError(f"--max-per {arguments.max_per}: expected COLUMN=N with N of 1 or more, such as artist=2")
        max_per = column, int(number)
    return FilterOptions(arguments.where, metadata, arguments.allow, arguments.deny, max_per)
