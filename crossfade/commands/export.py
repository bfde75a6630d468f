"""``crossfade export``: embeddings from a checkpoint, in the files that training writes."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.embeddings.export import Exported

_logger = logging.getLogger(__name__)

_EPILOG = """\
Examples:
  crossfade export runs/lastfm --out exports/lastfm                      the newest whole checkpoint of a run
  crossfade export runs/large                                            of a job with train.save_embeddings: none
  crossfade export runs/lastfm/checkpoints/step-000000123 --out exports/at-123
  crossfade export s3://music/checkpoints/plays --out exports/plays --entity track

FROM is a run folder (wherever its job has its checkpoints), a folder of checkpoints, or one checkpoint; a folder of
checkpoints and a checkpoint may be on S3. Of several checkpoints the newest whole one is exported; it is named on
stderr, and so is why newer ones were passed over. The run may go on meanwhile.

'crossfade train' writes the embeddings that did best on the valid split; these are those of the checkpoint's step.
The files are the same: OUT/ENTITY/rows-000000000000.parquet with id, row, vector and, where there are names, name.
A run whose job says train.save_embeddings: none has none of its own, so they go to its folder if nothing else is said,
where 'crossfade similar' and 'crossfade evaluate' find them.

Of a side with features (model.item_features: [track, artist]) the vectors are those of the whole side, as searches want them,
and each feature has its own.

Ids and names come from the data that the checkpoint was trained on: the folder that its job names, or the one that
--data names if they have moved. Other data are refused. A table is never held whole, so memory does not grow with it.
What is read is checked (CRC-32), and OUT is there whole or, after an error, not at all.

Exit codes: 0 done; 1 the checkpoint is damaged or cannot be read; 2 the input is wrong; 130 and 143 stopped.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "export",
        help="write the embeddings of a checkpoint as Parquet",
        description="Write the embeddings that a checkpoint holds as Parquet files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FROM", help="run folder, folder of checkpoints, or checkpoint")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT",
        help="folder to write, which must not exist (default: RUN/embeddings of a job with train.save_embeddings: none)",
    )
    parser.add_argument("--entity", nargs="+", default=[], metavar="NAME", help="tables to export (default: all)")
    parser.add_argument("--data", metavar="DATA", help="where the data of the checkpoint's job are now")
    parser.add_argument("--overwrite", action="store_true", help="replace embeddings that are at OUT")
    parser.add_argument("--json", action="store_true", help="print what was exported as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, and print what."""
    from crossfade.display import ProgressBars
    from trainer.embeddings.export import Request, export

    request = Request(arguments.source, arguments.out, arguments.entity, arguments.data, arguments.overwrite)
    bars = ProgressBars()
    try:
        exported = export(request, _logger.info, bars)
    finally:
        bars.close()
    if arguments.json:
        _print_json(exported)
    else:
        _print_lines(exported)
    return 0


def _print_json(exported: Exported) -> None:
    import json

    tables = [{"name": table.name, "rows": table.rows, "dim": table.dim} for table in exported.tables]
    print(json.dumps({**vars(exported), "out": str(exported.out), "tables": tables}))


def _print_lines(exported: Exported) -> None:
    width = max(len(table.name) for table in exported.tables)
    for table in exported.tables:
        print(f"{table.name:<{width}}  {table.rows:>13,} x {table.dim:<5}  {exported.out / table.name}")
