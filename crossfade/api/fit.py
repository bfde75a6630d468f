"""Train on events in a data frame or in files, with the defaults of a job.

model = fit(plays, query="user", item="artist", dim=64)
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.api.frames import frame_kind, open_batches
from crossfade.api.job import Job
from crossfade.api.model import Model
from crossfade.api.saving import DATASET_FOLDER
from crossfade.api.training import bar_type, train
from crossfade.base.errors import InputError, join
from crossfade.display import progress_bars
from crossfade.trainer.prepare.faults import FaultyFilesError
from crossfade.trainer.prepare.hold_out import NONE
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.runs.run_folder import RunFolder

_PLAYS_FILE, _RUN_FOLDER = "plays.parquet", "run"
_MAX_KINDS = 3
"""Kinds of faults in the message of an error."""


def fit(
    plays: Any,
    *,
    query: str,
    item: str,
    weight: str | None = None,
    timestamp: str | None = None,
    names: Mapping[str, str] | None = None,
    read: Mapping[str, Any] | None = None,
    valid: str | None = "random:0.1",
    test: str | None = None,
    dim: int = 64,
    epochs: int | None = None,
    seed: int = 1,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Model:
    """Train embeddings on events, in this process, and return the model.

    Ctrl-C ends the training early: a model of the steps so far is returned. The dataset and the run are in a temporary
    folder that is deleted along with the model; ``Model.save`` keeps them.

    Args:
        plays: events, one per row: a table of pandas, Polars, DuckDB, or Arrow, or the path, pattern, or s3:// address
            of Parquet, CSV, or TSV files, or several of these.
        query: read customers from this column; NAME=COLUMN names them.
        item: read items from this column; NAME=COLUMN names them.
        weight: read weights from this column, below 0 for negative feedback; None: all weigh 1.
        timestamp: read times from this column, which hold-outs by time need.
        names: read names from these columns, by entity, such as ``{"artist": "artist_name"}``.
        read: further options of ``crossfade prepare``, such as ``{"on_bad_line": "skip"}``.
        valid: hold out to choose the best epoch: random:FRACTION, last-N, after:TIME, or None.
        test: hold out for the metrics of the report, in the same form.
        dim: give embeddings this many columns.
        epochs: pass over the events at most this often; None: as in a job without it.
        seed: seed every random number.
        settings: set further keys of a job, such as ``{"train.batch_size": 4096}``.
        progress: show progress bars; None: in terminals and notebooks.

    Raises:
        InputError: a column, an event, or a setting is invalid.
        CrossfadeError: training failed.
    """
    columns = {"query": query, "item": item, "weight": weight, "timestamp": timestamp}
    chosen = {**columns, "hold_out_valid": valid or NONE, "hold_out_test": test}
    if twice := sorted({*chosen, "train", "out", "seed"} & {*(read or {})}):
        raise InputError(f"read: {twice[0]} is no further option: fit has an argument for it, or decides it")
    chosen |= read or {}
    keys = {"model.dim": dim, "train.seed": seed, **({} if epochs is None else {"train.epochs": epochs})}
    return _fit(plays, chosen, names or {}, {**keys, **(settings or {})}, progress)


def _fit(
    plays: Any, chosen: Mapping[str, Any], names: Mapping[str, str], keys: Mapping[str, Any], progress: bool | None
) -> Model:
    """Prepare ``plays`` with the options ``chosen``, and train a job with ``keys``."""
    folder = Path(tempfile.mkdtemp(prefix="crossfade-"))
    try:
        kind = frame_kind(plays)
        files = _paths(plays) if kind is None else [folder / _PLAYS_FILE]
        places = {"train": files, "out": folder / DATASET_FOLDER, "seed": keys["train.seed"]}
        options = _with_names({**chosen, **places}, names)
        if kind is not None:
            _write_events(plays, options, folder / _PLAYS_FILE)
        _prepare(options, progress, first_row=1 if kind is None else 0)  # as ``iloc`` counts
        job = Job({"name": "model", "data": {"path": options.out}, "metrics": {"port": None}}, keys)
        train(job.config, RunFolder(folder / _RUN_FOLDER), progress=progress)
        return Model(folder / _RUN_FOLDER, frame=kind, workspace=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _with_names(chosen: Mapping[str, Any], columns: Mapping[str, str]) -> PrepareOptions:
    """Return the options that were ``chosen``; names are in ``columns`` of the events, next to the IDs.

    Raises:
        InputError: an option is invalid.
    """
    options = PrepareOptions.of(**chosen)
    if not columns:
        return options
    if len(options.train) > 1:
        raise InputError("names: expected one file of events, or a data frame, to read names from")
    ids = {side.name: side.column for side in (options.query, options.item)}
    files = {entity: NamesFile(options.train[0], ids.get(entity, entity), column) for entity, column in columns.items()}
    return PrepareOptions.of(**chosen, names=files)


def _prepare(options: PrepareOptions, progress: bool | None, first_row: int) -> None:
    """Prepare the dataset.

    Raises:
        InputError: events have faults; the message has the first kinds of them.
    """
    try:
        with progress_bars(bar_type(progress)) as reporter:
            prepare(options, reporter, first_row=first_row)
    except FaultyFilesError as error:
        if not error.details:
            raise
        more = f"; and {len(error.details) - _MAX_KINDS} more kinds" if len(error.details) > _MAX_KINDS else ""
        choice = ("; correct them, or leave out ", error.choice) if error.choice else "; correct them"
        kinds = join(error.details[:_MAX_KINDS], "; ")
        raise InputError(f"the events have {error.count:,} faults: ", kinds, more, choice) from error


def _write_events(plays: Any, options: PrepareOptions, path: Path) -> None:
    """Write the columns of a table that are used as Parquet, which ``prepare`` reads in bounded memory."""
    columns = {"query": options.query.column, "item": options.item.column}
    columns |= {f"name of {entity}": names.name_column for entity, names in options.names.items()}
    further = {"weight": options.weight, "timestamp": options.timestamp}
    columns |= {role: column for role, column in further.items() if column is not None}
    reader = open_batches(plays, columns)
    schema = pa.schema([_plain(field) for field in reader.schema])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch.cast(schema))


def _plain(field: pa.Field) -> pa.Field:
    """Return ``field`` with a type that Parquet has: views of text become text, categories their values."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        kind = pa.string()
    return pa.field(field.name, kind)


def _paths(plays: Any) -> Sequence[str | Path]:
    paths = [plays] if isinstance(plays, str | Path) else plays
    if not isinstance(paths, Sequence) or not paths or not all(isinstance(path, str | Path) for path in paths):
        raise InputError(
            f"plays: expected a table of pandas, Polars, DuckDB, or Arrow, or paths; found {type(plays).__name__}"
        )
    return paths
