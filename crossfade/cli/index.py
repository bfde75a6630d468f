"""``crossfade index``: build an approximate nearest-neighbor index of a model's vectors."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from crossfade.cli.command import as_command
from crossfade.terminal import PrintOptions, print_line, print_result
from crossfade.trainer.recommend.options import IndexOptions
from crossfade.trainer.runs.options import ModelSource

if TYPE_CHECKING:
    from crossfade.trainer.recommend.vector_index import IndexCard

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade index runs/lastfm --out indexes/artists", "Index the items by the score of the job."),
    ("crossfade recommend runs/lastfm --customer 2 --index indexes/artists", "Search it for a customer's items."),
    (
        "crossfade index runs/plays --out indexes/tracks --metric cosine",
        "Index them by cosine, which 'crossfade similar' needs.",
    ),
)
_NOTES = """\
FOLDER gets index.faiss, an inverted file of FAISS, whose IDs are rows; and card.json with the model, the metric, the
parameters, and the measured recall. It is complete or, after an error, absent. Rows that were not trained are left out.

The metric is part of the index: 'crossfade recommend' needs the default, which is model.score of the job or, of a model
with a popularity term, dot; 'crossfade similar' needs cosine. Another model, dataset, entity or metric is rejected.

Exit codes: 0 done; 1 FOLDER cannot be written; 2 invalid input, or a corrupt checkpoint; 130 and 143 stopped.
"""


class IndexCommand(PrintOptions, IndexOptions, ModelSource):
    """The options of the command."""


@as_command(
    "index",
    "Build an approximate nearest-neighbor index of the vectors of a trained model.",
    _EXAMPLES,
    _NOTES,
)
def run(options: IndexCommand) -> int:
    """Build the index, and print its card.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: the model or its dataset is missing, or the folder may not be replaced.
    """
    from crossfade.display import progress_bars
    from crossfade.trainer.recommend.index_build import build_index
    from crossfade.trainer.recommend.trained_model import with_trained_model

    with progress_bars() as bars:
        card = with_trained_model(options, _logger.info, lambda model: build_index(model, options, bars))
    print_result(options, card.model_dump(mode="json"), lambda: _print(card, options.out))
    return 0


def _print(card: IndexCard, out: str) -> None:
    from crossfade.trainer.recommend.vector_index import INDEX_FILE

    measured, size = card.measured, card.files[INDEX_FILE].bytes
    print_line(f"{card.rows:,} of {card.entity} x {card.dim} by {card.metric}: {out}")
    print_line(f"{size / 1e6:,.1f} MB ({size / card.rows:,.0f} bytes per row)")
    print_line(
        f"scans {card.probes} of {card.lists} lists: recall@100 {measured.recall_at_100:.4f}, for "
        f"{measured.queries:,} of {measured.query_entity}"
    )
