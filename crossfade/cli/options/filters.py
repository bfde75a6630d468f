"""Options that filter recommended or similar rows, the same for all commands that have them."""

from __future__ import annotations

import argparse

from crossfade.cli.declared import add_options, read_options
from crossfade.trainer.recommend.options import ListFiles

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
    add_options(parser, ListFiles)


def read_filters(arguments: argparse.Namespace) -> ListFiles:
    """Read the options that ``add_filter_options`` added.

    Raises:
        OptionError: a value has another form.
    """
    return read_options(arguments, ListFiles)
