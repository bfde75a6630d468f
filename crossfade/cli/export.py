"""``crossfade export``: write embeddings as Parquet or in the format of another system, or push them to a database."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from crossfade.cli.command import as_command
from crossfade.terminal import PrintOptions, print_line, print_result
from crossfade.trainer.formats.options import ExportOptions

if TYPE_CHECKING:
    from crossfade.trainer.formats.export import ExportResult

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade export runs/lastfm --out exports/lastfm", "Export the newest complete checkpoint of a run."),
    (
        "crossfade export runs/large --out runs/large/embeddings",
        "Write the embeddings of a job with save_embeddings: none to its run folder, where other commands find them.",
    ),
    (
        "crossfade export runs/lastfm --to safetensors --out exports/lastfm",
        "Write the embeddings of a run, with their IDs, for other programs.",
    ),
    (
        "crossfade export runs/lastfm --to pgvector --push postgresql://recommender@db.example.com/music",
        "Replace the vectors of lastfm_customer and lastfm_artist in a database; PGPASSWORD has the password.",
    ),
)
_NOTES = """\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. --to parquet always exports
a checkpoint, of several the newest complete one, as OUT/ENTITY/rows-000000000000.parquet with id, row, vector and
optionally name. The other formats export what 'crossfade recommend' uses: the embeddings of a run's best epoch, if it
has written any. Databases get no rows that were not trained.

  numpy        OUT/ENTITY/vectors.npy, float32, and rows.parquet
  safetensors  OUT/ENTITY/vectors.safetensors with the tensor 'vectors', float32, and rows.parquet
  pgvector     PLACE: postgresql://USER@HOST:PORT/DATABASE, completed by PGHOST, PGPASSWORD, ~/.pgpass and so on
  qdrant       PLACE: a URL (default: QDRANT_URL), with QDRANT_API_KEY, or a folder of Qdrant's local mode
  opensearch   PLACE: a URL (default: OPENSEARCH_URL), with OPENSEARCH_USER and OPENSEARCH_PASSWORD
  s3-vectors   PLACE: a vector bucket of Amazon S3, with AWS_REGION, AWS_PROFILE and so on
  mlflow       OUT: a model of MLflow that recommends; PLACE: a tracking URI (default: MLFLOW_TRACKING_URI)

--push writes to a database in batches. Readers see the earlier vectors until it ends, except in S3 Vectors. OUT is
complete or, after an error, absent; --overwrite replaces nothing but files that an export wrote. PLACE must not have a
password.

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
    from crossfade.trainer.formats.export import export

    with progress_bars() as bars:
        exported = export(options, _logger.info, bars)
    print_result(
        options,
        {**vars(exported), "tables": [vars(table) for table in exported.tables]},
        lambda: _print_lines(exported, is_pushed=options.push is not None),
    )
    return 0


def _print_lines(exported: ExportResult, *, is_pushed: bool) -> None:
    width = max(len(table.name) for table in exported.tables)
    for table in exported.tables:
        place = exported.target
        if exported.to != "mlflow":
            place += f"/{exported.names[table.name] if is_pushed else table.name}"
        untrained = f", {table.untrained:,} untrained" if table.untrained else ""
        print_line(f"{table.name:<{width}}  {table.rows:>13,} x {table.dim:<5}  {place}{untrained}")
