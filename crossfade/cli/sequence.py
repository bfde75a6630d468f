"""``crossfade sequence``: print a smooth path through the embedding space from one item to another."""

from __future__ import annotations

import argparse
import json
import logging
from typing import TYPE_CHECKING

from crossfade.cli.command import add_command
from crossfade.cli.options.filters import NOTES as FILTER_NOTES
from crossfade.cli.options.filters import add_filter_options, read_filters
from crossfade.cli.options.history import add_history_option
from crossfade.terminal import print_json, print_line

if TYPE_CHECKING:
    from crossfade.trainer.recommend.options import FilterOptions
    from crossfade.trainer.recommend.sequence import PathFinder
    from crossfade.trainer.recommend.trained_model import TrainedModel

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ('crossfade sequence runs/lastfm "Metallica" "Miles Davis"', "Print ten artists from one to the other."),
    (
        "crossfade sequence runs/plays 1234 5678 --length 20 --max-per artist=2 --metadata songs.csv",
        "Print twenty tracks, at most two of an artist.",
    ),
    (
        'crossfade sequence runs/lastfm --measure 200 --where "count >= 20"',
        "Measure how smooth the paths between 200 random pairs are.",
    ),
)
_NOTES = f"""\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. A row is named by its ID
or, if the dataset was prepared with --names, by its name in upper or lower case.

The path begins at A and ends at B, whatever the filters; the rows between them meet the filters. Rows are ordered by
progress, the angle from A in the plane of A and B: 0 at A and 1 at B. No row is repeated. Of all such sequences of rows
near the arc from A to B, the path has the least sum of the fourth powers of the angles between consecutive vectors.
Where few rows lie between A and B, those that lie least beyond them are used too. With --max-per, in whose limits A and
B count, a path is a good one, but not always the best.

Rows that few listened to have less certain vectors: --where "count >= 20" leaves them out. Where no row lies between
the two ends, every path has a jump, which the cosines show.

{FILTER_NOTES}"""
_METHODS = {
    "path": "this path",
    "interpolation": "nearest to points at equal distances",
    "walk": "nearest neighbors, then a jump to B",
    "random": "random rows",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "sequence",
        "print a smooth path from one item to another",
        "Print a smooth path through the embedding space from one item to another, such as a playlist.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument("source", metavar="FROM", help="read this run folder, folder of checkpoints, or checkpoint")
    rows.add_argument("start", nargs="?", metavar="A", help="begin with this name or ID")
    rows.add_argument("end", nargs="?", metavar="B", help="end with this name or ID")
    rows.add_argument(
        "--length", type=int, default=10, metavar="N", help="print N rows, A and B among them (default: 10)"
    )
    rows.add_argument("--entity", help="search this table (default: the item entity of the run's job)")
    rows.add_argument("--data", metavar="DATA", help="read IDs and names here (default: data.path of the job)")
    add_history_option(rows)
    add_filter_options(parser)
    measure = parser.add_argument_group("measurement (without A and B)")
    measure.add_argument(
        "--measure",
        type=int,
        metavar="PAIRS",
        help="print how smooth the paths between this many random pairs are, beside those of other methods",
    )
    measure.add_argument("--seed", type=int, default=1, metavar="N", help="draw the pairs with this seed (default: 1)")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the path or the measurement as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the path, or measure paths.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, a name unknown, or there is no path.
    """
    from crossfade.base.errors import InputError
    from crossfade.trainer.recommend.sequence import MAX_LENGTH
    from crossfade.trainer.recommend.trained_model import with_trained_model

    if not 3 <= arguments.length <= MAX_LENGTH:
        raise InputError(f"--length {arguments.length}: expected 3 to {MAX_LENGTH}")
    if arguments.measure is None and arguments.end is None:
        raise InputError("a path needs two names or IDs, A and B; to measure paths of random pairs, use --measure")
    if arguments.measure is not None and arguments.start is not None:
        raise InputError(f"--measure draws random pairs; leave out '{arguments.start}', or --measure")
    if arguments.measure is not None and arguments.measure < 1:
        raise InputError(f"--measure {arguments.measure}: expected 1 or more")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed}: expected 0 or more")
    filters = read_filters(arguments)
    with_trained_model(
        arguments.source,
        arguments.data,
        _logger.info,
        lambda model: _run(model, filters, arguments),
        history_from_this_dataset_only=arguments.history_from_this_dataset_only,
    )
    return 0


def _run(model: TrainedModel, filters: FilterOptions, arguments: argparse.Namespace) -> None:
    from crossfade.trainer.recommend.sequence import PathFinder

    entity = arguments.entity or model.spec.item.name
    finder = PathFinder(model, entity, filters)
    if arguments.measure is not None:
        _measure(finder, entity, arguments)
    else:
        _print_path(model, finder, entity, arguments)


def _print_path(model: TrainedModel, finder: PathFinder, entity: str, arguments: argparse.Namespace) -> None:
    from crossfade.base.errors import InputError
    from crossfade.trainer.recommend.row_names import RowNames, distinct_labels, untrained

    names = RowNames(model.vocabulary(entity), entity)
    start, end = names.find([arguments.start, arguments.end], _logger.warning)
    for row, text in ((start, arguments.start), (end, arguments.end)):
        if not finder.trained_R[row]:
            raise InputError(untrained(entity, text))
    path = finder.find(start, end, arguments.length)
    labels = names.labels(path.row_K)
    found = [labels[row] for row in path.row_K.tolist()]
    mean, least = float(path.cosine_K.mean()), float(path.cosine_K.min())
    cosines = [None, *path.cosine_K.tolist()]
    if arguments.json:
        rows = [
            {entity: label.id, **({"name": label.name} if label.name is not None else {})}
            | {"cosine": cosine, "progress": progress}
            for label, cosine, progress in zip(found, cosines, path.progress_K.tolist(), strict=True)
        ]
        print_json({"path": rows, "mean_cosine": mean, "min_cosine": least})
        return
    print_line(f"{'cosine':>8}  {'progress':>8}  {entity}")
    texts = distinct_labels(labels)
    for row, cosine, progress in zip(path.row_K.tolist(), cosines, path.progress_K, strict=True):
        print_line(
            f"{'' if cosine is None else f'{cosine:.3f}':>8}  {round(float(progress), 2) + 0.0:>8.2f}  {texts[row]}"
        )
    print_line(f"cosine of consecutive rows: mean {mean:.3f}, minimum {least:.3f}")


def _measure(finder: PathFinder, entity: str, arguments: argparse.Namespace) -> None:
    from crossfade.display import progress_bars
    from crossfade.trainer.recommend.path_smoothness import measure_paths

    with progress_bars() as bars:
        measured = measure_paths(finder, arguments.length, arguments.measure, arguments.seed, bars)
    if arguments.json:
        print(json.dumps({"pairs": arguments.measure, "length": arguments.length, "methods": measured}))
        return
    print_line(
        f"{arguments.measure:,} random pairs of {len(finder.candidate_I):,} rows of {entity}, {arguments.length} rows "
        "from A to B; cosines of consecutive rows, and the deviation of progress from equal steps"
    )
    print_line(f"{'mean':>8}  {'minimum':>8}  {'deviation':>9}")
    for name, method in _METHODS.items():
        found = measured[name]
        print_line(f"{found['mean_cosine']:>8.3f}  {found['min_cosine']:>8.3f}  {found['deviation']:>9.3f}  {method}")
