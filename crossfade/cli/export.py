"""``crossfade export``: write embeddings as Parquet or in the format of another system, or push them to a database."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.cli.command import add_command
from crossfade.cli.options.history import add_history_option
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.trainer.formats.export import ExportResult

_logger = logging.getLogger(__name__)

_FORMATS = ("parquet", "numpy", "safetensors", "faiss", "qdrant", "pgvector", "opensearch")
_DATABASES = ("qdrant", "pgvector", "opensearch")
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
    (
        "crossfade export runs/lastfm --to safetensors --out exports/lastfm",
        "Write the embeddings of a run with a model card, ready to be published.",
    ),
    (
        "crossfade export runs/lastfm --to pgvector --push postgresql://recommender@db.example.com/music",
        "Replace the tables lastfm_customer and lastfm_artist in a database; PGPASSWORD has the password.",
    ),
)
_NOTES = """\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. Of several checkpoints the
newest complete one is exported. It is named on stderr, with the reason why newer ones were skipped. The run may
still be training.

--to parquet always exports a checkpoint. The files are those of 'crossfade train', OUT/ENTITY/rows-000000000000.parquet
with id, row, vector and optionally name, but of the checkpoint's step instead of the best one. For a run without
embeddings (train.save_embeddings: none), OUT defaults to its run folder, where 'crossfade similar' and 'crossfade
evaluate' find them.

The other formats export what 'crossfade recommend' uses: the embeddings of a run, which are those of the best epoch, if
it has written any, otherwise the newest complete checkpoint. A folder of checkpoints, RUN/checkpoints, exports the
checkpoint.

  numpy        OUT/ENTITY/vectors.npy, float32, and rows.parquet
  safetensors  OUT/ENTITY/vectors.safetensors with the tensor 'vectors', float32, and rows.parquet
  faiss        OUT/ENTITY/index.faiss, the index of 'crossfade index' by the score of the job, which also 'crossfade
               recommend' and 'crossfade similar' search; it is built in memory
  qdrant       bodies of requests to the REST API, at most 16 MiB each, and load.sh (curl)
  pgvector     CSV files, SQL, and load.sh (psql); tables of up to 2,000 columns get an HNSW index
  opensearch   mappings, bodies of requests to the bulk API, at most 8 MiB each, and load.sh (curl)

numpy and safetensors have every row: rows.parquet has row, id, name and trained, which is false for rows without an ID,
and for queries and items without an interaction of positive weight in train, unless they have features. The formats of
databases and faiss leave these rows out: their vectors are random.

In databases, the names are NAME_ENTITY. load.sh and --push replace what an earlier export wrote in one step, so that
readers never find a part of it: one transaction in PostgreSQL, an alias in Qdrant and OpenSearch. Other tables are not
replaced. --push connects by libpq's environment (PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, ~/.pgpass) and by URI,
which must not have a password, and writes no files.

Each export has a model card, OUT/README.md, in the form of Hugging Face's hub: job, dataset, metrics, how to compare
and load the vectors. For an entity with features (model.item_features: [track, artist]) the vectors are the tower's
output; each feature has its own.

IDs and names come from the dataset of the model: the one that its job names, or --data if it has moved; any other
dataset is rejected. Memory does not grow with the tables, except for faiss. Checksums (CRC-32) are verified. OUT is
complete or, after an error, absent; --overwrite replaces nothing but files that an export wrote.

Exit codes: 0 done; 1 the checkpoint is corrupt or cannot be read, or the server was lost; 2 invalid input; 130 and 143
stopped.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "export",
        "write embeddings as Parquet, numpy, safetensors, or for vector databases",
        "Write the embeddings of a model as files for other systems, or to a database.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    source = parser.add_argument_group("input")
    source.add_argument("source", metavar="FROM", help="read this run folder, folder of checkpoints, or checkpoint")
    source.add_argument("--entity", nargs="+", default=[], metavar="NAME", help="export these tables (default: all)")
    source.add_argument("--data", metavar="DATA", help="read IDs and names here (default: data.path of the job)")
    add_history_option(source)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--to",
        choices=_FORMATS,
        default="parquet",
        help="write this format, as described below (default: parquet)",
    )
    output.add_argument(
        "--out",
        type=Path,
        metavar="OUT",
        help="write to this folder, which must not exist (default: RUN/embeddings if train.save_embeddings is none and "
        "the format is parquet)",
    )
    output.add_argument("--overwrite", action="store_true", help="replace an export at OUT")
    output.add_argument("--json", action="store_true", help="print what was exported as JSON")
    database = parser.add_argument_group("database")
    database.add_argument(
        "--name", metavar="NAME", help="name tables, collections and indexes NAME_ENTITY (default: the job's name)"
    )
    database.add_argument(
        "--push",
        nargs="?",
        const="",
        metavar="URI",
        help="replace tables in PostgreSQL instead of writing files, with --to pgvector (default URI: that of PGHOST "
        "and so on)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, and print the tables.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: there is no model, its dataset is missing, OUT exists, or options contradict each other.
    """
    _check_options(arguments)
    from crossfade.display import progress_bars
    from crossfade.trainer.formats.export import ExportRequest, export, push_to_pgvector

    request = ExportRequest(
        arguments.source,
        arguments.to,
        arguments.entity,
        arguments.data,
        arguments.name,
        arguments.history_from_this_dataset_only,
    )
    with progress_bars() as bars:
        if arguments.push is None:
            exported = export(request, arguments.out, _logger.info, bars, overwrite=arguments.overwrite)
        else:
            exported = push_to_pgvector(request, arguments.push, _logger.info, bars)
    if arguments.json:
        _print_json(exported)
    else:
        _print_lines(exported, is_pushed=arguments.push is not None)
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    from crossfade.base.errors import InputError

    if arguments.name is not None and arguments.to not in _DATABASES:
        raise InputError(f"--name {arguments.name}: is for databases; expected --to {', '.join(_DATABASES)}")
    if arguments.push is not None and arguments.to != "pgvector":
        raise InputError(f"--push: writes to PostgreSQL, but the format is {arguments.to}; expected --to pgvector")
    if arguments.push is not None and (arguments.out is not None or arguments.overwrite):
        raise InputError("--push: writes no files; leave out --out and --overwrite")
    if arguments.out is not None and str(arguments.out).startswith("s3:"):
        raise InputError(f"--out {arguments.out}: expected a local folder; upload it then")
    if arguments.out is None and arguments.push is None and arguments.to != "parquet":
        raise InputError(f"--to {arguments.to}: name a new local folder with --out")


def _print_json(exported: ExportResult) -> None:
    import json

    print(json.dumps({**vars(exported), "tables": [vars(table) for table in exported.tables]}))


def _print_lines(exported: ExportResult, *, is_pushed: bool) -> None:
    width = max(len(table.name) for table in exported.tables)
    for table in exported.tables:
        place = f"{exported.target}/{exported.names[table.name] if is_pushed else table.name}"
        untrained = f", {table.untrained:,} untrained" if table.untrained else ""
        print_line(f"{table.name:<{width}}  {table.rows:>13,} x {table.dim:<5}  {place}{untrained}")
