"""``crossfade prepare``: raw events, a sample or synthetic listening become vocabularies and interaction shards."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from crossfade.commands.forget import forget_ids
from crossfade.commands.validate import check_data, report
from crossfade.options.parsing import (
    parse_event_weights,
    parse_features,
    parse_minimums,
    parse_names,
    parse_spans,
    parse_synthetic,
    split_pair,
)
from crossfade.options.prepare import EPILOG, add_options
from kvstore.errors import InputError
from kvstore.io.folder import Folder

if TYPE_CHECKING:
    from trainer.data.manifest import DatasetManifest
    from trainer.prepare.synthetic import SyntheticSpec

_OF_FILES = [
    "train",
    "valid",
    "test",
    "format",
    "weight",
    "event",
    "event_weights",
    "timestamp",
    "since",
    "until",
    "duplicates",
    "min_count",
    "admit",
    "expire_after",
    "ids",
    "hold_out",
    "hold_out_valid",
    "hold_out_test",
    "names",
    "features",
    "catalogue",
    "vocabulary",
    "memory",
    "threads",
]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "prepare",
        help="turn raw events into interaction shards",
        description="Turn raw events (Parquet, CSV, TSV, adjacency text) into vocabularies and interaction shards.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.set_defaults(run=run)


class ProgressBars:
    """A progress bar on stderr for each phase."""

    def __init__(self) -> None:
        """No phase has begun."""
        self._bar: tqdm[Any] | None = None

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """End the bar before, begin another."""
        self.close()
        # Where nobody watches, as in a log, a line for each long phase is enough.
        watched = sys.stderr.isatty()
        scaled = unit in ("row", "B")
        shown = f" {unit}" if unit == "row" else unit
        self._bar = tqdm(
            total=total,
            desc=name,
            unit=shown,
            unit_scale=scaled,
            mininterval=0.1 if watched else 60.0,
            delay=0.0 if watched else 1.0,
            dynamic_ncols=True,
        )

    def advance(self, amount: int) -> None:
        """Move the bar."""
        assert self._bar is not None
        self._bar.update(amount)

    def close(self) -> None:
        """End the last bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def phase_bars() -> Iterator[ProgressBars]:
    """Bars of which the last ends with the block."""
    bars = ProgressBars()
    try:
        yield bars
    finally:
        bars.close()


def run(arguments: argparse.Namespace) -> int:
    """Prepare, print a summary and the command to run next; returns the exit code.

    Raises:
        CrossfadeError: it could not be done; nothing is left behind.
    """
    from trainer.prepare.summary import format_summary

    if arguments.memory is not None and not 0 < arguments.memory < float("inf"):
        raise InputError(f"--memory {arguments.memory}: expected a number of GiB above 0")
    sources = [name for name in ("train", "sample", "synthetic", "forget", "check") if getattr(arguments, name)]
    if len(sources) != 1:
        given = " and ".join(f"--{name}" for name in sources) or "none"
        raise InputError(
            f"expected one of --train (or --events), --sample, --synthetic, --forget and --check, found {given}"
        )
    for option in ("column", "entity"):
        if getattr(arguments, option) is not None and sources != ["forget"]:
            raise InputError(f"--{option}: says whom --forget is about; leave it out")
    if arguments.reuse and (sources[0] not in ("sample", "synthetic") or arguments.raw):
        raise InputError(
            "--reuse: is for what --sample and --synthetic prepare, since files may have changed; leave it out"
        )
    if sources == ["check"]:
        return _check(arguments)
    if arguments.out is None:
        raise InputError("--out is missing; name the folder, or s3://BUCKET/PREFIX, of the prepared data")
    if sources == ["forget"]:
        return _forget(arguments)
    if arguments.raw:
        return _write_raw(arguments)
    made = _find_made(arguments) if arguments.reuse else None
    if made is not None:
        print(f"{arguments.out}: made already; nothing to do")
        return 0
    with phase_bars() as bars:
        make = {"train": _from_files, "sample": _from_sample, "synthetic": _from_synthetic}[sources[0]]
        manifest = make(arguments, bars)
    print(format_summary(manifest, Folder(arguments.out)))
    print(f"next: {next_command(arguments.out, manifest.query, manifest.item)}")
    return 0


def _forget(arguments: argparse.Namespace) -> int:
    _refuse(arguments, "--forget", [*_OF_FILES, "query", "item"])
    with phase_bars() as bars:
        said = forget_ids(arguments, bars)
    print(said)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    _refuse(arguments, "--check", [name for name in (*_OF_FILES, "out") if name != "memory"])
    with phase_bars() as bars:
        checked = check_data(arguments, bars)
    manifest = report(checked, arguments.check)
    print(f"next: {next_command(arguments.check, manifest.query, manifest.item)}")
    return 0


def next_command(out: str, query: str, item: str) -> str:
    """The command that trains on ``out``: with the job file of its name if there is one here."""
    name = Folder(out).name
    job = Path("jobs") / f"{name}.yaml"
    settings = [] if job.exists() and Folder(out).path == Path("data") / name else [f"data.path={out}"]
    if not job.exists():
        job = Path("jobs/lastfm.yaml")
        settings += [f"data.query={query}"] if query != "customer" else []
        settings += [f"data.item={item}"] if item != "artist" else []
    return shlex.join(["crossfade", "train", str(job), *(word for text in settings for word in ("--set", text))])


def _from_files(arguments: argparse.Namespace, bars: ProgressBars) -> DatasetManifest:
    from trainer.prepare.pipeline import PrepareOptions, prepare

    query, query_column = split_pair(arguments.query or "customer")
    item, item_column = split_pair(arguments.item or "item")
    options = PrepareOptions(
        out=arguments.out,
        train=arguments.train,
        valid=arguments.valid or (),
        test=arguments.test or (),
        format=arguments.format,
        query=query,
        item=item,
        query_column=query_column,
        item_column=item_column,
        weight=arguments.weight,
        event=arguments.event,
        event_weights=parse_event_weights(arguments.event_weights),
        timestamp=arguments.timestamp,
        since=arguments.since,
        until=arguments.until,
        duplicates=arguments.duplicates or "keep",
        min_count=parse_minimums("--min-count", arguments.min_count or ()),
        admit=parse_minimums("--admit", arguments.admit or ()),
        expire_after=parse_spans(arguments.expire_after, (query, item)),
        id_type=arguments.ids or "auto",
        hold_out=arguments.hold_out,
        hold_out_valid=arguments.hold_out_valid,
        hold_out_test=arguments.hold_out_test,
        names=parse_names(arguments.names or ()),
        features=parse_features(arguments.features or ()),
        catalog=arguments.catalogue or (),
        base=arguments.vocabulary,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        work_dir=arguments.work,
        memory_bytes=None if arguments.memory is None else int(arguments.memory * 2**30),
        threads=arguments.threads,
    )
    return prepare(options, bars)


def _from_sample(arguments: argparse.Namespace, bars: ProgressBars) -> DatasetManifest:
    from trainer.prepare.lastfm import locate_lastfm, prepare_lastfm
    from trainer.prepare.staging import check_free

    _refuse(arguments, "--sample", [*_OF_FILES, "query", "item", "work"])
    out = Folder(arguments.out)
    check_free(out, arguments.overwrite)
    folder = locate_lastfm(Path("data") if out.path is None else out.path.parent, bars)
    return prepare_lastfm(folder, arguments.out, arguments.seed, arguments.overwrite, bars)


def _from_synthetic(arguments: argparse.Namespace, bars: ProgressBars) -> DatasetManifest:
    from trainer.prepare.synthetic import write_synthetic

    _refuse(arguments, "--synthetic", _OF_FILES)
    spec = _synthetic_spec(arguments)
    return write_synthetic(arguments.out, spec, arguments.seed, arguments.overwrite, bars, arguments.work)


def _find_made(arguments: argparse.Namespace) -> DatasetManifest | None:
    """The data set that is asked for, if it is there."""
    from trainer.prepare.existing import read_complete
    from trainer.prepare.lastfm import is_lastfm_sample
    from trainer.prepare.synthetic import synthetic_source

    manifest = read_complete(Folder(arguments.out))
    if manifest is None:
        return None
    if arguments.sample:
        same = is_lastfm_sample(manifest, arguments.seed)
    else:
        same = manifest.source == synthetic_source(_synthetic_spec(arguments), arguments.seed)
    return manifest if same else None


def _synthetic_spec(arguments: argparse.Namespace) -> SyntheticSpec:
    return parse_synthetic(arguments.synthetic, arguments.query or "customer", arguments.item or "track")


def _write_raw(arguments: argparse.Namespace) -> int:
    from trainer.prepare.synthetic_events import prepare_arguments, write_raw_events

    if not arguments.synthetic:
        raise InputError("--raw: says how to write --synthetic data; leave it out")
    _refuse(arguments, "--raw", [*_OF_FILES, "work"])
    if arguments.overwrite:
        raise InputError("--overwrite: replaces prepared data, and --raw makes none; delete the old events yourself")
    spec = _synthetic_spec(arguments)
    with phase_bars() as bars:
        names = write_raw_events(arguments.out, spec, arguments.seed, bars)
    print(
        f"{arguments.out}: {spec.interactions:,} events of {spec.queries:,} ids of {spec.query} and {spec.items:,} of "
        f"{spec.item}, in {len(names)} file(s)"
    )
    print(f"next: {shlex.join(['crossfade', *prepare_arguments(arguments.out, spec, names)])}")
    return 0


def _refuse(arguments: argparse.Namespace, source: str, names: Sequence[str]) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')}: is about events in files, and {source} reads none; leave it out"
            )
