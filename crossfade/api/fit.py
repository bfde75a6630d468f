"""Train on events in a data frame or in files, with the defaults of a job.

model = fit(plays, query="user", item="artist", dim=64)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.api import arguments
from crossfade.api.frames import FrameKind, frame_kind, open_batches
from crossfade.api.job import Job
from crossfade.api.model import Model
from crossfade.api.saving import DATASET_FOLDER
from crossfade.api.training import bar_type, train
from crossfade.api.wording import READ, fit_words, in_python
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


@in_python
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
        query: the column of customers, or NAME=COLUMN.
        item: the column of items, or NAME=COLUMN.
        weight: the column of weights; None: every event weighs 1. Below 0 is negative feedback.
        timestamp: the column of times, which hold-outs by time need.
        names: the column of names, such as ``{"artist": "artist_name"}``, by entity.
        read: how dirty events are read, such as ``{"on_bad_line": "skip"}``: see docs/python-api.md.
        valid: what is held out to choose the best epoch: ``random:FRACTION``, ``last-N``, ``after:TIME``, or None.
        test: what is held out for the metrics of the report, in the same form.
        dim: columns of the embeddings.
        epochs: passes over the events at most; None: as in a job without it.
        seed: seed of every random number.
        settings: further keys of a job, such as ``{"train.batch_size": 4096}``.
        progress: whether to show progress bars; None: in terminals and notebooks.

    Raises:
        InputError: a column, an event, or a setting is invalid.
        CrossfadeError: training failed.
    """
    settings = _settings(dim, epochs, seed, settings)
    chosen = {"query": query, "item": item, "weight": weight, "timestamp": timestamp, "seed": settings["train.seed"]}
    chosen |= {"hold_out_valid": NONE if valid is None else valid, "hold_out_test": test}
    return _fit(plays, chosen, names, read, settings, progress)


def _fit(
    plays: Any,
    chosen: dict[str, Any],
    names: Mapping[str, str] | None,
    read: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    progress: bool | None,
) -> Model:
    """Prepare and train in a temporary folder; ``chosen`` are options of the preparation."""
    folder = Path(tempfile.mkdtemp(prefix="crossfade-"))
    try:
        kind = frame_kind(plays)
        events = None if kind is None else folder / _EVENTS_FILE
        with fit_words(events):
            files = _paths(plays) if events is None else [events]
            chosen |= {"out": folder / DATASET_FOLDER, "train": files, **_read_options(read, kind)}
            options = _with_names(chosen, names)
            if events is not None:
                _write_events(plays, options, events)
            with progress_bars(bar_type(progress)) as reporter:
                first_row = 1 if events is None else 0  # as ``iloc`` counts
                prepare(options, reporter, first_row=first_row, keep=False)
        values = {"name": "model", "data": {"path": options.out}, "metrics": {"port": None}}
        train(Job(values, settings).config, RunFolder(folder / _RUN_FOLDER), progress=progress)
        return Model(folder / _RUN_FOLDER, frame=kind, workspace=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _settings(dim: object, epochs: object, seed: object, settings: object) -> dict[str, Any]:
    """Return the keys of a job that arguments of ``fit`` stand for.

    Raises:
        InputError: one is invalid.
    """
    chosen = {"model.dim": arguments.whole_number("dim", dim), "train.seed": arguments.whole_number("seed", seed, 0)}
    if epochs is not None:
        chosen["train.epochs"] = arguments.whole_number("epochs", epochs)
    return {**chosen, **arguments.mapping("settings", settings, '{"train.batch_size": 4096}')}


def _read_options(read: object, kind: FrameKind | None) -> dict[str, Any]:
    """Return the options of a preparation that ``read`` stands for; ``kind`` is that of ``plays``, if it is a table.

    Raises:
        InputError: one is unknown, or has no effect.
    """
    read = arguments.mapping("read", read, '{"on_missing": "drop"}')
    for key in read:
        if key not in READ:
            near = similar_name(key, READ)
            hint = f"did you mean '{near}'?" if near else f"expected {', '.join(READ)}"
            raise InputError(f"read: unknown key '{key}'; {hint}")
        if key in _OF_FILES and kind is not None:
            raise InputError(f"read: '{key}' describes files, and plays is a data frame; leave it out")
    return {key: value for key, value in read.items() if value is not None}


def _with_names(chosen: Mapping[str, Any], names: object) -> PrepareOptions:
    """Return the options that were ``chosen``; ``names`` are in the events, next to the IDs.

    Raises:
        InputError: an option is invalid.
    """
    options = PrepareOptions.of(**chosen)
    columns = arguments.mapping("names", names, '{"artist": "artist_name"}')
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
