"""``crossfade map``: draw the items of a trained model as a map."""

from __future__ import annotations

import logging

from crossfade.cli.command import as_command
from crossfade.terminal import print_line
from crossfade.trainer.maps.options import MapOptions

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
shared by neighbors. Of several, such as tags, an item gets the rarest."""


@as_command(
    "map",
    "Draw the items of a trained model as a map.",
    _EXAMPLES,
    _NOTES,
)
def run(options: MapOptions) -> int:
    """Draw the map, and print where it is.

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
    print_line(f"map of {items_map.title}: {out / 'map.html'}")
    return 0
