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

from crossfade.api import arguments
from crossfade.api.fit_options import PREPARED_AS, READ, FitOptions
from crossfade.api.frames import FrameKind, frame_kind, open_batches
from crossfade.api.job import Job
from crossfade.api.model import Model
from crossfade.api.saving import DATASET_FOLDER
from crossfade.api.training import bar_type, train
from crossfade.api.wording import fit_words, in_python
from crossfade.base.errors import InputError
from crossfade.base.text import similar_name
from crossfade.display import progress_bars
from crossfade.trainer.prepare.hold_out import NONE
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.runs.run_folder import RunFolder

_EVENTS_FILE, _RUN_FOLDER = "events.parquet", "run"
_OF_FILES = ("delimiter", "format")
"""The keys of ``read`` that describe files, rather than values."""
_COLUMNS_AND_HOLD_OUTS = ("query", "item", "weight", "timestamp", "valid", "test")


@in_python
@arguments.takes(FitOptions)
def fit(plays: Any, **options: Any) -> Model:
    """Train embeddings on events, in this process, and return the model.

    Ctrl-C ends the training early: a model of the steps so far is returned. The dataset and the run are in a temporary
    folder that is deleted along with the model; ``Model.save`` keeps them.

    Args:
        plays: events, one per row: a table of pandas, Polars, DuckDB, or Arrow, or the path, pattern, or s3:// address
            of Parquet, CSV, or TSV files, or several of these.
        **options: the fields of ``FitOptions``.

    Raises:
        InputError: a column, an event, or a setting is invalid.
        CrossfadeError: training failed.
    """
    chosen = FitOptions.of(**options)
    settings = _settings(chosen)
    folder = Path(tempfile.mkdtemp(prefix="crossfade-"))
    try:
        kind = frame_kind(plays)
        events = None if kind is None else folder / _EVENTS_FILE
        with fit_words(events):
            values = _read_options(chosen.read or {}, kind) | {"seed": settings["train.seed"]}
            values |= {"out": folder / DATASET_FOLDER, "train": _paths(plays) if events is None else [events]}
            values |= {PREPARED_AS.get(name, name): getattr(chosen, name) for name in _COLUMNS_AND_HOLD_OUTS}
            values["hold_out_valid"] = NONE if chosen.valid is None else chosen.valid
            prepared = _with_names(values, chosen.names or {})
            if events is not None:
                _write_events(plays, prepared, events)
            with progress_bars(bar_type(chosen.progress)) as reporter:
                first_row = 1 if events is None else 0  # as ``iloc`` counts
                prepare(prepared, reporter, first_row=first_row, keep=False)
        job = Job({"name": "model", "data": {"path": prepared.out}, "metrics": {"port": None}}, settings)
        train(job.config, RunFolder(folder / _RUN_FOLDER), progress=chosen.progress)
        return Model(folder / _RUN_FOLDER, frame=kind, workspace=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _settings(chosen: FitOptions) -> dict[str, Any]:
    """Return the keys of a job that arguments of ``fit`` stand for."""
    epochs = {} if chosen.epochs is None else {"train.epochs": chosen.epochs}
    return {"model.dim": chosen.dim, "train.seed": chosen.seed, **epochs, **(chosen.settings or {})}


def _read_options(read: Mapping[str, Any], kind: FrameKind | None) -> dict[str, Any]:
    """Return the options of a preparation that ``read`` stands for; ``kind`` is that of ``plays``, if it is a table.

    Raises:
        InputError: one is unknown, or has no effect.
    """
    for key in read:
        if key not in READ:
            near = similar_name(key, READ)
            hint = f"did you mean '{near}'?" if near else f"expected {', '.join(READ)}"
            raise InputError(f"read: unknown key '{key}'; {hint}")
        if key in _OF_FILES and kind is not None:
            raise InputError(f"read: '{key}' describes files, and plays is a data frame; leave it out")
    return {key: value for key, value in read.items() if value is not None}


def _with_names(chosen: Mapping[str, Any], columns: Mapping[str, Any]) -> PrepareOptions:
    """Return the options that were ``chosen``; names are in ``columns`` of the events, next to the IDs.

    Raises:
        InputError: an option is invalid.
    """
    options = PrepareOptions.of(**chosen)
    if columns and len(options.train) > 1:
        raise InputError("names: expected one file of events, or a data frame, to read names from")
    ids = {side.name: side.column for side in (options.query, options.item)}
    files = {
        entity: NamesFile(
            options.train[0],
            ids.get(entity, entity),
            arguments.text(f'names["{entity}"]', column, "the name of a column"),
        )
        for entity, column in columns.items()
    }
    return PrepareOptions.of(**chosen, names=files) if files else options


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
    if not isinstance(paths, Sequence) or not all(isinstance(path, str | Path) for path in paths):
        raise InputError(
            f"plays: expected a table of pandas, Polars, DuckDB, or Arrow, or paths; found {type(plays).__name__}"
        )
    if not paths or not all(map(str, paths)):
        raise InputError(f"plays={arguments.shown(plays)}: expected a table, or the path of at least one file")
    return paths
