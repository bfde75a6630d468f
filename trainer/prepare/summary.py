"""Format a summary of a dataset: its sizes and time range, and what was left out and why.

print(format_summary(manifest, Folder("data/plays")))
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from crossfade.base.errors import as_typed, escape_unprintable
from crossfade.base.io.folder import Folder
from crossfade.base.text import counted
from crossfade.trainer.data.manifest import EARLIER, REPLAY, DatasetManifest, Split
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.events import ReadStats
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.timestamp_formats import epoch_unit

COUNTED = ("negative", "_timestamp", "_filled")
"""Suffixes of facts that are statistics of all interactions, and so become false when some are deleted."""

Facts = dict[str, str | int | float | bool | list[str] | None]
"""What the manifest records under ``source``."""

_REMARKS = {EARLIER: "; of base datasets, known but not trained on", REPLAY: "; of base datasets, for training only"}
_DROPPED = {
    "dropped_zero_weight": ("row", "of weight 0, without any effect"),
    "lines_without_items": ("line", "without an item"),
    "merged_duplicates": ("row", "summed into another one of their pair"),
    "cancelled_pairs": ("pair", "whose weights sum to 0, without any effect"),
    "dropped_pending": ("interaction", "of ids with too few so far"),
    "dropped_rare": ("interaction", "of rare ids"),
    "dropped_gap": ("interaction", "in the gap before what is held out"),
    "dropped_without_history": ("interaction", "held out of ids without an earlier one"),
}
"""What was left out, by fact: the noun that is counted, and the reason."""


def describe_stats(stats: ReadStats, faults: Faults) -> Facts:
    """Return what the manifest records of what was read and left out."""
    return {
        "files_read": stats.files,
        "empty_files": stats.empty_files,
        "rows_read": stats.rows,
        "dropped_bad_lines": faults.count(),
        **({"dropped_faults": lines} if (lines := faults.lines()) else {}),
        "dropped_zero_weight": stats.zero_weight,
        "lines_without_items": stats.lines_without_items,
    }


def describe_options(options: PrepareOptions) -> Facts:
    """Return what the manifest records of the options under ``source``."""
    texts = {
        name: getattr(options, name)
        for name in ("hold_out", "hold_out_valid", "hold_out_test", "base", "replay")
        if getattr(options, name) is not None
    }
    if options.hold_out_gap is not None:
        texts["hold_out_gap"] = options.hold_out_gap.text
    lists = {
        "timestamp_formats": list(options.timestamp_format),
        "event_weights": [f"{event}={weight:g}" for event, weight in options.event_weights.items()],
        "min_count": [f"{entity}={minimum}" for entity, minimum in options.min_count.items()],
        "admit": [f"{entity}={minimum}" for entity, minimum in options.admit.items()],
        "expire_after": [f"{entity}={max_age.text}" for entity, max_age in options.max_ages().items()],
        "context": [f"{name}={source}" for name, source in options.context.items()],
        "features": [f"{file.entity}={Path(file.path).name}:{file.id_column}" for file in options.features],
        "content": [f"{file.entity}={Path(file.path).name}:{file.id_column}" for file in options.content],
    }
    return {
        "command": "prepare",
        **{split: list(getattr(options, split)) for split in ALL_SPLITS},
        **texts,
        **{name: values for name, values in lists.items() if values},
        "duplicates": options.duplicates,
        "seed": options.seed,
        "duckdb": duckdb.__version__,
        "pyarrow": pa.__version__,
    }


def is_synthetic(manifest: DatasetManifest) -> bool:
    """Return whether ``manifest`` is of synthetic listening."""
    return manifest.source.get("command") == "synthetic"


def format_summary(manifest: DatasetManifest, folder: Folder) -> str:
    """Format a summary, in printable lines, of the data in ``folder``: its contents, and what was left out and why."""
    shown = {str(name): split for name, split in manifest.splits.items()}
    if manifest.earlier:
        shown[EARLIER] = Split(files=[file for split in manifest.earlier.values() for file in split.files])
    if manifest.replay is not None:
        shown[REPLAY] = manifest.replay
    width = max(map(len, [*manifest.entities, *ALL_SPLITS, *shown]))
    synthetic = " (synthetic listening)" if is_synthetic(manifest) else ""
    lines = [f"{folder.uri}: {manifest.query} x {manifest.item}{synthetic}"]
    for name, entity in manifest.entities.items():
        ids = "integer ids" if entity.id_type == "int64" else "string ids"
        top = _top(folder, manifest, name)
        noun = "row " if entity.rows == 1 else "rows"
        lines.append(f"  {name:{width}} {entity.rows:>15,} {noun}  {ids}; most in train: {top}")
        details = [part for describe in _DETAILS for part in describe(manifest, name)]
        lines += [f"  {'':{width}} {'':15} {line}" for line in details]
    for name, split in shown.items():
        noun = "interaction" if split.rows == 1 else "interactions"
        lines.append(f"  {name:{width}} {split.rows:>15,} {noun}{_REMARKS.get(name, '')}")
    lines += (f"  {line}" for line in [*_weights_and_times(manifest), *_left_out(manifest)])
    return "\n".join(map(escape_unprintable, lines))


def _top(folder: Folder, manifest: DatasetManifest, entity: str) -> str:
    """Format the first row with the highest count."""
    vocabulary = Vocabulary(folder, manifest, entity)
    count_R = vocabulary.counts()
    best_row = int(count_R.argmax())
    best = vocabulary.read(best_row, best_row + 1).to_pylist()[0]
    name = f" '{best['name']}'" if best.get("name") else ""
    return escape_unprintable(f"{best['id']}{name} ({count_R[best_row]:,})")


def _feature(manifest: DatasetManifest, name: str) -> list[str]:
    """Describe, for a feature, the entity that has it and how many rows of that do."""
    owner = manifest.feature_owners().get(name)
    if owner is None:
        return []
    pairs, rows = manifest.features[owner][name].pairs, manifest.entities[owner].rows
    line = f"a feature of {owner}: {counted(pairs, 'value')}"
    filled = manifest.source.get(f"{name}_filled")
    if filled is not None:
        line += f", of {filled:,} of its {rows:,} rows"
    return [line + _ignored(manifest.source, name)]


def _content(manifest: DatasetManifest, name: str) -> list[str]:
    """Describe the content of an entity."""
    rows, lines = manifest.entities[name].rows, []
    for column, of in manifest.content_of(name).items():
        numbers = "a number" if of.width == 1 else f"{of.width:,} numbers"
        after = _ignored(manifest.source, column)
        lines.append(f"content {column}: {numbers}, in {of.pairs:,} of {rows:,} rows{after}")
    return lines


def _ignored(facts: Facts, name: str) -> str:
    fact = f"{name}_ids_ignored"
    return f"; {_count(facts, fact, 'id')} without an event ignored" if facts.get(fact) else ""


def _changes(manifest: DatasetManifest, name: str) -> list[str]:
    """Describe how the rows of a base dataset were kept, and which rows are vacant."""
    facts, lines = manifest.source, []
    if facts.get("base") and f"{name}_kept" in facts:
        lines.append(
            f"{_count(facts, f'{name}_kept', 'row')} kept from {facts['base']} "
            f"({facts[f'{name}_unseen']:,} of them without a new event), {facts[f'{name}_new']:,} new"
        )
    if facts.get(f"{name}_expired") or facts.get(f"{name}_reused"):
        lines.append(
            f"{_count(facts, f'{name}_expired', 'id')} expired; vacant rows reused by "
            f"{_count(facts, f'{name}_reused', 'new id')}"
        )
    if vacant := len(manifest.entities[name].vacant_rows):
        lines.append(f"{counted(vacant, 'vacant row')}: the ids were forgotten or have expired")
    if pending := sum(file.rows for file in manifest.entities[name].pending):
        lines.append(f"{counted(pending, 'pending id')}, with too few events so far for a row")
    return lines


_DETAILS = (_feature, _content, _changes)
"""What is described of each entity below its row count."""


def _weights_and_times(manifest: DatasetManifest) -> list[str]:
    facts, lines = manifest.source, []
    if facts.get("negative"):
        lines.append(f"{facts['negative']:,} of all interactions have a negative weight (negative feedback)")
    first, last = facts.get("first_timestamp"), facts.get("last_timestamp")
    if isinstance(first, int) and isinstance(last, int):
        lines.append(f"time: from {format_time(manifest, first)} to {format_time(manifest, last)}")
        if (unit := epoch_unit(last)) != "epoch-s" and not facts.get("timestamps_are_dates"):
            lines.append(f"time: are these {unit}? {as_typed('timestamp_format', unit)} reads them as seconds")
    return lines


def format_time(manifest: DatasetManifest, timestamp: int) -> str:
    """Format a timestamp of the dataset, as a date if they were read from dates."""
    if not manifest.source.get("timestamps_are_dates"):
        return str(timestamp)
    try:
        return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return str(timestamp)  # outside the years that Python supports


def _count(facts: Facts, name: str, noun: str) -> str:
    """Return the fact ``name``, a number, with its noun."""
    number = facts[name]
    assert isinstance(number, int)
    return counted(number, noun)


def _left_out(manifest: DatasetManifest) -> list[str]:
    facts, lines = manifest.source, []
    if facts.get("rows_read"):
        empty = f", {facts['empty_files']:,} of them empty" if facts.get("empty_files") else ""
        lines.append(f"read: {_count(facts, 'rows_read', 'row')} of {_count(facts, 'files_read', 'file')}{empty}")
    dropped = [f"dropped: {_count(facts, 'dropped_bad_lines', 'bad line')}"] if facts.get("dropped_bad_lines") else []
    faults = facts.get("dropped_faults")
    dropped += [f"  {line}" for line in faults] if isinstance(faults, list) else []
    dropped += [
        f"dropped: {_count(facts, name, noun)} {why}" for name, (noun, why) in _DROPPED.items() if facts.get(name)
    ]
    lines += dropped or ["dropped: nothing"]
    for name in manifest.entities:
        if facts.get(f"{name}_rare"):
            lines.append(f"dropped: {_count(facts, f'{name}_rare', 'rare id')} of {name}")
    if facts.get("valid_by_default") and "valid" in manifest.splits:
        lines.append(
            f"held out by default: {counted(manifest.splits['valid'].rows, 'interaction')} of train as valid, to "
            f"choose the epoch by ({as_typed('hold_out_valid', 'none')}: keep them in train)"
        )
    lines += manifest.hold_out_notes()
    if facts.get("kept_for_train"):
        lines.append(
            f"not held out: {_count(facts, 'kept_for_train', 'interaction')}, since each {manifest.query} "
            "keeps one in train"
        )
    for name, entity in manifest.entities.items():
        named = facts.get(f"{name}_named")
        if named is not None:
            bad = facts.get(f"{name}_names_bad_lines")
            lines.append(
                f"names: {named:,} of {entity.rows:,} rows of {name} have one; "
                f"{_count(facts, f'{name}_names_ignored', 'name')} without an event ignored"
                + (f"; {_count(facts, f'{name}_names_bad_lines', 'bad line')} left out" if bad else "")
            )
    return lines
