"""Find and check all inputs of a preparation before any is read: files of events, names and features, the base dataset.

inputs = find_inputs(options)
base = find_base(options)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import SPLITS
from crossfade.trainer.prepare.content import OPTION as CONTENT_OPTION
from crossfade.trainer.prepare.content import check_content
from crossfade.trainer.prepare.context import OPTION as CONTEXT_OPTION
from crossfade.trainer.prepare.context import check_base_context, plan_context
from crossfade.trainer.prepare.extend import OPTION as BASE_OPTION
from crossfade.trainer.prepare.extend import BaseDataset, open_base_dataset
from crossfade.trainer.prepare.features import OPTION as FEATURES_OPTION
from crossfade.trainer.prepare.features import check_features
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
    names = {entity: find_files(f"--names {entity}", [names.path], None)[0] for entity, names in options.names.items()}
    features = [find_files(f"{FEATURES_OPTION} {file.entity}", [file.path], None) for file in options.features]
    content = [find_files(f"{CONTENT_OPTION} {file.entity}", [file.path], None) for file in options.content]
    seen: dict[str, str] = {}
    for split, files in events.items():
        for file in files:
            location = _location(file)
            if location in seen:
                raise InputError(f"--{split} {file}: was already given in --{seen[location]}; expected each file once")
            seen[location] = split
            if file.format == "lightgcn":
                _check_no_columns(options, file)
    folder = Folder(options.out)
    out = folder.uri if folder.path is None else str(folder.path.resolve())
    for file in [*chain(*events.values()), *names.values(), *chain(*features, *content)]:
        if _location(file).startswith(f"{out}/"):
            raise InputError(f"{file}: is inside --out {options.out}, which would be replaced; choose another --out")
    return Inputs(events, names, features, content)


def find_base(options: PrepareOptions) -> BaseDataset | None:
    """Open the base dataset of ``options``, if any, and check that entities, features, and content fit it.

    Raises:
        InputError: it is missing, would be replaced by the output, or has other entities; or a feature is invalid.
    """
    base = None
    if options.base is not None:
        base = open_base_dataset(options.base)
        base.check_entities(options.query, options.item)
        if base.folder.uri == Folder(options.out).uri:
            raise InputError(
                f"{BASE_OPTION} {options.base}: is also --out, which would be replaced; choose another --out"
            )
        base.reference(Folder(options.out))
        check_base_context(plan_context(options.context), base)
    in_base = base.manifest.feature_owners() if base else {}
    check_features(options.features, options.query, options.item, in_base)
    features = {*in_base, *(name for file in options.features for name in file.columns)}
    taken = {options.query: "side", options.item: "side", **dict.fromkeys(features, "feature")}
    check_content(options.content, taken, base)
    return base


def _find_events(options: PrepareOptions, split: str) -> list[Source]:
    files: list[Source] = []
    for pattern in getattr(options, split):
        if str(pattern) != STANDARD_INPUT:
            files += find_files(f"--{split}", [pattern], options.format)
        elif options.format is None:
            raise InputError(
                f"--{split} -: standard input has no extension; name its format: --format {'|'.join(FORMATS)}"
            )
        else:
            files.append(StandardInput(options.format))
    return files


def _location(file: Source) -> str:
    return str(file.path.resolve()) if isinstance(file, RawFile) else str(file)


def _check_no_columns(options: PrepareOptions, file: Source) -> None:
    """Check that no option names a column, which files of the format lightgcn do not have."""
    for name in ("weight", "event", "timestamp", "query_column", "item_column"):
        value = getattr(options, name)
        if value is not None:
            option = f"--{name.partition('_')[0]}"
            raise InputError(
                f"{file}: a lightgcn file has no column '{value}'; leave it out of {option}, or correct --format"
            )
    for name, column in options.context.items():
        raise InputError(
            f"{file}: a lightgcn file has no column '{column}'; leave out {CONTEXT_OPTION} {name}, or correct --format"
        )
