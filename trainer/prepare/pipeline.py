"""Prepare a dataset from raw events: vocabularies, shards of interactions and a manifest (docs/reference.md).

    manifest = prepare(PrepareOptions.of(train=["plays.parquet"], out="data/plays", hold_out="random:0.1"))
    print(format_summary(manifest, Folder("data/plays")))

DuckDB reads, checks, splits, joins and sorts, out of core. The same options and files give the same tables, byte for
byte, whatever the number of threads.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import duckdb

from crossfade.base.errors import InputError, MissingExtraError, Option, OptionError
from crossfade.base.io.disk_errors import full_disk_errors
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.database import (
    PREPARING_ADVICE,
    working_database,
)
from crossfade.trainer.prepare.event_context import check_base_context
from crossfade.trainer.prepare.event_groups import EventGroups
from crossfade.trainer.prepare.extend import BaseDataset, open_base_dataset
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.hold_out import plan_hold_outs
from crossfade.trainer.prepare.input_files import (
    RawFile,
    Source,
    find_files,
)
from crossfade.trainer.prepare.options import PrepareOptions, memory_bytes
from crossfade.trainer.prepare.preparation import Inputs, Preparation
from crossfade.trainer.prepare.staging import Staged, staged_output


def find_inputs(options: PrepareOptions) -> Inputs:
    """Find the input files of ``options``.

    Raises:
        InputError: a file is missing, is given twice, or would be replaced by the output.
    """
    events: dict[str, list[Source]] = {
        split: find_files(split, getattr(options, split), options.format) for split in ALL_SPLITS
    }
    names = {entity: find_files("names", [names.path], None, entity)[0] for entity, names in options.names.items()}
    features = [find_files("features", [file.path], None, file.entity) for file in options.features]
    content = [find_files("content", [file.path], None, file.entity) for file in options.content]
    seen: dict[str, str] = {}
    for split, files in events.items():
        for file in files:
            location = _location(file)
            if location in seen:
                earlier = Option(seen[location])
                raise OptionError(
                    split, found=file, problem=("was already given in ", earlier), expected="each file once"
                )
            seen[location] = split
            if file.format == "lightgcn":
                _check_no_columns(options, file)
    folder = Folder(options.out)
    out = folder.uri if folder.path is None else str(folder.path.resolve())
    for file in [*chain(*events.values()), *names.values(), *chain(*features, *content)]:
        if _location(file).startswith(f"{out}/"):
            raise InputError(
                f"{file}: is inside ", Option("out", options.out), ", which would be replaced; choose another folder"
            )
    return Inputs(events, names, features, content)


def find_base(options: PrepareOptions) -> BaseDataset | None:
    """Open the base dataset of ``options``, if any, and check that entities, features, content, and context fit it.

    Raises:
        InputError: it is missing, would be replaced by the output, or has other entities.
    """
    base = None
    if options.base is not None:
        base = open_base_dataset(options.base)
        base.check_entities(options.query.name, options.item.name)
        if base.folder.uri == Folder(options.out).uri:
            out = Option("out")
            raise OptionError(
                "base",
                found=options.base,
                problem=("is also ", out, ", which would be replaced"),
                fix="choose another folder",
            )
        check_base_context(options.context_plans(), base)
        base.check_attributes(options)
    return base


def _location(file: Source) -> str:
    return str(file.path.resolve()) if isinstance(file, RawFile) else str(file)


def _check_no_columns(options: PrepareOptions, file: Source) -> None:
    """Check that no option names a column, which files of the format lightgcn do not have."""
    columns = {"weight": options.weight, "event": options.event, "timestamp": options.timestamp}
    columns |= {"query": options.query.given, "item": options.item.given}
    found = {Option(name): column for name, column in columns.items() if column is not None}
    found |= {Option("context", name): column for name, column in options.context.items()}
    for option, column in found.items():
        raise InputError(
            f"{file}: a lightgcn file has no column '{column}'; leave it out of ",
            option,
            ", or correct ",
            Option("format"),
        )


_logger = logging.getLogger(__name__)


def prepare(
    options: PrepareOptions, progress: ProgressReporter | None = None, *, first_row: int = 1
) -> DatasetManifest:
    """Write the prepared dataset ``options.out`` of files with events, and return its manifest.

    Messages count the rows of Parquet files from ``first_row``.

    The dataset appears completely, in one step; after an error or Ctrl-C, nothing is left behind.

    Raises:
        InputError: an option or a file is wrong; the message names it, the place, and how to fix it.
        CrossfadeError: there is not enough memory or disk space.
    """
    progress = progress or NullReporter()
    plan_hold_outs(options)  # before files are read: it raises an error if one is wrong
    if options.query.column == options.item.column:
        _logger.warning(
            f"the IDs of {options.query.name} and of {options.item.name} are both in the column "
            f"'{options.item.column}', so that every interaction is of an ID with itself; name another column for one"
        )
    inputs = find_inputs(options)
    base = find_base(options)
    with (
        full_disk_errors(Folder(options.out).path or Path(tempfile.gettempdir()), PREPARING_ADVICE),
        staged_output(options.out, options.overwrite, options.work_dir) as staged,
        ExitStack() as opened,
    ):
        faults = Faults(options.on_bad_line != "fail", options.max_bad, first_row)
        connection = opened.enter_context(
            working_database(staged.work, memory_bytes(options.memory), options.threads, PREPARING_ADVICE)
        )
        groups = opened.enter_context(_event_groups(connection, options, inputs, base, staged, faults, progress))
        manifest = Preparation(groups, options, inputs, base, staged, faults, progress).run()
        staged.publish(manifest)
    return manifest


@contextmanager
def _event_groups(
    connection: duckdb.DuckDBPyConnection,
    options: PrepareOptions,
    inputs: Inputs,
    base: BaseDataset | None,
    staged: Staged,
    faults: Faults,
    progress: ProgressReporter,
) -> Iterator[EventGroups]:
    """Have the events in this process, or on Spark, which is optional.

    Raises:
        MissingExtraError: it is not installed.
        CrossfadeError: it failed.
    """
    if options.engine == "duckdb":
        yield EventGroups(connection, options, inputs.events, base, staged, faults, progress)
        return
    try:
        from crossfade.trainer.prepare.spark_events import SparkEvents, spark_context
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "pyspark", "spark", Option("engine", "spark")) from error
    with spark_context() as context:
        yield SparkEvents(connection, options, inputs.events, base, staged, faults, progress, context)
