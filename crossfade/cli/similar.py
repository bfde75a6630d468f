"""``crossfade similar``: print the nearest neighbors of rows that are given by name or ID."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

from crossfade.base.options import option
from crossfade.cli.command import as_command
from crossfade.terminal import PrintOptions, print_lines, print_result
from crossfade.trainer.recommend.options import ListFiles, SimilarOptions
from crossfade.trainer.runs.options import ModelSource

if TYPE_CHECKING:
    from crossfade.trainer.recommend.model import Model

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ('crossfade similar runs/lastfm --entity artist "Radiohead" "Daft Punk"', "Look rows up by name."),
    ("crossfade similar runs/plays 1234 -k 5", "Look a row up by ID, and print five neighbors."),
    (
        'crossfade similar runs/lastfm "Miles Davis" --where "NOT list_contains(tag, \'jazz\')"',
        "Print neighbors outside jazz.",
    ),
)
_NOTES = """\
A row is named by its ID or, if the dataset was prepared with --names, by its name, in any case and with or without
accents. If several rows have the name, they are listed, and the first is used. Similarity is the cosine of embeddings.
Items and customers without an interaction of positive weight in train are left out, unless they have features:
theirs are random. With --index, some of the nearest rows may be missing."""


class SimilarCommand(PrintOptions, ListFiles, SimilarOptions, ModelSource):
    """The options of the command."""

    names: tuple[str, ...] = option(..., "look up this name or ID", group="model", value="NAME", positional=True)


@as_command(
    "similar",
    "Print the nearest neighbors of rows by the cosine of their embeddings.",
    _EXAMPLES,
    _NOTES,
)
def run(options: SimilarCommand) -> int:
    """Print the neighbors of each name.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: a name is unknown, or the model has no embeddings of the entity.
    """
    from crossfade.trainer.recommend.model import open_model

    with closing(open_model(options, _logger.warning)) as opened:
        opened.use(lambda model: _print_similar(model, options))
    return 0


def _print_similar(model: Model, options: SimilarCommand) -> None:
    from crossfade.trainer.recommend.candidates import read_lists
    from crossfade.trainer.recommend.row_names import distinct_labels

    entity = model.entity(options.entity)
    # All names are looked up before anything is printed: a misspelled one is an error, not half an answer.
    rows = model.find(entity, options.names)
    rows_QK, cosine_QK = model.similar(rows, read_lists(options, entity))
    labels = model.labels(entity, [*rows.tolist(), *rows_QK[rows_QK >= 0].tolist()])
    texts, results, lines = distinct_labels(labels), list[dict[str, Any]](), list[str]()
    for row, other_K, cosine_K in zip(rows.tolist(), rows_QK.tolist(), cosine_QK.tolist(), strict=True):
        found = [(other, cosine) for other, cosine in zip(other_K, cosine_K, strict=True) if other >= 0]
        neighbors = [labels[other].as_record(entity) | {"cosine": cosine} for other, cosine in found]
        results.append(labels[row].as_record(entity) | {"neighbors": neighbors})
        lines += [texts[row], *(f"  {cosine:6.3f}  {texts[other]}" for other, cosine in found)]
    print_result(options, results, lambda: print_lines(lines))
