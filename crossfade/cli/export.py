"""``crossfade export``: write embeddings as Parquet or in the format of another system, or push them to a database."""

from __future__ import annotations

import json
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
        "Replace the vectors of lastfm_customer and lastfm_artist in a database; PGPASSWORD has the password.",
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

The other formats export what 'crossfade recommend' uses: the embeddings of a run, which are those of the best epoch, if
it has written any, otherwise the newest complete checkpoint. A folder of checkpoints, RUN/checkpoints, exports the
checkpoint.

  numpy        OUT/ENTITY/vectors.npy, float32, and rows.parquet
  safetensors  OUT/ENTITY/vectors.safetensors with the tensor 'vectors', float32, and rows.parquet
  pgvector     PLACE: postgresql://USER@HOST:PORT/DATABASE, completed by PGHOST, PGPASSWORD, ~/.pgpass and so on
  qdrant       PLACE: a URL (default: QDRANT_URL), with QDRANT_API_KEY, or a folder of Qdrant's local mode
  opensearch   PLACE: a URL (default: OPENSEARCH_URL), with OPENSEARCH_USER and OPENSEARCH_PASSWORD
  s3-vectors   PLACE: a vector bucket of Amazon S3, with AWS_REGION, AWS_PROFILE and so on
  mlflow       PLACE: models:/NAME on the server of MLFLOW_TRACKING_URI, or of the job

numpy and safetensors have every row: rows.parquet has row, id, name and trained, which is false for rows without an ID,
and for queries and items without an interaction of positive weight in train, unless they have features or `model.start`
gave them a vector. Databases get no such rows: their vectors are random.

--push writes to a database in batches, into tables, collections, or indexes with the date in their names. At the end,
NAME_ENTITY, a view or an alias, is switched to them in one step, and earlier ones are deleted. Tables and views that no
export wrote are not replaced. In pgvector everything is one transaction, and up to 2,000 columns get an HNSW index.
S3 Vectors has indexes NAME-ENTITY for the scores cosine and euclidean: vectors are put by their IDs, then others are
deleted, so until a push ends, searches find vectors of both models. A request that fails for a reason that may pass is
sent again for half a minute; a command that is repeated starts over. PLACE must not have a password.

For mlflow, the model recommends (flavor python_function), and has the histories of all customers. It is logged in the
run of MLflow that recorded the training, or in a new one, and registered as a new version of NAME.

Each folder has a model card, OUT/README.md, in the form of Hugging Face's hub: job, dataset, metrics, how to compare
and load the vectors. For an entity with features (model.item_features: [track, artist]) the vectors are the tower's
output; each feature has its own.

IDs and names come from the dataset of the model: the one that its job names, or --data if it has moved; any other
dataset is rejected. Memory does not grow with the tables. Checksums (CRC-32) are verified. OUT is complete or, after an
error, absent; --overwrite replaces nothing but files that an export wrote.

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
        print_line(f"{table.name:<{width}}  {table.rows:>13,} x {table.dim:<5}  {place}{untrained}")
