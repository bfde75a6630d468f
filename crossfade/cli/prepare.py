"""``crossfade prepare``: turn raw events, or the Last.fm sample, into a dataset of vocabularies and interactions."""

from __future__ import annotations

from crossfade.cli.command import as_command
from crossfade.trainer.prepare.options import PrepareOptions

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
        "crossfade prepare --events day3.parquet --base data/day2 --timestamp at --out data/day3",
        "Extend a dataset with new events; IDs keep their rows.",
    ),
    ("crossfade prepare --sample lastfm --out data/lastfm", "Download real listening data to try things on."),
)
_NOTES = """\
Text files have a header, or a JSON object in each line (.jsonl, .ndjson), and may be compressed with gzip, as
in .csv.gz. Files and --out may be on S3, with the credentials and endpoint of the AWS tools. OUT appears when
everything is done, and not at all after an error.
"""


@as_command(
    "prepare",
    "Turn raw events (Parquet, CSV, TSV, JSON, adjacency text) into a dataset of vocabularies and interactions.",
    _EXAMPLES,
    _NOTES,
)
def run(options: PrepareOptions) -> int:
    """Prepare a dataset, and print a summary and the command to run next.

    Raises:
        CrossfadeError: preparing failed.
    """
    from crossfade.cli.next_command import print_prepared
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.lastfm import prepare_sample
    from crossfade.trainer.prepare.pipeline import prepare

    with progress_bars() as bars:
        manifest = prepare_sample(options, bars) if options.sample else prepare(options, bars)
    print_prepared(manifest, options.out)
    return 0
