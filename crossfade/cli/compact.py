"""``crossfade compact``: write a dataset and its base datasets as one without a base."""

from __future__ import annotations

from crossfade.cli.command import as_command
from crossfade.trainer.prepare.options import CompactOptions

_EXAMPLES = (
    ("crossfade compact data/day300 --out data/compact", "Write a dataset and all that it extends, in its rows."),
    ("crossfade prepare --events day301.parquet --base data/compact --out data/day301", "Extend the result."),
)
_NOTES = """\
IDs keep their rows, so models that were trained on DATA work with '--data DIR', and checkpoints of any dataset of the
lineage can start a run on DIR. Interactions of IDs that were forgotten or have expired are left out.
"""


@as_command(
    "compact",
    "Write all that a dataset and its base datasets ('crossfade prepare --base') hold as one dataset without a base.",
    _EXAMPLES,
    _NOTES,
)
def run(options: CompactOptions) -> int:
    """Compact a dataset, and print a summary and the command to run next.

    Raises:
        CrossfadeError: compacting failed.
    """
    from crossfade.cli.next_command import print_prepared
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.compact import compact

    with progress_bars() as bars:
        manifest = compact(options, bars)
    print_prepared(manifest, options.out)
    return 0
