"""Find and check all inputs of a preparation before any is read: files of events, names and features, the base dataset.

inputs = find_inputs(options)
base = find_base(options)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from crossfade.base.errors import InputError, OptionError, option_named
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import SPLITS
from crossfade.trainer.prepare.context import check_base_context
from crossfade.trainer.prepare.extend import BaseDataset, open_base_dataset
from crossfade.trainer.prepare.input_files import (
    FORMATS,
    STANDARD_INPUT,
    RawFile,
    Source,
    StandardInput,
    find_files,
)
from crossfade.trainer.prepare.options import PrepareOptions


@dataclass(frozen=True)
class Inputs:
    """The input files: of the events by split, of names by entity, and of each entry of the features and content."""

    events: dict[str, list[Source]]
    names: dict[str, Source]
    features: list[list[Source]]
    content: list[list[Source]]


def find_inputs(options: PrepareOptions) -> Inputs:
    """Find the input files of ``options``.

    Raises:
        InputError: a file is missing, is given twice, or would be replaced by the output.
    """
    events = {split: _find_events(options, split) for split in SPLITS}
    names = {entity: find_files("names", [names.path], None, entity)[0] for entity, names in options.names.items()}
    features = [find_files("features", [file.path], None, file.entity) for file in options.features]
    content = [find_files("content", [file.path], None, file.entity) for file in options.content]
    seen: dict[str, str] = {}
    for split, files in events.items():
        for file in files:
            location = _location(file)
            if location in seen:
                earlier = option_named(seen[location])
                raise OptionError(
                    split, found=file, problem=f"was already given in {earlier}", expected="each file once"
                )
            seen[location] = split
            if file.format == "lightgcn":
                _check_no_columns(options, file)
    folder = Folder(options.out)
    out = folder.uri if folder.path is None else str(folder.path.resolve())
    for file in [*chain(*events.values()), *names.values(), *chain(*features, *content)]:
        if _location(file).startswith(f"{out}/"):
            raise InputError(
                f"{file}: is inside {option_named('out', options.out)}, which would be replaced; choose another folder"
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
            out = option_named("out")
            raise OptionError(
                "base",
                found=options.base,
                problem=f"is also {out}, which would be replaced",
                fix="choose another folder",
            )
        base.reference(Folder(options.out))
        check_base_context(options.context_plans(), base)
        base.check_attributes(options)
    return base


def _find_events(options: PrepareOptions, split: str) -> list[Source]:
    files: list[Source] = []
    for pattern in getattr(options, split):
        if str(pattern) != STANDARD_INPUT:
            files += find_files(split, [pattern], options.format)
        elif options.format is None:
            raise OptionError(
                split,
                found=STANDARD_INPUT,
                problem="standard input has no extension",
                fix=f"name its format: {option_named('format', '|'.join(FORMATS))}",
            )
        else:
            files.append(StandardInput(options.format))
    return files


def _location(file: Source) -> str:
    return str(file.path.resolve()) if isinstance(file, RawFile) else str(file)


def _check_no_columns(options: PrepareOptions, file: Source) -> None:
    """Check that no option names a column, which files of the format lightgcn do not have."""
    columns = {"weight": options.weight, "event": options.event, "timestamp": options.timestamp}
    columns |= {"query": options.query.given, "item": options.item.given}
    found = {option_named(name): column for name, column in columns.items() if column is not None}
    found |= {option_named("context", name): column for name, column in options.context.items()}
    for option, column in found.items():
        raise InputError(
            f"{file}: a lightgcn file has no column '{column}'; leave it out of {option}, or correct "
            f"{option_named('format')}"
        )
