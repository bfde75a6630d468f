"""Train on events in a data frame or in files, with the defaults of a job.

model = fit(plays, query="user", item="artist", dim=64)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.api import arguments
from crossfade.api.frames import frame_kind, open_batches
from crossfade.api.job import Job
from crossfade.api.model import Model
from crossfade.api.progress import bar_type
from crossfade.api.reading import read_options
from crossfade.api.saving import DATASET_FOLDER
from crossfade.api.training import train
from crossfade.api.wording import in_python, python_words
from crossfade.base.errors import InputError
from crossfade.display import progress_bars
from crossfade.trainer.prepare.hold_out import NONE
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.prepare.vocabulary_tables import NamesFile
from crossfade.trainer.runs.folder import RunFolder

_EVENTS_FILE, _RUN_FOLDER = "events.parquet", "run"


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
    names = arguments.mapping("names", names, '{"artist": "artist_name"}')
    columns = _Columns(query, item, weight, timestamp, names, arguments.mapping("read", read, '{"on_missing": "drop"}'))
    columns.check()
    chosen = _chosen(dim, epochs, seed, settings)
    return _fit(plays, columns, _hold_outs(valid, test), chosen, progress)


def _chosen(dim: object, epochs: object, seed: object, settings: object) -> dict[str, Any]:
    """Return the keys of a job that arguments of ``fit`` stand for.

    Raises:
        InputError: one is invalid.
    """
    chosen = {"model.dim": arguments.whole_number("dim", dim), "train.seed": arguments.whole_number("seed", seed, 0)}
    if epochs is not None:
        chosen["train.epochs"] = arguments.whole_number("epochs", epochs)
    return {**chosen, **arguments.mapping("settings", settings, '{"train.batch_size": 4096}')}


def _hold_outs(valid: str | None, test: str | None) -> tuple[str | None, str | None]:
    """Return both, which must be text or None.

    Raises:
        InputError: one is not.
    """
    for name, value in (("valid", valid), ("test", test)):
        if value is not None:
            arguments.text(name, value)
    return valid, test


@dataclass(frozen=True)
class _Columns:
    """The columns of the events, and how they are read; ``query`` and ``item`` may be NAME=COLUMN."""

    query: str
    item: str
    weight: str | None
    timestamp: str | None
    names: Mapping[str, str]
    read: Mapping[str, Any]

    def check(self) -> None:
        """Check that columns are named by text; only query and item are required.

        Raises:
            InputError: one is not.
        """
        names = {f'names["{entity}"]': column for entity, column in self.names.items()}
        given = {"weight": self.weight, "timestamp": self.timestamp}
        chosen = {name: column for name, column in given.items() if column is not None}
        for name, column in {"query": self.query, "item": self.item, **names, **chosen}.items():
            arguments.text(name, column, "the name of a column")

    def roles(self) -> dict[str, str]:
        """Return the column of each role that has one."""
        columns = {"weight": self.weight, "timestamp": self.timestamp}
        columns |= {f"name of {entity}": column for entity, column in self.names.items()}
        used = {role: column for role, column in columns.items() if column is not None}
        return {"query": split_column(self.query)[1], "item": split_column(self.item)[1], **used}


def _fit(
    plays: Any,
    columns: _Columns,
    hold_outs: tuple[str | None, str | None],
    settings: Mapping[str, Any],
    progress: bool | None,
) -> Model:
    """Prepare and train in a temporary folder; ``hold_outs`` are those of valid and test."""
    folder = Path(tempfile.mkdtemp(prefix="crossfade-"))
    try:
        kind = frame_kind(plays)
        files = [_write_events(plays, columns.roles(), folder)] if kind is not None else _paths(plays)
        options = read_options(columns.read, of_files=kind is None)
        if kind is not None:
            options["first_row"] = 0  # as ``iloc`` counts
        with python_words(folder / _EVENTS_FILE if kind is not None else None):
            _prepare(files, columns, hold_outs, {**options, "seed": settings["train.seed"]}, folder, progress)
        job = Job(
            {"name": "model", "data": {"path": str(folder / DATASET_FOLDER)}, "metrics": {"port": None}}, settings
        )
        train(job.config, RunFolder(folder / _RUN_FOLDER), progress=progress)
        return Model(folder / _RUN_FOLDER, frame=kind, workspace=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _prepare(
    files: Sequence[str | Path],
    columns: _Columns,
    hold_outs: tuple[str | None, str | None],
    options: Mapping[str, Any],
    folder: Path,
    progress: bool | None,
) -> None:
    """Write the dataset of ``files`` to its folder in ``folder``; ``options`` are further ones of ``prepare``."""
    (query, query_column), (item, item_column) = split_column(columns.query), split_column(columns.item)
    prepared = PrepareOptions(
        out=folder / DATASET_FOLDER,
        train=files,
        query=query,
        item=item,
        query_column=query_column,
        item_column=item_column,
        weight=columns.weight,
        timestamp=columns.timestamp,
        hold_out_valid=hold_outs[0] or NONE,
        hold_out_test=hold_outs[1],
        names=_names_files(columns.names, {query: query_column, item: item_column}, files),
        **options,
    )
    with progress_bars(bar_type(progress)) as reporter:
        prepare(prepared, reporter)


def _write_events(plays: Any, columns: Mapping[str, str], folder: Path) -> Path:
    """Write ``columns`` (by role) of a table as Parquet, which ``prepare`` reads in bounded memory."""
    path = folder / _EVENTS_FILE
    reader = open_batches(plays, columns)
    schema = pa.schema([_plain(field) for field in reader.schema])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch.cast(schema))
    return path


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


def split_column(text: str) -> tuple[str, str]:
    """Split ``NAME=COLUMN`` into the name of an entity and its column; ``NAME`` is both."""
    name, _, column = text.partition("=")
    return name, column or name


def _names_files(
    names: Mapping[str, str], columns: Mapping[str, str], files: Sequence[str | Path]
) -> dict[str, NamesFile]:
    """Return where the names of each entity are: in the events, next to its IDs."""
    for entity in names:
        if entity not in columns:
            raise InputError(f"names of '{entity}': no such entity; expected {' or '.join(map(repr, columns))}")
    if names and len(files) > 1:
        raise InputError("names: expected one file of events, or a data frame, to read names from")
    return {entity: NamesFile(files[0], columns[entity], column) for entity, column in names.items()}
