"""``crossfade export``: write embeddings as Parquet or in the format of another system, or push them to a database."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import PrintOptions, print_line, print_result
from crossfade.trainer.formats.options import ExportOptions

if TYPE_CHECKING:
    from crossfade.trainer.formats.export import ExportResult

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade export runs/lastfm --out exports/lastfm", "Export the newest complete checkpoint of a run."),
    (
        "crossfade export runs/large",
        "Write the embeddings of a job with save_embeddings: none to its run folder.",
    ),
    (
        "crossfade export s3://music/checkpoints/plays --shard 3/16 --out s3://music/exports/plays",
        "Write the third of sixteen shards of the Parquet files; when all are written, repeat it with --merge instead.",
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
    (
        "crossfade export services/music --since 41 --to pgvector --push",
        "Change the rows of these tables whose vectors have changed since version 41 of a service.",
    ),
    (
        "crossfade export runs/lastfm --to s3-vectors --push music-vectors",
        "Replace the vectors of the indexes lastfm-customer and lastfm-artist in a vector bucket of Amazon S3.",
    ),
    (
        "crossfade export runs/lastfm --to mlflow --push models:/music",
        "Register a model in MLflow that answers with recommendations.",
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

With --shard, a process writes every N-th file of a table, of a million rows each, and --merge completes the folder.

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
  s3-vectors   no files: --push PLACE names a vector bucket of Amazon S3
  mlflow       a model of MLflow (flavor python_function) that recommends, with the histories of all customers

numpy and safetensors have every row: rows.parquet has row, id, name and trained, which is false for rows without an ID,
and for queries and items without an interaction of positive weight in train, unless they have features or `model.start`
gave them a vector. The formats of databases and faiss leave these rows out: their vectors are random.

In databases, the names are NAME_ENTITY. load.sh and --push replace what an earlier export wrote in one step, so that
readers never find a part of it: one transaction in PostgreSQL, an alias in Qdrant and OpenSearch. Other tables are not
replaced. --push connects by libpq's environment (PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, ~/.pgpass) and by URI,
which must not have a password, and writes no files.

S3 Vectors has indexes NAME-ENTITY, of at most 4,096 columns, for the scores cosine and euclidean. --push creates what
is missing, puts all vectors by their IDs, with the name as metadata, and deletes those of other rows; until it ends,
searches find vectors of both models. It retries what is throttled, and after an interruption the same command goes on
where it was. Region and credentials are those of AWS_REGION, AWS_PROFILE and so on.

For mlflow, --push models:/NAME logs the model in the run of MLflow that recorded the training, or in a new one, and
registers it as a new version. The server is that of MLFLOW_TRACKING_URI, or the one that the job names.

--since exports only what has changed since an earlier version: the number of one that the service FROM keeps, a run, or
a checkpoint. Vectors and names are compared exactly. Parquet is OUT/ENTITY/changed.parquet (row, id, name, vector) and
deleted.parquet (id). In PostgreSQL, rows are updated, inserted, and deleted in one transaction, in tables that hold the
earlier version; others are left as they are. In S3 Vectors, vectors are put and deleted likewise.

Each export has a model card, OUT/README.md, in the form of Hugging Face's hub: job, dataset, metrics, how to compare
and load the vectors. For an entity with features (model.item_features: [track, artist]) the vectors are the tower's
output; each feature has its own.

IDs and names come from the dataset of the model: the one that its job names, or --data if it has moved; any other
dataset is rejected. Memory does not grow with the tables, except for faiss. Checksums (CRC-32) are verified. OUT is
complete or, after an error, absent; --overwrite replaces nothing but files that an export wrote.

Exit codes: 0 done; 1 the checkpoint cannot be read, or the server was lost; 2 invalid input, or a corrupt checkpoint;
130 and 143 stopped.
"""


class ExportCommand(PrintOptions, ExportOptions):
    """The options of the command."""


@as_command(
    "export",
    "Write the embeddings of a model as files for other systems, or to a database.",
    _EXAMPLES,
    _NOTES,
)
def run(options: ExportCommand) -> int:
    """Export, and print the tables.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: there is no model, its dataset is missing, or OUT exists.
    """
    from crossfade.display import progress_bars
    from crossfade.trainer.formats.export import export, export_shard, merge_export

    with progress_bars() as bars:
        if options.shard is not None:
            rows = export_shard(options, options.shard, _logger.info, bars)
            line = f"{counted(rows, 'row')}: {options.out}, shard {options.shard}"
            print_result(options, {"rows": rows, "shard": str(options.shard)}, lambda: print_line(line))
            return 0
        exported = (merge_export if options.merge else export)(options, _logger.info, bars)
    print_result(
        options,
        {**vars(exported), "tables": [vars(table) for table in exported.tables]},
        lambda: _print_lines(exported, is_pushed=options.push is not None),
        to_json=json.dumps,
    )
    return 0


def _print_lines(exported: ExportResult, *, is_pushed: bool) -> None:
    width = max(len(table.name) for table in exported.tables)
    for table in exported.tables:
        place = exported.target
        if exported.to != "mlflow":
            place += f"/{exported.names[table.name] if is_pushed else table.name}"
        untrained = f", {table.untrained:,} untrained" if table.untrained else ""
        deleted = "" if table.deleted is None else f", {table.deleted:,} deleted"
        print_line(f"{table.name:<{width}}  {table.rows:>13,} x {table.dim:<5}  {place}{untrained}{deleted}")
