"""``crossfade prepare``: raw events, a sample or synthetic listening become vocabularies and interaction shards."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from kvstore.errors import InputError

if TYPE_CHECKING:
    from trainer.data.build_vocabulary import NamesFile
    from trainer.data.manifest import Manifest
    from trainer.data.synthetic import SyntheticSpec

_EPILOG = """\
Examples:
  crossfade prepare --events plays.parquet --query customer=user_id --item track=track_id \\
                    --hold-out random:0.1 --out data/plays
      One file, one row an event. A tenth of the pairs becomes test, a tenth of the others valid.

  crossfade prepare --events 'events/2024-*.csv' --query customer=user --item track=song --timestamp played_at \\
                    --event action --event-weights play=1,like=3,skip=0 --hold-out last-1 \\
                    --names track=songs.csv:song:title --out data/events
      Many files by a pattern (quoted, or your shell expands it: both work). The weight comes from the action, and
      skips are dropped. The last event of each customer is test, the one before it valid. Tracks get names.

  crossfade prepare --train train.tsv --test test.tsv --query customer=uid --item artist=aid --weight plays --out data/a
      Splits of your own. Columns are those of the header; .dat is read as .tsv.

  crossfade prepare --format lightgcn --train train.txt --valid valid.txt --test test.txt --out data/published
      The form of published splits: 'user item item …' on each line, whole numbers, no header.

  crossfade prepare --sample lastfm --out data/lastfm
  crossfade prepare --synthetic queries=1000000,items=500000,interactions=100000000,genres=50 --out data/synthetic
      Real music to try things on (downloaded where it is not here), and made-up listening of any size.

OUT appears when everything is done, and not at all if something is wrong. Ids keep their type: integers stay integers,
text stays text. An id that only valid or test has gets a row too.
"""

_FORMATS = ("parquet", "csv", "tsv", "lightgcn")
_OF_FILES = [
    "train",
    "valid",
    "test",
    "format",
    "weight",
    "event",
    "event_weights",
    "timestamp",
    "ids",
    "hold_out",
    "hold_out_valid",
    "hold_out_test",
    "names",
    "memory",
    "threads",
]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "prepare",
        help="turn raw events into interaction shards",
        description="Turn raw events (Parquet, CSV, TSV, adjacency text) into vocabularies and interaction shards.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; it must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it holds prepared data")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order and of random choices (default 0)"
    )
    _add_input_options(parser)
    _add_column_options(parser)
    _add_split_options(parser)
    other = parser.add_argument_group("instead of files")
    other.add_argument("--sample", choices=["lastfm"], help="Last.fm HetRec 2011: 1,892 customers, 17,632 artists")
    other.add_argument(
        "--synthetic",
        metavar="KEY=N,…",
        help="make data: queries, items, interactions, genres, and the fractions valid and test (default 0.1 each)",
    )
    parser.set_defaults(run=run)


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files", "Paths or patterns (* ? [] **); several may follow each option.")
    group.add_argument("--train", "--events", nargs="+", action="extend", metavar="FILE", help="events to learn from")
    group.add_argument("--valid", nargs="+", action="extend", metavar="FILE", help="events to choose the best epoch by")
    group.add_argument("--test", nargs="+", action="extend", metavar="FILE", help="events to judge the result by")
    group.add_argument("--format", choices=_FORMATS, help="of all files (default: by ending; .txt needs it)")
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
    group.add_argument("--weight", metavar="COLUMN", help="how much an event counts (default: 1 each; 0 drops it)")
    group.add_argument("--event", metavar="COLUMN", help="the kind of event, which --event-weights gives a weight")
    group.add_argument(
        "--event-weights", metavar="EVENT=W,…", help="a weight for every kind of event, such as play=1,like=3,skip=0"
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
        "--names",
        action="append",
        metavar="ENTITY=FILE:ID_COLUMN:NAME_COLUMN",
        help="names of an entity's ids, from a Parquet, CSV or TSV file; may be given for each entity",
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


class PhaseBars:
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
def phase_bars() -> Iterator[PhaseBars]:
    """Bars of which the last ends with the block."""
    bars = PhaseBars()
    try:
        yield bars
    finally:
        bars.close()


def run(arguments: argparse.Namespace) -> int:
    """Prepare, print a summary and the command to run next; returns the exit code.

    Raises:
        CrossfadeError: it could not be done; nothing is left behind.
    """
    from trainer.data.prepare import describe

    if arguments.memory is not None and not 0 < arguments.memory < float("inf"):
        raise InputError(f"--memory {arguments.memory}: expected a number of GiB above 0")
    sources = [name for name in ("train", "sample", "synthetic") if getattr(arguments, name)]
    if len(sources) != 1:
        given = " and ".join(f"--{name}" for name in sources) or "none"
        raise InputError(f"expected one of --train (or --events), --sample and --synthetic, found {given}")
    bars = PhaseBars()
    try:
        make = {"train": _from_files, "sample": _from_sample, "synthetic": _from_nothing}[sources[0]]
        manifest = make(arguments, bars)
    finally:
        bars.close()
    print(describe(manifest, arguments.out))
    print(f"next: {next_command(arguments.out, manifest.query, manifest.item)}")
    return 0


def next_command(out: Path, query: str, item: str) -> str:
    """The command that trains on ``out``: with the job file of its name if there is one here."""
    job = Path("jobs") / f"{out.name}.yaml"
    settings = [] if job.exists() and out == Path("data") / out.name else [f"data.shards={out}"]
    if not job.exists():
        job = Path("jobs/lastfm.yaml")
        settings += [f"data.query={query}"] if query != "customer" else []
        settings += [f"data.item={item}"] if item != "artist" else []
    return shlex.join(["crossfade", "train", str(job), *(word for text in settings for word in ("--set", text))])


def _from_files(arguments: argparse.Namespace, bars: PhaseBars) -> Manifest:
    from trainer.data.prepare import PrepareOptions, prepare

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
        ids=arguments.ids or "auto",
        hold_out=arguments.hold_out,
        hold_out_valid=arguments.hold_out_valid,
        hold_out_test=arguments.hold_out_test,
        names=parse_names(arguments.names or ()),
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        memory_bytes=None if arguments.memory is None else int(arguments.memory * 2**30),
        threads=arguments.threads,
    )
    return prepare(options, bars)


def _from_sample(arguments: argparse.Namespace, bars: PhaseBars) -> Manifest:
    from trainer.data.output import check_free
    from trainer.data.sample import locate_lastfm, prepare_lastfm

    _refuse(arguments, "--sample", [*_OF_FILES, "query", "item"])
    check_free(arguments.out, arguments.overwrite)
    folder = locate_lastfm(arguments.out.parent, bars)
    return prepare_lastfm(folder, arguments.out, arguments.seed, arguments.overwrite, bars)


def _from_nothing(arguments: argparse.Namespace, bars: PhaseBars) -> Manifest:
    from trainer.data.synthetic import write_synthetic

    _refuse(arguments, "--synthetic", _OF_FILES)
    spec = parse_synthetic(arguments.synthetic, arguments.query or "customer", arguments.item or "track")
    return write_synthetic(arguments.out, spec, arguments.seed, arguments.overwrite, bars)


def _refuse(arguments: argparse.Namespace, source: str, names: Sequence[str]) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')}: is about events in files, and {source} reads none; leave it out"
            )


def split_pair(text: str) -> tuple[str, str | None]:
    """``NAME=COLUMN`` as name and column, ``NAME`` as name and None."""
    name, separator, column = text.partition("=")
    return name, column if separator else None


def parse_event_weights(text: str | None) -> dict[str, float]:
    """Read ``play=1,like=3,skip=0``.

    Raises:
        InputError: it is of another form.
    """
    weights: dict[str, float] = {}
    for part in text.split(",") if text is not None else ():
        event, _, weight = part.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            event = ""
        if not event or event in weights:
            raise InputError(
                f"--event-weights {text}: '{part}' is not EVENT=NUMBER, each event once; expected play=1,skip=0"
            )
        weights[event] = value
    return weights


def parse_names(texts: Sequence[str]) -> dict[str, NamesFile]:
    """Read ``ENTITY=FILE:ID_COLUMN:NAME_COLUMN``, once for each entity.

    Raises:
        InputError: one is of another form.
    """
    from trainer.data.build_vocabulary import NamesFile

    names: dict[str, NamesFile] = {}
    for text in texts:
        entity, _, rest = text.partition("=")
        parts = rest.rsplit(":", 2)
        if not entity or len(parts) != 3 or not all(parts):
            raise InputError(
                f"--names {text}: expected ENTITY=FILE:ID_COLUMN:NAME_COLUMN, as in track=songs.csv:id:title"
            )
        if entity in names:
            raise InputError(f"--names {text}: '{entity}' has a names file already; expected one for each entity")
        names[entity] = NamesFile(*parts)
    return names


def parse_synthetic(text: str, query: str, item: str) -> SyntheticSpec:
    """Read ``queries=1000,items=500,…``; numbers may be written 1_000_000 or 1e6.

    Raises:
        InputError: a key is unknown, or a value no number.
    """
    from trainer.data.synthetic import SyntheticSpec

    kinds = {field.name: field.type for field in fields(SyntheticSpec) if field.type in ("int", "float")}
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in kinds or key in values:
            raise InputError(
                f"--synthetic {text}: '{part}' is not KEY=NUMBER; the keys, each once, are: {', '.join(kinds)}"
            )
        try:
            number = float(value)
            values[key] = int(number) if kinds[key] == "int" and number.is_integer() else number
        except (ValueError, OverflowError):
            raise InputError(f"--synthetic {key}={value}: '{value}' is not a number; write it as 1000 or 1e3") from None
        if kinds[key] == "int" and not isinstance(values[key], int):
            raise InputError(f"--synthetic {key}={value}: expected a whole number")
    return SyntheticSpec(**values, query=query, item=item)
