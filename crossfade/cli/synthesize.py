"""``crossfade synthesize``: generate listening data of any size, as a dataset or as raw events."""

from __future__ import annotations

from crossfade.base.command_line import command_line
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import print_line
from crossfade.trainer.prepare.options import SynthesizeOptions

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


@as_command(
    "synthesize",
    "Generate synthetic listening data with planted genres, as a dataset or as raw events.",
    _EXAMPLES,
    _NOTES,
)
def run(options: SynthesizeOptions) -> int:
    """Generate the data, and print a summary and the command to run next.

    Raises:
        InputError: the output exists and may not be replaced, or a split would be empty.
    """
    return _write_raw_events(options) if options.raw_events else _write_dataset(options)


def _write_dataset(options: SynthesizeOptions) -> int:
    from crossfade.cli.next_command import print_prepared
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.synthetic import synthesize

    with progress_bars() as bars:
        print_prepared(synthesize(options, bars), options.out)
    return 0


def _write_raw_events(options: SynthesizeOptions) -> int:
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.synthetic_draws import Generator
    from crossfade.trainer.prepare.synthetic_events import (
        EVENT,
        EVENTS_FOLDER,
        NAMES_FOLDER,
        TIMESTAMP,
        write_raw_events,
    )

    with progress_bars() as bars:
        names = write_raw_events(options.out, Generator(options, options.seed), bars)
    print_line(
        f"{options.out}: {counted(options.interactions, 'event')} of {counted(options.queries, 'id')} of "
        f"{options.query} and {options.items:,} of {options.item}, in {counted(len(names), 'file')}"
    )
    out = options.out.rstrip("/")
    prepare = command_line(
        "prepare",
        events=f"{out}/{EVENTS_FOLDER}/*.parquet",
        query=options.query,
        item=options.item,
        event=EVENT,
        event_weights="play=1,like=3,library_add=5,skip=-1",
        timestamp=TIMESTAMP,
        names=tuple(f"{options.item}={out}/{name}:id:name" for name in names if name.startswith(f"{NAMES_FOLDER}/")),
        hold_out="last-1",
        out=f"{out}-prepared",
    )
    print_line(f"next: {prepare}")
    return 0
