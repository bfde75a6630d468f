"""``crossfade synthesize``: generate listening data of any size, as a dataset or as raw events."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.text import counted
from crossfade.cli.command import add_command
from crossfade.cli.options.parsing import parse_number, parse_whole_number
from crossfade.display import progress_bars
from crossfade.next_command import command_line, train_command
from crossfade.terminal import print_line, print_lines

if TYPE_CHECKING:
    from crossfade.trainer.prepare.synthetic_draws import SyntheticSpec

_EXAMPLES = (
    (
        "crossfade synthesize --queries 1e6 --items 5e5 --interactions 1e8 --genres 50 --out data/synthetic",
        "Generate a dataset to train on.",
    ),
    (
        "crossfade synthesize --queries 1e6 --items 1e5 --interactions 1e8 --raw-events --out s3://raw/synthetic",
        "Generate raw events as a service logs them, with event types and text IDs, to prepare.",
    ),
)
_NOTES = """\
Popularity follows Zipf's law, and customers prefer a few of the genres. The same options and seed give the same bytes.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "synthesize",
        "generate a dataset or raw events",
        "Generate synthetic listening data with planted genres, as a dataset or as raw events.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="write to this folder or s3://BUCKET/PREFIX; it must not exist")
    output.add_argument("--overwrite", action="store_true", help="replace DIR if it holds a prepared dataset")
    output.add_argument(
        "--skip-existing",
        action="store_true",
        help="do nothing if DIR is complete and was made with the same options",
    )
    output.add_argument("--raw-events", action="store_true", help="write raw events instead of a dataset")
    output.add_argument("--work-dir", type=Path, metavar="DIR", help="keep temporary files here (default: near --out)")
    size = parser.add_argument_group("size", "Numbers may be written 1000000, 1_000_000 or 1e6.")
    size.add_argument("--queries", metavar="N", help="generate N query rows (default: 2,000)")
    size.add_argument("--items", metavar="N", help="generate N item rows (default: 4,000)")
    size.add_argument("--interactions", metavar="N", help="generate N interactions in all splits (default: 100,000)")
    size.add_argument("--valid", metavar="FRACTION", help="hold out this fraction as valid (default: 0.1)")
    size.add_argument("--test", metavar="FRACTION", help="hold out this fraction as test (default: 0.1)")
    content = parser.add_argument_group("content")
    content.add_argument("--genres", metavar="N", help="plant N genres (default: 20)")
    content.add_argument(
        "--audio", metavar="N", help="give each item a vector of N numbers, by its genre (default: none)"
    )
    content.add_argument(
        "--moods",
        metavar="N",
        help="have each customer of raw events play one genre at a time, and turn N times to another (default: one to "
        "three genres at all times)",
    )
    content.add_argument(
        "--likes",
        choices=["all", "genre", "customer"],
        help="have likes and library adds of raw events go to what is played (all), to every other genre, or to one "
        "genre of each customer (default: all)",
    )
    content.add_argument("--query", default="customer", metavar="NAME", help="name the querying entity (%(default)s)")
    content.add_argument("--item", default="track", metavar="NAME", help="name the item entity (%(default)s)")
    content.add_argument("--seed", type=int, default=0, metavar="N", help="seed all draws (default: 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate the data, and print a summary and the command to run next.

    Raises:
        InputError: an option is out of its range, or ``--out`` exists.
    """
    if arguments.out is None:
        raise InputError("--out is missing; name the folder, or s3://BUCKET/PREFIX, of the data")
    spec = _read_spec(arguments)
    return _write_raw_events(arguments, spec) if arguments.raw_events else _write_dataset(arguments, spec)


def _read_spec(arguments: argparse.Namespace) -> SyntheticSpec:
    from crossfade.trainer.prepare.synthetic_draws import SyntheticSpec

    parsers = {"int": parse_whole_number, "float": parse_number}
    numbers = {
        field.name: parsers[str(field.type)](f"--{field.name}", getattr(arguments, field.name))
        for field in fields(SyntheticSpec)
        if field.type in parsers and getattr(arguments, field.name) is not None
    }
    names = {"query": arguments.query, "item": arguments.item, "likes": arguments.likes or "all"}
    return SyntheticSpec(**numbers, **names)  # type: ignore[arg-type]


def _write_dataset(arguments: argparse.Namespace, spec: SyntheticSpec) -> int:
    from crossfade.trainer.prepare.existing import read_complete
    from crossfade.trainer.prepare.summary import format_summary
    from crossfade.trainer.prepare.synthetic import synthetic_source, write_synthetic

    if arguments.moods is not None:
        raise InputError("--moods: applies to --raw-events, since the interactions of datasets are in no order of time")
    if arguments.likes is not None:
        raise InputError("--likes: applies to --raw-events, since the interactions of datasets are of one kind")
    if arguments.skip_existing:
        existing = read_complete(Folder(arguments.out))
        if existing is not None and existing.source == synthetic_source(spec, arguments.seed):
            print_line(f"{arguments.out}: exists already; nothing to do")
            return 0
    with progress_bars() as bars:
        manifest = write_synthetic(arguments.out, spec, arguments.seed, arguments.overwrite, bars, arguments.work_dir)
    print_lines(format_summary(manifest, Folder(arguments.out)).splitlines())
    print_line(f"next: {train_command(arguments.out, manifest.query, manifest.item)}")
    return 0


def _write_raw_events(arguments: argparse.Namespace, spec: SyntheticSpec) -> int:
    from crossfade.trainer.prepare.synthetic_events import prepare_arguments, write_raw_events

    for name in ("skip_existing", "overwrite", "work_dir", "valid", "test", "audio"):
        if getattr(arguments, name) not in (None, False):
            raise InputError(f"--{name.replace('_', '-')}: applies to datasets, not to --raw-events; leave it out")
    with progress_bars() as bars:
        names = write_raw_events(arguments.out, spec, arguments.seed, bars)
    print_line(
        f"{arguments.out}: {spec.interactions:,} events of {spec.queries:,} ids of {spec.query} and {spec.items:,} of "
        f"{spec.item}, in {counted(len(names), 'file')}"
    )
    print_line(f"next: {command_line(*prepare_arguments(arguments.out.rstrip('/'), spec, names))}")
    return 0
