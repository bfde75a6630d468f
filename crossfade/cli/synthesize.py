"""``crossfade synthesize``: generate a dataset of synthetic listening of any size."""

from __future__ import annotations

from crossfade.cli.command import as_command
from crossfade.trainer.prepare.options import SynthesizeOptions

_EXAMPLES = (
    (
        "crossfade synthesize --queries 1e6 --items 5e5 --interactions 1e8 --genres 50 --out data/synthetic",
        "Generate a dataset to train on.",
    ),
    ("crossfade synthesize --queries 2000 --items 1000 --interactions 50000 --out data/small", "Generate a small one."),
)
_NOTES = """\
Popularity follows Zipf's law, and customers prefer a few of the genres. The same options and seed give the same bytes.
"""


@as_command("synthesize", "Generate a dataset of synthetic listening with planted genres.", _EXAMPLES, _NOTES)
def run(options: SynthesizeOptions) -> int:
    """Generate the data, and print a summary and the command to run next.

    Raises:
        InputError: the output exists and may not be replaced, or a split would be empty.
    """
    from crossfade.cli.next_command import print_prepared
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.synthetic import synthesize

    with progress_bars() as bars:
        print_prepared(synthesize(options, bars), options.out)
    return 0
