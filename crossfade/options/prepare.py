"""The options of ``crossfade prepare``, and what its --help teaches."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
Examples:
  crossfade prepare --events plays.parquet --query customer=user_id --item track=track_id \\
                    --hold-out random:0.1 --out data/plays
      One file, one row an event. A tenth of the pairs becomes test, a tenth of the others valid.

  crossfade prepare --events 'events/2024-*.csv' --query customer=user --item track=song --timestamp played_at \\
                    --event action --event-weights play=1,like=3,skip=-1 --hold-out last-1 \\
                    --names track=songs.csv:song:title --out data/events
      Many files by a pattern (quoted, or your shell expands it: both work). The weight comes from the action; a skip
      says what is not wanted (0 would drop it). The last event of each customer is test, the one before it valid.
      Tracks get names.

  crossfade prepare --events 's3://raw/2024-*/plays-*.parquet' --query customer=user --item track=song \\
                    --timestamp at --since 2024-03-01 --duplicates sum --min-count customer=5 --min-count track=10 \\
                    --hold-out after:2024-12-01 --work /mnt/scratch --out s3://music/2024
      From and to S3, whose credentials and endpoint are those of the AWS tools. Repeated plays become one interaction;
      customers and tracks with too few are left out.

  crossfade prepare --events plays.parquet --query customer=user_id --item track=track_id --hold-out random:0.1 \\
                    --features 'track=songs.parquet:track_id:artist=artist_id,tag=tags' \\
                    --features customer=users.csv:user_id:country --out data/featured
      What tracks and customers have besides. An id may have several values: a list in Parquet, or several rows. A job
      with model.item_features: [track, artist, tag] then learns from them too, and knows a new track by its artist and tags.

  crossfade prepare --train train.tsv --test test.tsv --query customer=uid --item artist=aid --weight plays --out data/a
      Splits of your own. Columns are those of the header; .dat is read as .tsv.

  crossfade prepare --format lightgcn --train train.txt --valid valid.txt --test test.txt --out data/published
      The form of published splits: 'user item item …' on each line, whole numbers, no header.

  crossfade prepare --events day2.parquet --vocabulary data/day1 --out data/day2
      A new day: ids of data/day1 keep their rows, so that checkpoint.warm_start_from goes on from its tables.

  crossfade prepare --events day3.parquet --vocabulary data/day2 --timestamp at --admit track=5,customer=3 \\
                    --expire-after 90d --out data/day3
      The same in tables that do not grow for ever: who is new gets a row after so many events, counted over the days,
      and who was not seen for 90 days makes room.

  crossfade prepare --forget ids.txt --out data/plays
      Delete customers from prepared data: what they did, their ids and names. All others stay as they are.

  crossfade prepare --check s3://music/plays
      See whether shards that Spark, Athena or Dask made are right (docs/data-format.md), and write their manifest.

  crossfade prepare --sample lastfm --out data/lastfm
  crossfade prepare --synthetic queries=1000000,items=500000,interactions=100000000,genres=50 --out data/synthetic
      Real music to try things on (downloaded where it is not here), and made-up listening of any size.

  crossfade prepare --synthetic queries=1e6,items=1e5,interactions=1e8 --raw --out s3://raw/made-up
      The same as a service would log it: raw events to prepare, with kinds of events and ids of text.

OUT appears when everything is done, and not at all if something is wrong. Ids keep their type: integers stay integers,
text stays text. An id that only valid or test has gets a row too.
"""

_FORMATS = ("parquet", "csv", "tsv", "lightgcn")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them all to ``parser``."""
    parser.add_argument("--out", metavar="DIR", help="folder or s3://BUCKET/PREFIX to write; it must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it holds prepared data")
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="with --sample and --synthetic: make nothing if DIR is whole and was made by the same command",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order and of random choices (default 0)"
    )
    _add_input_options(parser)
    _add_column_options(parser)
    _add_cleaning_options(parser)
    _add_split_options(parser)
    _add_forget_options(parser)
    other = parser.add_argument_group("instead of files")
    other.add_argument("--sample", choices=["lastfm"], help="Last.fm HetRec 2011: 1,892 customers, 17,632 artists")
    other.add_argument(
        "--synthetic",
        metavar="KEY=N,…",
        help="make data: queries, items, interactions, genres, and the fractions valid and test (default 0.1 each)",
    )
    other.add_argument(
        "--check",
        metavar="DATA",
        help="see whether data, such as shards made elsewhere, are as they should be; write a manifest that is missing",
    )
    other.add_argument("--raw", action="store_true", help="with --synthetic: write raw events, as a service logs them")


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "files", "Paths, s3:// addresses or patterns (* ? [] **); several may follow each option."
    )
    group.add_argument("--train", "--events", nargs="+", action="extend", metavar="FILE", help="events to learn from")
    group.add_argument("--valid", nargs="+", action="extend", metavar="FILE", help="events to choose the best epoch by")
    group.add_argument("--test", nargs="+", action="extend", metavar="FILE", help="events to judge the result by")
    group.add_argument("--format", choices=_FORMATS, help="of all files (default: by ending; .txt needs it)")
    group.add_argument(
        "--vocabulary",
        metavar="DATA",
        help="earlier prepared data, a folder or s3://: its ids keep their rows and features, new ones come after them",
    )
    group.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder for temporary files (default: beside a local --out, else TMPDIR)",
    )
    group.add_argument("--memory", type=float, metavar="GIB", help="memory to use (default: half, 4 at most)")
    group.add_argument("--threads", type=int, metavar="N", help="threads to use (default: one a core)")


def _add_column_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns")
    group.add_argument(
        "--query",
        metavar="NAME[=COLUMN]",
        help="who listens: the name of the entity, and the column of its ids if that is another (default customer)",
    )
    group.add_argument("--item", metavar="NAME[=COLUMN]", help="what is listened to, likewise (default item)")
    group.add_argument("--weight", metavar="COLUMN", help="how much an event counts (default: 1; 0 drops it)")
    group.add_argument("--event", metavar="COLUMN", help="the kind of event, which --event-weights gives a weight")
    group.add_argument(
        "--event-weights",
        metavar="EVENT=W,…",
        help="a weight for every kind of event, such as play=1,like=3,skip=-1: below 0 is not wanted, 0 drops it",
    )
    group.add_argument(
        "--timestamp",
        metavar="COLUMN",
        help="when: integers (kept), timestamps, dates or ISO text (seconds since 1970)",
    )
    group.add_argument(
        "--ids",
        choices=["auto", "integer", "string"],
        help="ids of text files: integers if all are (auto, the default), always, or never",
    )
    group.add_argument(
        "--features",
        action="append",
        metavar="ENTITY=FILE:ID_COLUMN:[NAME=]COLUMN,…",
        help="what ids have besides, such as a track's artist and tags, from Parquet, CSV or TSV: each column becomes "
        "an entity that model.query_features and model.item_features may name; may be given several times",
    )
    group.add_argument(
        "--catalogue",
        action="append",
        metavar="ENTITY",
        help="ids of ENTITY that are in no event, but in a file of --features, get rows too: tracks that are new",
    )
    group.add_argument(
        "--names",
        action="append",
        metavar="ENTITY=FILE:ID_COLUMN:NAME_COLUMN",
        help="names of an entity's ids, from a Parquet, CSV or TSV file; may be given for each entity and feature",
    )


def _add_cleaning_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cleaning", "Before anything is held out. What was dropped is said at the end.")
    group.add_argument("--since", metavar="TIME", help="drop events before TIME (an integer or an ISO date)")
    group.add_argument("--until", metavar="TIME", help="drop events at or after TIME")
    group.add_argument(
        "--duplicates",
        choices=["keep", "sum"],
        help="several events of one customer and track: several interactions (keep, the default), or one with the sum "
        "of their weights and the latest timestamp; sums of 0 are dropped",
    )
    group.add_argument(
        "--min-count",
        action="append",
        metavar="ENTITY=K",
        help="leave out ids with fewer than K interactions of positive weight, until all have K; for each entity",
    )
    group.add_argument(
        "--admit",
        action="append",
        metavar="ENTITY=K,…",
        help="a new id gets a row once it has K interactions of positive weight in these data and in those that "
        "--vocabulary goes on from, together; until then its events are left out, and it is counted in OUT/pending",
    )
    group.add_argument(
        "--expire-after",
        metavar="[ENTITY=]SPAN,…",
        help="an id whose last event is more than SPAN older than the newest one, and that is in no event now, loses "
        "its row, which new ids take before the table grows: days (90d), hours (36h), or an integer in the unit of "
        "--timestamp; for each entity or for both",
    )


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "hold-outs",
        "HOW is last-N (the last N of each query entity, by timestamp), random:FRACTION (of the pairs) or after:TIME\n"
        "(an integer or an ISO date). Every query entity keeps one interaction for train.",
    )
    group.add_argument("--hold-out", metavar="HOW", help="for test, then again for valid (after: for test alone)")
    group.add_argument("--hold-out-valid", metavar="HOW", help="for valid")
    group.add_argument("--hold-out-test", metavar="HOW", help="for test")


def _add_forget_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("forgetting", "Deletes some customers from the prepared data in --out, in place.")
    group.add_argument(
        "--forget", metavar="FILE", help="their ids: text with one a line, or a column of Parquet, CSV or TSV"
    )
    group.add_argument("--column", metavar="COLUMN", help="that column (default: the entity's name, or the only one)")
    group.add_argument("--entity", metavar="NAME", help="whose ids these are (default: the query side's)")
