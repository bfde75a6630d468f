"""``crossfade sequence``: print a smooth path through the embedding space from one item to another."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING

from crossfade.cli.command import as_command
from crossfade.terminal import TableOptions, print_lines, print_result
from crossfade.trainer.recommend.options import SequenceOptions

if TYPE_CHECKING:
    from crossfade.trainer.recommend.sequence import SequencePath

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ('crossfade sequence runs/lastfm "Metallica" "Miles Davis"', "Print ten artists from one to the other."),
    (
        'crossfade sequence runs/plays 1234 5678 --length 20 --where "count >= 20"',
        "Print twenty tracks, all between them with at least twenty interactions.",
    ),
)
_NOTES = """\
The path begins at A and ends at B, whatever the filters; the rows between them meet the filters. Rows are ordered by
progress, the angle from A in the plane of A and B: 0 at A and 1 at B. Rows that few listened to have less certain
vectors: --where "count >= 20" leaves them out. Where no row lies between the two ends, every path has a jump, which the
cosines show.
"""


class SequenceCommand(TableOptions, SequenceOptions):
    """The options of the command."""


@as_command(
    "sequence",
    "Print a smooth path through the embedding space from one item to another, such as a playlist.",
    _EXAMPLES,
    _NOTES,
)
def run(options: SequenceCommand) -> int:
    """Print the path.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, a name unknown, or there is no path.
    """
    from crossfade.trainer.recommend.model import open_model
    from crossfade.trainer.recommend.sequence import find_path

    with closing(open_model(options, _logger.warning)) as opened:
        _print_path(opened.use(lambda model: find_path(model, options)), options)
    return 0


def _print_path(path: SequencePath, options: SequenceCommand) -> None:
    from crossfade.trainer.recommend.row_names import distinct_labels

    found = [path.labels[row] for row in path.row_K.tolist()]
    mean, least = float(path.cosine_K.mean()), float(path.cosine_K.min())
    rows = [
        label.as_record(path.entity) | {"cosine": cosine, "progress": progress}
        for label, cosine, progress in zip(
            found, [None, *path.cosine_K.tolist()], path.progress_K.tolist(), strict=True
        )
    ]
    texts = distinct_labels(path.labels)
    lines = [
        f"{'cosine':>8}  {'progress':>8}  {path.entity}",
        *(
            f"{'' if (cosine := each['cosine']) is None else f'{cosine:.3f}':>8}  "
            f"{round(each['progress'], 2) + 0.0:>8.2f}  {texts[row]}"
            for row, each in zip(path.row_K.tolist(), rows, strict=True)
        ),
        f"cosine of consecutive rows: mean {mean:.3f}, minimum {least:.3f}",
    ]
    value = {"path": rows, "mean_cosine": mean, "min_cosine": least}
    print_result(options, value, lambda: print_lines(lines), lambda: rows)
