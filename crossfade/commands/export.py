"""``crossfade export``: write the embeddings of a checkpoint in the format of ``crossfade train``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.options.command import add_command

if TYPE_CHECKING:
    from trainer.embeddings.export import ExportResult

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade export runs/lastfm --out exports/lastfm", "Export the newest complete checkpoint of a run."),
    (
        "crossfade export runs/large",
        "Write the embeddings of a job with save_embeddings: none to its run folder.",
    ),
    (
        "crossfade export s3://music/checkpoints/plays --out exports/plays --entity track",
        "Export one table from a folder of checkpoints on S3.",
    ),
)
_NOTES = """\
FROM is a run folder, a folder of checkpoints or one checkpoint; the latter two may be on S3. Of several checkpoints the
newest complete one is exported. It is named on stderr, with the reason why newer ones were skipped. The run may
still be training.

The files are those of 'crossfade train', OUT/ENTITY/rows-000000000000.parquet with id, row, vector and optionally name,
but of the checkpoint's step instead of the best one. For a run without embeddings (train.save_embeddings: none), OUT
defaults to its run folder, where 'crossfade similar' and 'crossfade evaluate' find them. For an entity with features
(model.item_features: [track, artist]) the vectors are the tower's output; each feature has its own.

Ids and names come from the dataset of the checkpoint: the one that its job names, or --data if it has moved; any other
dataset is rejected. Memory does not grow with the tables. Checksums (CRC-32) are verified. OUT is complete or, after an
error, absent.

Exit codes: 0 done; 1 the checkpoint is corrupt or cannot be read; 2 invalid input; 130 and 143 stopped.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "export",
        "write the embeddings of a checkpoint as Parquet",
        "Write the embeddings that a checkpoint holds as Parquet files.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    source = parser.add_argument_group("input")
    source.add_argument("source", metavar="FROM", help="read this run folder, folder of checkpoints, or checkpoint")
    source.add_argument("--entity", nargs="+", default=[], metavar="NAME", help="export these tables (default: all)")
    source.add_argument("--data", metavar="DATA", help="read IDs and names here (default: data.path of the job)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        metavar="OUT",
        help="write to this folder, which must not exist (default: RUN/embeddings if train.save_embeddings is none)",
    )
    output.add_argument("--overwrite", action="store_true", help="replace embeddings at OUT")
    output.add_argument("--json", action="store_true", help="print what was exported as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, and print the tables.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: there is no checkpoint, its dataset is missing, or OUT exists.
    """
    from crossfade.display import progress_bars
    from trainer.embeddings.export import ExportRequest, export

    request = ExportRequest(arguments.source, arguments.out, arguments.entity, arguments.data, arguments.overwrite)
    with progress_bars() as bars:
        exported = export(request, _logger.info, bars)
    if arguments.json:
        _print_json(exported)
    else:
        _print_lines(exported)
    return 0


def _print_json(exported: ExportResult) -> None:
    import json

    tables = [{"name": table.name, "rows": table.rows, "dim": table.dim} for table in exported.tables]
    print(json.dumps({**vars(exported), "out": str(exported.out), "tables": tables}))


def _print_lines(exported: ExportResult) -> None:
    width = max(len(table.name) for table in exported.tables)
    for table in exported.tables:
        print(f"{table.name:<{width}}  {table.rows:>13,} x {table.dim:<5}  {exported.out / table.name}")
