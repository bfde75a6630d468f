"""``crossfade map``: draw the items of a trained model as a map."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import print_line
from crossfade.trainer.maps.options import MapOptions

if TYPE_CHECKING:
    from crossfade.trainer.maps.items_map import ItemsMap

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade map runs/lastfm", "Map the 5,000 most frequent artists, colored by the dataset's first feature."),
    (
        "crossfade map runs/plays --metadata songs.csv --color genre --count 50000 --out maps/plays",
        "Map more, colored by a column of a file.",
    ),
)
_NOTES = """\
The map is a t-SNE projection (openTSNE): items whose embeddings are near each other are near each other. OUT gets
map.html, one page without external files (hover, zoom, search, a legend that switches labels), and map.parquet with the
ID, name, place, and label of each item. Labels are the values of COLUMN that most form regions: common, and
shared by neighbors. Of several, such as tags, an item gets the rarest. How often neighbors share a label is printed: on
the map, in the embedding, and by chance."""


@as_command(
    "map",
    "Draw the items of a trained model as a map.",
    _EXAMPLES,
    _NOTES,
)
def run(options: MapOptions) -> int:
    """Draw the map, and print how well neighbors agree.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: an option is invalid, the folder may not be replaced, or the model or its dataset is missing.
    """
    from crossfade.display import progress_bars
    from crossfade.trainer.maps.map_files import draw_map, map_folder
    from crossfade.trainer.recommend.trained_model import with_trained_model

    out = map_folder(options)
    with progress_bars() as bars:
        items_map = with_trained_model(options, _logger.info, lambda model: draw_map(model, options, out, bars))
    _print_agreement(items_map)
    print_line(f"map of {items_map.title}: {out / 'map.html'}")
    return 0


def _print_agreement(items_map: ItemsMap) -> None:
    found = items_map.agreement
    if found is None or items_map.labels is None:
        return
    print_line(
        f"share of the {found.neighbors} nearest with the same label: {found.on_map:.3f} on the map, "
        f"{found.in_embedding:.3f} in the embedding, {found.by_chance:.3f} by chance "
        f"({counted(found.items, 'item')}, {counted(len(items_map.labels.names), 'label')})"
    )
