"""Options of ``crossfade prepare``."""

from __future__ import annotations

import argparse
from pathlib import Path

_FORMATS = ("parquet", "csv", "tsv", "jsonl", "lightgcn")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options to ``parser``."""
    _add_output_options(parser)
    _add_input_options(parser)
    _add_column_options(parser)
    _add_attribute_options(parser)
    _add_fault_options(parser)
    _add_cleaning_options(parser)
    _add_base_options(parser)
    _add_split_options(parser)
    _add_resource_options(parser)


def add_memory(group: argparse._ArgumentGroup) -> None:
    """Add ``--memory``."""
    group.add_argument("--memory", type=float, metavar="GIB", help="limit memory (default: half, at most 4 GiB)")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="write to this folder or s3://BUCKET/PREFIX; it must not exist")
    group.add_argument("--overwrite", action="store_true", help="replace DIR if it holds a prepared dataset")
    group.add_argument(
        "--skip-existing",
        action="store_true",
        help="with --sample: do nothing if DIR is complete and was made by the same command",
    )
    group.add_argument(
        "--order",
        choices=("grouped", "random"),
        help="keep the interactions of a query entity together, or order all at random (default: grouped)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed row order and hold-outs (default: 0)")


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "input", "Paths, s3:// addresses, patterns (* ? [] **) or - for standard input; each option accepts several."
    )
    group.add_argument("--train", "--events", nargs="+", action="extend", metavar="FILE", help="read training events")
    group.add_argument("--valid", nargs="+", action="extend", metavar="FILE", help="read events that select the epoch")
    group.add_argument("--test", nargs="+", action="extend", metavar="FILE", help="read events for the evaluation")
    group.add_argument("--format", choices=_FORMATS, help="set the format of all files (default: by file extension)")
    group.add_argument(
        "--delimiter",
        metavar="CHARACTER",
        help="set what separates the fields of CSV and TSV files, \\t for a tab (default: the first of , ; tab | that "
        "gives a CSV file's header all columns)",
    )
    group.add_argument(
        "--sample", choices=["lastfm"], help="prepare Last.fm HetRec 2011 (1,892 customers, 17,632 artists) instead"
    )


def _add_column_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns")
    group.add_argument(
        "--query",
        metavar="NAME[=COLUMN]",
        help="name the querying entity, and the column of its IDs if that differs (default: customer); COLUMN+COLUMN "
        "joins columns into one ID",
    )
    group.add_argument(
        "--item", metavar="NAME[=COLUMN]", help="name the item entity, and the column of its IDs, likewise"
    )
    group.add_argument("--weight", metavar="COLUMN", help="read event weights (default: 1; weight 0 drops the event)")
    group.add_argument("--event", metavar="COLUMN", help="read event types, which --event-weights maps to weights")
    group.add_argument(
        "--event-weights",
        metavar="EVENT=W,…",
        help="weight every event type, as in play=1,like=3,skip=-1: below 0 is negative feedback, 0 drops the event",
    )
    group.add_argument(
        "--timestamp",
        metavar="COLUMN",
        help="read times: integers (kept), timestamps, dates or ISO text (seconds since 1970)",
    )
    group.add_argument(
        "--timestamp-format",
        nargs="+",
        action="extend",
        metavar="FORMAT",
        help="read times in these formats, each in the first that fits: iso, epoch-s, epoch-ms, epoch-us, epoch-ns (of "
        "several units, by the size of the number), or one of strptime, such as '%%d/%%m/%%Y %%H:%%M'",
    )
    group.add_argument(
        "--context",
        action="append",
        metavar="NAME=COLUMN",
        help="read the context of each event, such as device=device_type, as an entity for model.query_features; or "
        "derive it: NAME=timestamp:hour (0 to 23, UTC), timestamp:weekday (1 is Monday), timestamp:previous (the item "
        "of the event before); repeatable",
    )
    group.add_argument(
        "--id-type",
        choices=["auto", "integer", "string"],
        help="set the type of IDs in text files; auto (default): integer if all IDs are integers",
    )


def _add_attribute_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("features and names")
    group.add_argument(
        "--features",
        action="append",
        metavar="ENTITY=FILE:ID_COLUMN:[NAME=]COLUMN,…",
        help="read features of IDs, such as a track's artist and tags, from Parquet, CSV or TSV: each column becomes "
        "an entity for model.query_features and model.item_features; repeatable",
    )
    group.add_argument(
        "--content",
        action="append",
        metavar="ENTITY=FILE:ID_COLUMN:[NAME=]COLUMN,…",
        help="read numbers or vectors of IDs, such as a track's tempo and an embedding of its audio, from such files, "
        "for model.query_content and model.item_content; repeatable",
    )
    group.add_argument(
        "--catalog",
        action="append",
        metavar="ENTITY",
        help="give rows to all IDs of ENTITY in its --features and --content files, also to those without events (new "
        "tracks)",
    )
    group.add_argument(
        "--names",
        action="append",
        metavar="ENTITY=FILE:ID_COLUMN:NAME_COLUMN",
        help="read names of IDs from a Parquet, CSV or TSV file; repeatable, once for each entity and feature",
    )


def _add_fault_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("faults", "All faults of all files are listed in one pass.")
    group.add_argument(
        "--on-bad-line",
        metavar="fail|skip|quarantine=FILE",
        help="fail (default) if a line cannot be read or has a value that is not allowed, skip it, or move it to FILE "
        "as JSON lines",
    )
    group.add_argument(
        "--on-missing",
        metavar="fail|drop",
        help="fail (default) if a row lacks an ID, weight, event or timestamp, or drop it",
    )
    group.add_argument(
        "--max-bad",
        metavar="SHARE",
        help="fail if these two would leave out more than this share of all rows: 0.1 or 10%% (default), at most 100%%",
    )


def _add_cleaning_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cleaning", "Applied before the hold-outs. The summary counts what was dropped.")
    group.add_argument("--since", metavar="TIME", help="drop events before TIME (an integer or an ISO date)")
    group.add_argument("--until", metavar="TIME", help="drop events at or after TIME")
    group.add_argument(
        "--duplicates",
        choices=["keep", "sum"],
        help="keep repeated events of a pair as interactions (default), or sum them into one with the latest "
        "timestamp; sums of 0 are dropped",
    )
    group.add_argument(
        "--min-count",
        action="append",
        metavar="ENTITY=K",
        help="drop IDs with fewer than K interactions of positive weight, until all have K (k-core filter); repeatable",
    )


def _add_base_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("base dataset, admission and expiry")
    group.add_argument(
        "--base",
        metavar="DATA",
        help="extend an earlier dataset, a folder or s3://: its IDs keep their rows and features, new IDs follow",
    )
    group.add_argument(
        "--admit",
        action="append",
        metavar="ENTITY=K,…",
        help="give a new ID a row once it has K interactions of positive weight in this dataset and its bases "
        "together; until then drop its events and count it in OUT/pending",
    )
    group.add_argument(
        "--expire-after",
        metavar="[ENTITY=]SPAN,…",
        help="vacate the row of an ID without events whose last one is more than SPAN older than the newest event; "
        "new IDs reuse vacant rows before the table grows: 90d, 36h, or an integer in the unit of --timestamp",
    )


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "hold-outs",
        "HOW is last-N (the last N of each query entity, by timestamp), random:FRACTION (of the pairs) or after:TIME\n"
        "(an integer or an ISO date). Every query entity keeps one interaction in train.",
    )
    group.add_argument("--hold-out", metavar="HOW", help="hold out test, then again valid (after:TIME: test only)")
    group.add_argument(
        "--hold-out-valid",
        metavar="HOW",
        help="hold out valid; none: leave train as it is (default, unless --test or --valid names files: random:0.05, "
        "at most about 100,000 pairs)",
    )
    group.add_argument("--hold-out-test", metavar="HOW", help="hold out test")


def _add_resource_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("resources")
    group.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="keep temporary files here (default: next to a local --out, else TMPDIR)",
    )
    add_memory(group)
    group.add_argument("--threads", type=int, metavar="N", help="limit threads (default: one per core)")
