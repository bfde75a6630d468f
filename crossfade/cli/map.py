"""``crossfade map``: draw the items of a trained model as a map, a PNG and a page."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.text import counted
from crossfade.cli.command import add_command
from crossfade.cli.options.filters import NOTES as FILTER_NOTES
from crossfade.cli.options.filters import add_filter_options, read_filters
from crossfade.cli.options.history import add_history_option
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.trainer.maps.items_map import ItemsMap, MapOptions
    from crossfade.trainer.recommend.trained_model import TrainedModel

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade map runs/lastfm", "Map the 5,000 most frequent artists, colored by the dataset's first feature."),
    (
        "crossfade map runs/plays --metadata songs.csv --color genre --count 50000 --out maps/plays",
        "Map more, colored by a column of a file.",
    ),
)
_NOTES = f"""\
FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3.

The map is a t-SNE projection (openTSNE): items whose embeddings are near each other are near each other. OUT gets
map.png, map.html, one page without external files (hover, zoom, search, a legend that switches labels), and map.parquet
with the ID, name, place, and label of each item. Labels are the values of COLUMN that most form regions: common, and
shared by neighbors. Of several, such as tags, an item gets the rarest. How often neighbors share a label is printed: on
the map, in the embedding, and by chance.

{FILTER_NOTES}"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "map",
        "draw items as a map, colored by genre",
        "Draw the items of a trained model as a map, as a picture and as a page.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    source = parser.add_argument_group("input")
    source.add_argument("source", metavar="FROM", help="read this run folder, folder of checkpoints, or checkpoint")
    source.add_argument("--data", metavar="DATA", help="read IDs and names here (default: data.path of the job)")
    add_history_option(source)
    shown = parser.add_argument_group("map")
    shown.add_argument("--count", type=int, default=5000, metavar="N", help="map the N most frequent (default: 5000)")
    shown.add_argument("--color", metavar="COLUMN", help="color by this feature or column (default: the first feature)")
    shown.add_argument("--colors", type=int, default=12, metavar="N", help="color N values (default: 12)")
    shown.add_argument("--seed", type=int, default=1, metavar="N", help="project with this seed (default: 1)")
    add_filter_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, metavar="OUT", help="write to this folder (default: the folder map of a local run)"
    )
    output.add_argument("--overwrite", action="store_true", help="replace the map in the folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Build the map, and write it.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, the folder may not be replaced, or the model or its dataset is missing.
    """
    from crossfade.base.errors import InputError
    from crossfade.trainer.maps.items_map import MapOptions
    from crossfade.trainer.maps.map_files import check_free
    from crossfade.trainer.recommend.trained_model import with_trained_model

    if arguments.count < 1 or not 1 <= arguments.colors <= 250:
        raise InputError(f"--count {arguments.count} --colors {arguments.colors}: expected 1 or more, and 1 to 250")
    filters = read_filters(arguments)
    if filters.max_per is not None:
        raise InputError("--max-per limits lists, and a map is none: leave it out")
    out = arguments.out or _default_folder(arguments.source)
    check_free(out, arguments.overwrite)
    options = MapOptions(arguments.count, arguments.color, arguments.colors, filters, arguments.seed)
    with_trained_model(
        arguments.source,
        arguments.data,
        _logger.info,
        lambda model: _draw(model, options, out),
        history_from_this_dataset_only=arguments.history_from_this_dataset_only,
    )
    return 0


def _default_folder(source: str) -> Path:
    from crossfade.base.errors import InputError
    from crossfade.trainer.runs.run_folder import JOB_FILE

    if "://" in source or not (Path(source) / JOB_FILE).exists():
        raise InputError(f"{source}: is not a local run folder: name a folder for the map with --out")
    return Path(source) / "map"


def _draw(model: TrainedModel, options: MapOptions, out: Path) -> None:
    from crossfade.base.errors import InputError
    from crossfade.display import progress_bars
    from crossfade.trainer.maps.items_map import build_map
    from crossfade.trainer.maps.map_files import write_map

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror}") from error
    with progress_bars() as bars:
        items_map = build_map(model, options, bars)
    if (note := write_map(items_map, out)) is not None:
        _logger.warning(note)
    _print_agreement(items_map)
    print_line(f"map of {items_map.title}: {out / 'map.png'}, {out / 'map.html'}")


def _print_agreement(items_map: ItemsMap) -> None:
    found = items_map.agreement
    if found is None or items_map.labels is None:
        return
    print_line(
        f"share of the {found.neighbors} nearest with the same label: {found.on_map:.3f} on the map, "
        f"{found.in_embedding:.3f} in the embedding, {found.by_chance:.3f} by chance "
        f"({counted(found.items, 'item')}, {counted(len(items_map.labels.names), 'label')})"
    )
