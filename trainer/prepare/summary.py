# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""What a data set holds, for people: how much of what, how uneven, from when to when, and what was left out and why.

print(describe(manifest, Folder("data/plays")))
"""

from __future__ import annotations

from datetime import UTC, datetime

import duckdb

from kvstore.io.folder import Folder
from trainer.data.manifest import SPLITS, DatasetManifest
from trainer.data.vocabulary import Vocabulary
from trainer.prepare.database import fetch_one
from trainer.prepare.vocabulary_tables import VocabularyKey

COUNTED = ("_head_share", "_median_count", "_seen_once", "_not_in_train", "negative", "_timestamp", "_filled")
"""How facts end that are true of the interactions as they were counted."""

Facts = dict[str, str | int | float | bool | list[str] | None]

_TOP_SHARE = 100  # the first of this many rows
_DROPPED = {
    "dropped_before_since": "rows from before --since",
    "dropped_from_until": "rows from --until on",
    "dropped_zero_weight": "rows of weight 0, which would teach nothing",
    "lines_without_items": "lines that name no item",
    "merged_duplicates": "rows summed into another one of their pair (--duplicates sum)",
    "cancelled_pairs": "pairs whose weights sum to 0, which would teach nothing",
    "dropped_waiting": "interactions of ids that wait for more (--admit)",
    "dropped_rare": "interactions of ids with too few (--min-count)",
}


def popularity(connection: duckdb.DuckDBPyConnection, role: VocabularyKey, entity: str) -> Facts:
    """How uneven the counts of ``vocabulary_ROLE`` are: head, middle and tail."""
    total, head, median, once, unseen = fetch_one(
        connection,
        f"SELECT sum(count), sum(count) FILTER (row < ceil((SELECT count(*) FROM vocabulary_{role}) / "
        f"{_TOP_SHARE})), median(count), count(*) FILTER (count = 1), count(*) FILTER (count = 0) "
        f"FROM (SELECT count, row_number() OVER (ORDER BY count DESC) - 1 AS row FROM vocabulary_{role})",
    )
    return {
        f"{entity}_head_share": float(str(head)) / max(1.0, float(str(total))),
        f"{entity}_median_count": float(str(median)),
        f"{entity}_seen_once": int(str(once)),
        f"{entity}_not_in_train": int(str(unseen)),
    }


def format_summary(manifest: DatasetManifest, folder: Folder) -> str:
    """A summary for people of the data set ``manifest`` in ``folder``: what is in it, and what was left out and why."""
    query, item = manifest.entities[manifest.query], manifest.entities[manifest.item]
    train = manifest.splits["train"].rows
    width = max(map(len, [*manifest.entities, *SPLITS]))
    lines = [f"{folder.uri}: {manifest.query} x {manifest.item}"]
    for name, entity in manifest.entities.items():
        ids = "integer ids" if entity.id_type == "int64" else "string ids"
        top = _top(folder, manifest, name)
        lines.append(f"  {name:{width}} {entity.rows:>15,} rows          {ids}; most in train: {top}")
        lines += [f"  {'':{width}} {'':15} {line}" for line in _of_feature(manifest, name)]
        lines += [f"  {'':{width}} {'':15} {line}" for line in _cataloged(manifest, name)]
        lines += [f"  {'':{width}} {'':15} {line}" for line in _changes(manifest, name)]
        lines += [f"  {'':{width}} {'':15} {line}" for line in _popularity(manifest, name)]
    for name, split in manifest.splits.items():
        size = sum(file.bytes for file in split.files)
        groups = sum(len(file.row_groups) for file in split.files)
        lines.append(
            f"  {name:{width}} {split.rows:>15,} interactions  {len(split.files)} file(s), {groups} row groups, "
            f"{size / 1e6:,.1f} MB"
        )
    lines.append(
        f"  train has {train / (query.rows * item.rows):.3%} as many interactions as there are pairs; on average "
        f"{train / query.rows:,.1f} interactions of each {manifest.query} "
        f"and {train / item.rows:,.1f} of each {manifest.item}"
    )
    return "\n".join([*lines, *(f"  {line}" for line in [*_signs_and_times(manifest), *_left_out(manifest)])])


def _top(folder: Folder, manifest: DatasetManifest, name: str) -> str:
    """Whoever has the highest count; of several, the first."""
    vocabulary = Vocabulary(folder, manifest, name)
    best_row, best_count, first = 0, -1, 0
    for piece in vocabulary.iter_tables(["count"]):
        count_N = piece.column("count").to_numpy()
        place = int(count_N.argmax())
        if count_N[place] > best_count:
            best_row, best_count = first + place, int(count_N[place])
        first += len(count_N)
    best = vocabulary.read(best_row, best_row + 1).to_pylist()[0]
    named = f" {best['name']}" if best.get("name") else ""
    return f"{best['id']}{named} ({best_count:,})"


def _of_feature(manifest: DatasetManifest, name: str) -> list[str]:
    """Of a feature, whose it is and how many have it."""
    owner = manifest.feature_owners().get(name)
    if owner is None:
        return []
    pairs, rows = manifest.features[owner][name].pairs, manifest.entities[owner].rows
    line = f"a feature of {owner}: {pairs:,} values"
    filled, unknown = (manifest.source.get(f"{name}_{fact}") for fact in ("filled", "ids_ignored"))
    if filled is not None:
        line += f", of {filled:,} of its {rows:,} rows"
    return [line + (f"; {unknown:,} ids ignored, which are in no event" if unknown else "")]


def _cataloged(manifest: DatasetManifest, name: str) -> list[str]:
    new = manifest.source.get(f"{name}_cataloged")
    return [] if new is None else [f"{new:,} rows are in no event: files of features alone have them"]


def _changes(manifest: DatasetManifest, name: str) -> list[str]:
    """What has become of the rows of an earlier data set, and of forgotten ones."""
    facts, lines = manifest.source, []
    if facts.get("base") and f"{name}_kept" in facts:
        lines.append(
            f"{facts[f'{name}_kept']:,} rows as in {facts['base']} ({facts[f'{name}_unseen']:,} of them without "
            f"an event now), {facts[f'{name}_new']:,} new"
        )
    if facts.get(f"{name}_expired") or facts.get(f"{name}_reused"):
        lines.append(
            f"{facts[f'{name}_expired']:,} ids have expired (--expire-after); {facts[f'{name}_reused']:,} new ids have "
            "rows that were others' before"
        )
    if forgotten := len(manifest.entities[name].vacant_rows):
        lines.append(f"{forgotten:,} rows are forgotten or expired: they have no id and no interaction")
    if waiting := sum(file.rows for file in manifest.entities[name].pending):
        lines.append(f"{waiting:,} ids have too few events so far for a row (--admit)")
    return lines


def _popularity(manifest: DatasetManifest, name: str) -> list[str]:
    facts, rows = manifest.source, manifest.entities[name].rows
    share, median = facts.get(f"{name}_head_share"), facts.get(f"{name}_median_count")
    if not isinstance(share, float) or not isinstance(median, float):
        return []
    head = -(-rows // _TOP_SHARE)
    line = (
        f"the most frequent {head:,} (1 %) have {share:.1%} of train; median {median:,.0f}; "
        f"{facts[f'{name}_seen_once']:,} occur once"
    )
    unseen = facts.get(f"{name}_not_in_train")
    return [line + (f"; {unseen:,} are not liked in train" if unseen else "")]


def _signs_and_times(manifest: DatasetManifest) -> list[str]:
    facts, lines = manifest.source, []
    if facts.get("negative"):
        lines.append(f"{facts['negative']:,} of all interactions have a negative weight: what is not wanted")
    first, last = facts.get("first_timestamp"), facts.get("last_timestamp")
    if isinstance(first, int) and isinstance(last, int):
        dated = facts.get("timestamps_are_dates")
        lines.append(f"time: from {_moment(first) if dated else first} to {_moment(last) if dated else last}")
    return lines


def _moment(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return str(seconds)  # beyond the years that Python knows


def _left_out(manifest: DatasetManifest) -> list[str]:
    facts, lines = manifest.source, []
    if facts.get("rows_read"):
        empty = f", {facts['empty_files']:,} of them empty" if facts.get("empty_files") else ""
        lines.append(f"read: {facts['rows_read']:,} rows of {facts['files_read']:,} file(s){empty}")
    dropped = [f"dropped: {facts[name]:,} {what}" for name, what in _DROPPED.items() if facts.get(name)]
    lines += dropped or ["dropped: nothing"]
    for name in manifest.entities:
        if facts.get(f"{name}_rare"):
            lines.append(f"dropped: {facts[f'{name}_rare']:,} ids of {name} with too few interactions (--min-count)")
    if facts.get("kept_for_train"):
        lines.append(
            f"not held out: {facts['kept_for_train']:,} interactions, since each {manifest.query} keeps one for train"
        )
    for name, entity in manifest.entities.items():
        named, ignored = facts.get(f"{name}_named"), facts.get(f"{name}_names_ignored")
        if named is not None:
            lines.append(
                f"names: {named:,} of {entity.rows:,} rows of {name} have one; "
                f"{ignored:,} names ignored, whose ids are in no event"
            )
    return lines
