"""``crossfade prepare``: turn raw events, or the Last.fm sample, into a dataset of vocabularies and interactions."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.cli.command import add_command
from crossfade.cli.options.parsing import (
    memory_bytes,
    parse_context,
    parse_event_weights,
    parse_features,
    parse_minimums,
    parse_names,
    parse_on_bad_line,
    parse_on_missing,
    parse_share,
    parse_spans,
    split_pair,
)
from crossfade.cli.options.prepare import add_options
from crossfade.display import progress_bars
from crossfade.next_command import train_command
from crossfade.terminal import print_line, print_lines

if TYPE_CHECKING:
    from crossfade.trainer.data.manifest import DatasetManifest
    from crossfade.trainer.data.reporter import ProgressReporter
    from crossfade.trainer.prepare.options import PrepareOptions

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    (
        "crossfade prepare --events plays.parquet --query customer=user_id --item track=track_id \\\n"
        "                    --hold-out random:0.1 --out data/plays",
        "Read one file, one event per row. Hold out a tenth of the pairs as test, a tenth of the others as valid.",
    ),
    (
        "crossfade prepare --events 'events/2024-*.csv' --query customer=user --item track=song --timestamp at \\\n"
        "                    --event action --event-weights play=1,like=3,skip=-1 --hold-out last-1 \\\n"
        "                    --names track=songs.csv:song:title --out data/events",
        "Read many files; weight events by type; hold out each customer's last event. Tracks get names.",
    ),
    (
        "crossfade prepare --events day3.parquet --base data/day2 --timestamp at --admit track=5,customer=3 \\\n"
        "                    --expire-after 90d --out data/day3",
        "Extend a dataset in tables of bounded size: IDs get rows after some events, and lose them after 90 days.",
    ),
    (
        "crossfade prepare --events scrobbles.csv.gz --query customer=user --item track=artist+title \\\n"
        "                    --timestamp at --timestamp-format iso '%d/%m/%Y %H:%M' epoch-s \\\n"
        "                    --on-bad-line quarantine=bad.jsonl --on-missing drop --out data/scrobbles",
        "Join artist and title into one ID; read times of several formats; move bad lines to a file.",
    ),
    ("crossfade prepare --sample lastfm --out data/lastfm", "Download real listening data to try things on."),
)
_NOTES = """\
--format lightgcn reads published splits: 'user item item …' per line, integers, no header. Other text files have a
header, or a JSON object in each line (.jsonl, .ndjson); .dat is read as .tsv. They may be compressed with gzip or zstd,
as in .csv.gz and .jsonl.zst. Files and --out may be on S3, with the credentials and endpoint of the AWS tools.

OUT appears when everything is done, and not at all after an error. Ids keep their type: integers stay integers, text
stays text. An ID that occurs only in valid or test gets a row too. Synthetic data: see 'crossfade synthesize'.
"""
_INPUT_OPTIONS = (
    *("train", "valid", "test", "format", "query", "item", "weight", "event", "event_weights", "timestamp", "id_type"),
    *("delimiter", "timestamp_format", "context", "on_bad_line", "on_missing", "max_bad"),
    *("features", "content", "catalog", "names", "since", "until", "duplicates", "min_count", "base", "admit"),
    *("expire_after", "hold_out", "hold_out_valid", "hold_out_test", "order", "work_dir", "memory", "threads"),
)
"""Options that describe event files; ``--sample`` rejects them."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "prepare",
        "turn raw events into a dataset",
        "Turn raw events (Parquet, CSV, TSV, JSON, adjacency text) into a dataset of vocabularies and interactions.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    parser.suggest = lambda word, value: "" if word.startswith("-") else f"use --events {word}"
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prepare a dataset, and print a summary and the command to run next.

    Raises:
        CrossfadeError: preparing failed; nothing is left behind.
    """
    from crossfade.trainer.prepare.summary import format_summary

    if bool(arguments.train) == bool(arguments.sample):
        found = "both" if arguments.train else "neither"
        raise InputError(f"expected either --events or --sample, but found {found}")
    if arguments.skip_existing and not arguments.sample:
        raise InputError("--skip-existing: works only with --sample, since event files may have changed; leave it out")
    if arguments.out is None:
        raise InputError("--out is missing; name the folder, or s3://BUCKET/PREFIX, of the dataset")
    if arguments.skip_existing and _sample_exists(arguments):
        print_line(f"{arguments.out}: exists already; nothing to do")
        return 0
    with progress_bars() as bars:
        manifest = _prepare_sample(arguments, bars) if arguments.sample else _prepare_files(arguments, bars)
    print_lines(format_summary(manifest, Folder(arguments.out)).splitlines())
    print_line(f"next: {train_command(arguments.out, manifest.query, manifest.item)}")
    return 0


def _prepare_files(arguments: argparse.Namespace, progress: ProgressReporter) -> DatasetManifest:
    from crossfade.trainer.prepare.pipeline import prepare

    return prepare(_prepare_options(arguments), progress)


def _prepare_options(arguments: argparse.Namespace) -> PrepareOptions:
    from crossfade.trainer.prepare.faults import MAX_BAD
    from crossfade.trainer.prepare.options import PrepareOptions

    query, query_column = split_pair(arguments.query or "customer")
    item, item_column = split_pair(arguments.item or "item")
    on_bad_line, quarantine = parse_on_bad_line(arguments.on_bad_line)
    return PrepareOptions(
        out=arguments.out,
        train=arguments.train,
        valid=arguments.valid or (),
        test=arguments.test or (),
        format=arguments.format,
        delimiter="\t" if arguments.delimiter == "\\t" else arguments.delimiter,
        query=query,
        item=item,
        query_column=query_column,
        item_column=item_column,
        weight=arguments.weight,
        event=arguments.event,
        event_weights=parse_event_weights(arguments.event_weights),
        timestamp=arguments.timestamp,
        timestamp_formats=arguments.timestamp_format or (),
        context=parse_context(arguments.context or (), "COLUMN", "hour=timestamp:hour"),
        on_bad_line=on_bad_line,
        quarantine=quarantine,
        on_missing=parse_on_missing(arguments.on_missing),
        max_bad=MAX_BAD if arguments.max_bad is None else parse_share("--max-bad", arguments.max_bad),
        since=arguments.since,
        until=arguments.until,
        duplicates=arguments.duplicates or "keep",
        min_count=parse_minimums("--min-count", arguments.min_count or ()),
        admit=parse_minimums("--admit", arguments.admit or ()),
        expire_after=parse_spans(arguments.expire_after, (query, item)),
        id_type=arguments.id_type or "auto",
        hold_out=arguments.hold_out,
        hold_out_valid=arguments.hold_out_valid,
        hold_out_test=arguments.hold_out_test,
        names=parse_names(arguments.names or ()),
        features=parse_features(arguments.features or ()),
        content=parse_features(arguments.content or (), "--content"),
        catalog=arguments.catalog or (),
        base=arguments.base,
        order=arguments.order or "grouped",
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        work_dir=arguments.work_dir,
        memory_bytes=memory_bytes(arguments.memory),
        threads=arguments.threads,
    )


def _prepare_sample(arguments: argparse.Namespace, progress: ProgressReporter) -> DatasetManifest:
    from crossfade.trainer.prepare.lastfm import locate_lastfm, prepare_lastfm
    from crossfade.trainer.prepare.staging import check_free

    for name in _INPUT_OPTIONS:
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: describes event files, and --sample reads none; leave it out")
    out = Folder(arguments.out)
    check_free(out, arguments.overwrite)
    folder = locate_lastfm(Path("data") if out.path is None else out.path.parent, progress, _logger.info)
    return prepare_lastfm(folder, arguments.out, arguments.seed, arguments.overwrite, progress)


def _sample_exists(arguments: argparse.Namespace) -> bool:
    from crossfade.trainer.prepare.existing import read_complete
    from crossfade.trainer.prepare.lastfm import is_lastfm_sample

    manifest = read_complete(Folder(arguments.out))
    return manifest is not None and is_lastfm_sample(manifest, arguments.seed)
